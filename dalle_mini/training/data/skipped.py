"""What became of the rows of a source, and what to try where little of it was of use."""

import dataclasses
from typing import Any

# For reasons that are seldom the pictures' fault.
ADVICE = {
    "no caption": "captions were looked for in cat.txt, cat.caption or cat.json beside cat.jpg or in a folder of the "
    "same names, and in tables with a column of captions (caption, text, prompt, ...)",
    "no picture": "pictures were looked for in columns called image, file_name and the like, and in tar shards beside "
    "the captions, under the same name up to the suffix",
    "missing file": "paths of pictures are relative to the folder of the table",
    "address instead of a picture": "the table holds addresses, not pictures: download them with img2dataset",
    "not UTF-8": "save the table as UTF-8",
    "other_language": "captions in another language: --set language=de (or another code)",
    "too_small": "smaller pictures are kept with --set min_side=32",
    "too_few_words": "shorter captions are kept with --set min_words=1",
}


@dataclasses.dataclass(kw_only=True)
class Report:
    """What became of the rows of a source: where they are, by reason."""

    read: int = 0
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    converted: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    passed_over: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # never looked at

    def skip(self, reason: str, where: str) -> None:
        self.skipped.setdefault(reason, []).append(where)

    def pass_over(self, reason: str, name: str) -> None:
        self.passed_over.setdefault(reason, []).append(name)

    def add(self, other: "Report") -> None:
        self.read += other.read
        for mine, theirs in (
            (self.skipped, other.skipped),
            (self.converted, other.converted),
            (self.passed_over, other.passed_over),
        ):
            for reason, places in theirs.items():
                mine.setdefault(reason, []).extend(places)

    @property
    def kept(self) -> int:
        return self.read - sum(map(len, self.skipped.values()))

    def summary(self) -> str:
        """One line for people: the most frequent reason first, then what was not looked at."""
        line = ", ".join([f"{self.kept} of {self.read} kept", *_counts(self.skipped)])
        return f"{line}; not looked at: {', '.join(_counts(self.passed_over))}" if self.passed_over else line

    def advice(self) -> list[str]:
        """What was looked for and what to try; nothing where more than half was kept."""
        if self.read and 2 * self.kept >= self.read:
            return []
        reasons = sorted(self.skipped, key=lambda reason: -len(self.skipped[reason]))
        return [f"{reason}: {ADVICE[reason]}" for reason in reasons if reason in ADVICE]

    def explained(self) -> str:
        """The summary and, where there is any, advice: a line each."""
        return "\n".join([self.summary(), *self.advice()])

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file, what matters first."""
        parts = {"skipped": self.skipped, "passed_over": self.passed_over, "converted": self.converted}
        listed = {
            part: {
                reason: {"count": len(places), "keys": places}
                for reason, places in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
            }
            for part, reasons in parts.items()
        }
        return {"summary": self.summary(), "advice": self.advice(), "read": self.read, "kept": self.kept, **listed}


def _counts(reasons: dict[str, list[str]]) -> list[str]:
    return [f"{len(places)} {reason}" for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1]))]
