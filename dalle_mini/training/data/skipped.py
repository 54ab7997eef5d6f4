"""What became of the rows of a source."""

import dataclasses
from typing import Any


@dataclasses.dataclass(kw_only=True)
class Report:
    """What became of the rows of a source: keys by reason."""

    read: int = 0
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    converted: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, reason: str, key: str) -> None:
        self.skipped.setdefault(reason, []).append(key)

    def add(self, other: "Report") -> None:
        self.read += other.read
        for mine, theirs in ((self.skipped, other.skipped), (self.converted, other.converted)):
            for reason, keys in theirs.items():
                mine.setdefault(reason, []).extend(keys)

    @property
    def kept(self) -> int:
        return self.read - sum(map(len, self.skipped.values()))

    def summary(self) -> str:
        """One line for people: the most frequent reason first."""
        reasons = sorted(self.skipped.items(), key=lambda item: -len(item[1]))
        return ", ".join([f"{self.kept} of {self.read} kept", *(f"{len(keys)} {reason}" for reason, keys in reasons)])

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        parts = {"skipped": self.skipped, "converted": self.converted}
        listed = {
            part: {reason: {"count": len(keys), "keys": keys} for reason, keys in sorted(reasons.items())}
            for part, reasons in parts.items()
        }
        return {"read": self.read, "kept": self.kept, **listed}
