"""Packages that only some of training needs: used when installed, asked for in a sentence when not."""

import importlib
from typing import Any


def optional(module: str, purpose: str) -> Any:
    """A module of such a package. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(f"{package} must be installed {purpose}: pip install {package}") from None
