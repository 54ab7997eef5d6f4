"""JSON files of runs and reports."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, values: dict[str, Any]) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # The name of a source may be no UTF-8; what Python then writes, \udcff, is how JSON escapes it.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
