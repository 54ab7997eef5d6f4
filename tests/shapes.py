"""The check behind the shapes in signatures, as jaxtyping's import hook calls it (see conftest.py).

Only arrays are checked: a setting of the wrong type must reach our own code, which refuses it by name.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (a copy of the real one's signature, made by jaxtyping) with its arrays checked at every call."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_array(hint)}
    return beartype(function)


def _has_array(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_array, get_args(hint)))
