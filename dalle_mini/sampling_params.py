"""How codes are drawn: `SamplingParams`, frozen and validated, the one place where a default of a setting is written.

Contract: the page, the API, Python and the command line all read their defaults and their limits from here.

Paper: super conditioning is classifier-free guidance (Ho & Salimans 2022) on logits.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeGuard

from dalle_mini.start import Start

MAX_CANDIDATES = 16
MAX_SEED = 2**32 - 1
MAX_CONDITION_SCALE = 100.0
MAX_TEMPERATURE = 10.0
FIRST = ("num_candidates", "seed", "condition_scale", "temperature", "top_k", "top_p")  # what every PNG has
STRENGTH = 0.5  # of a variation: the share of codes that are given up
SEAMLESS = ("", "x", "y", "both")
MAX_INT = 2**31 - 1  # settings and sizes are int32 on the device


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def whole(name: str, value: object, lowest: int, highest: int = MAX_INT) -> int:
    """`value` as an int; a whole float such as 9.0 is accepted, since sliders send those."""
    # Compared before it is converted: NaN fails here, and int(infinity) would raise its own error.
    if not (is_number(value) and lowest <= value <= highest and value == int(value)):
        rule = f">= {lowest}" if highest == MAX_INT else f"from {lowest} to {highest}"
        raise ValueError(f"{name} must be a whole number {rule}, got {value!r}")
    return int(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How codes are drawn, one value per request. Raises ValueError naming the setting, the rule and the value.

    seed None means: draw a random one (the pipeline does, and reports it). top_k 0 and top_p 1 switch them off.
    negative_prompt takes the place of the empty prompt in super conditioning: what to stay away from. start: the codes
    that are given, a `Start` or what it is in a PNG. seamless: along which axes the picture continues on its other
    side, "x", "y" or "both" (True); "" (False) for none.

    What changes no picture: show, of the candidates, how many of the best to keep, None for all of them; seconds, after
    which no more is drawn where a candidate is whole.
    """

    num_candidates: int = 9
    seed: int | None = None
    condition_scale: float = 10.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    negative_prompt: str = ""
    start: Start | None = None
    seamless: str = ""
    show: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        scale, temperature, top_p = self.condition_scale, self.temperature, self.top_p
        if not (is_number(scale) and 0 <= scale <= MAX_CONDITION_SCALE):
            raise ValueError(f"condition_scale must be a number from 0 to {MAX_CONDITION_SCALE:g}, got {scale!r}")
        if not (is_number(temperature) and 0 < temperature <= MAX_TEMPERATURE):
            raise ValueError(f"temperature must be a number > 0 and <= {MAX_TEMPERATURE:g}, got {temperature!r}")
        if not (is_number(top_p) and 0 < top_p <= 1):
            raise ValueError(f"top_p must be a number > 0 and <= 1, got {top_p!r}")
        clean: dict[str, Any] = {
            "num_candidates": whole("num_candidates", self.num_candidates, 1, MAX_CANDIDATES),
            "seed": None if self.seed is None else whole("seed", self.seed, 0, MAX_SEED),
            "condition_scale": float(scale),
            "temperature": float(temperature),
            "top_k": whole("top_k", self.top_k, 0),
            "top_p": float(top_p),
            "negative_prompt": _text("negative_prompt", self.negative_prompt),
            "start": _start(self.start),
            "seamless": _axes(self.seamless),
        }
        if self.show is not None:
            clean["show"] = whole("show", self.show, 1, clean["num_candidates"])
        if self.seconds is not None:
            if not (is_number(self.seconds) and 0 < self.seconds < math.inf):
                raise ValueError(f"seconds must be a number > 0, got {self.seconds!r}")
            clean["seconds"] = float(self.seconds)
        for name, value in clean.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """What `SamplingParams(**...)` takes, as JSON has it: `FIRST`, and of the others what is set."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        unset = {field.name: field.default for field in dataclasses.fields(self) if field.name not in FIRST}
        told = {name: value for name, value in values.items() if name not in unset or value != unset[name]}
        return told | ({"start": self.start.to_dict()} if self.start else {})


def _text(name: str, value: object) -> str:
    """`value`, or "" where there is nothing to be seen in it."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r}")
    return value if any(c.isprintable() and not c.isspace() for c in value) else ""


def _axes(value: object) -> str:
    if isinstance(value, bool):
        return "both" if value else ""
    if value not in SEAMLESS:
        raise ValueError(f"seamless must be x, y or both, or empty for neither, got {value!r}")
    return str(value)


def _start(value: object) -> Start | None:
    if value is None or isinstance(value, Start):
        return value
    if isinstance(value, Mapping):
        return Start.from_dict(value)
    raise ValueError(f"start must be codes as a PNG has them, got {value!r}")
