"""DALL·E mini: text to a ranked gallery.

import dalle_mini
pipeline = dalle_mini.load("emoji")
gallery = pipeline.generate("a cat left of a pizza", num_candidates=9, seed=7)
gallery.save("out/")
"""

from typing import TYPE_CHECKING, Any

from dalle_mini.gallery import Candidate
from dalle_mini.sampling_params import SamplingParams

if TYPE_CHECKING:
    from dalle_mini.loading import load
    from dalle_mini.pipeline import Pipeline

__all__ = ["Candidate", "Pipeline", "SamplingParams", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Pipeline` bring JAX along, which the command line's --help should not wait for."""
    if name == "load":
        from dalle_mini.loading import load

        return load
    if name == "Pipeline":
        from dalle_mini.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
