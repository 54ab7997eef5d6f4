"""What an installed package needs: the pins of requirements.txt; with [ray] or [dev] those of the other files, too."""

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

EXTRAS = ("dev", "ray")


class Pins(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["dependencies"] = self._pins("requirements.txt")
        metadata["optional-dependencies"] = {extra: self._pins(f"requirements-{extra}.txt") for extra in EXTRAS}

    def _pins(self, name: str) -> list[str]:
        lines = (Path(self.root) / name).read_text(encoding="utf-8").splitlines()
        pins = (line.partition("#")[0].strip() for line in lines)
        return [pin for pin in pins if pin and not pin.startswith("-r")]
