"""How codes are drawn: `SamplingParams`, frozen and validated, the one place where a default of a setting is written.

Contract: the page, the API, Python and the command line all read their defaults and their limits from here.

Paper: super conditioning is classifier-free guidance (Ho & Salimans 2022) on logits.
"""

import dataclasses
import numbers
from typing import TypeGuard

MAX_CANDIDATES = 16
MAX_SEED = 2**32 - 1
MAX_CONDITION_SCALE = 100.0
MAX_TEMPERATURE = 10.0
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
    """

    num_candidates: int = 9
    seed: int | None = None
    condition_scale: float = 10.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        scale, temperature, top_p = self.condition_scale, self.temperature, self.top_p
        if not (is_number(scale) and 0 <= scale <= MAX_CONDITION_SCALE):
            raise ValueError(f"condition_scale must be a number from 0 to {MAX_CONDITION_SCALE:g}, got {scale!r}")
        if not (is_number(temperature) and 0 < temperature <= MAX_TEMPERATURE):
            raise ValueError(f"temperature must be a number > 0 and <= {MAX_TEMPERATURE:g}, got {temperature!r}")
        if not (is_number(top_p) and 0 < top_p <= 1):
            raise ValueError(f"top_p must be a number > 0 and <= 1, got {top_p!r}")
        clean = {
            "num_candidates": whole("num_candidates", self.num_candidates, 1, MAX_CANDIDATES),
            "seed": None if self.seed is None else whole("seed", self.seed, 0, MAX_SEED),
            "condition_scale": float(scale),
            "temperature": float(temperature),
            "top_k": whole("top_k", self.top_k, 0),
            "top_p": float(top_p),
        }
        for name, value in clean.items():
            object.__setattr__(self, name, value)
