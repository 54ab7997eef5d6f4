"""Nothing depends on the crowd: what many ask for at once is, bit for bit, what each would have got alone."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from patience import eventually

from dalle_mini.serving.request import Drawing

if TYPE_CHECKING:
    from dalle_mini import Pipeline

WORDS = ["a cat", "a tiny dog", "two rockets", "three hearts", "a bee above a cake", "a moon on blue", "x" * 300, "🐱"]
REQUESTS, CANCELLED, ALONE = 200, 60, 50


class Wish(NamedTuple):
    prompt: str
    visitor: str
    settings: dict[str, Any]


def wishes(number: int) -> list[Wish]:
    rng = random.Random(0)
    return [
        Wish(
            rng.choice(WORDS),
            f"visitor {rng.randrange(20)}",
            {
                "seed": rng.randrange(2**32),
                "num_candidates": rng.choice([1, 1, 1, 2, 3, 4, 9, 16]),
                "condition_scale": rng.choice([0.0, 1.0, 1.0, 1.5, 4.0]),
                "temperature": rng.choice([0.1, 0.7, 1.0, 3.0]),
                "top_k": rng.choice([0, 1, 50, 1000]),
                "top_p": rng.choice([0.2, 1.0]),
            },
        )
        for _ in range(number)
    ]


def draw(pipeline: "Pipeline", wish: Wish, *, events: int | None = None) -> np.ndarray | None:
    """The codes of a request, or None when it is cancelled after some events."""
    tokens = pipeline.tokenizer.encode(wish.prompt)
    _, params, _ = pipeline.checked(wish.prompt, wish.settings)
    with closing(pipeline.scheduler.stream(tokens, params, visitor=wish.visitor)) as stream:
        for number, event in enumerate(stream):
            if number == events:
                return None
            last = event
    assert isinstance(last, Drawing)
    return np.stack(last.codes)


@pytest.mark.slow
def test_200_requests_at_once_with_cancellations_are_those_drawn_alone(
    emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(emoji.scheduler, "max_waiting", REQUESTS + CANCELLED)
    asked = wishes(REQUESTS)
    sample = slice(None, None, REQUESTS // ALONE)
    alone = [draw(emoji, wish) for wish in asked[sample]]
    rng = random.Random(1)
    nuisances = [(wish, rng.randrange(8)) for wish in wishes(CANCELLED)]
    with ThreadPoolExecutor(REQUESTS + CANCELLED) as pool:
        jobs = [pool.submit(draw, emoji, wish) for wish in asked[: REQUESTS // 2]]
        cancelled = [pool.submit(draw, emoji, wish, events=events) for wish, events in nuisances]
        jobs += [pool.submit(draw, emoji, wish) for wish in asked[REQUESTS // 2 :]]
        together = [job.result() for job in jobs]
    assert sum(job.result() is None for job in cancelled) > CANCELLED / 2
    for wish, ours, expected in zip(asked[sample], together[sample], alone, strict=True):
        np.testing.assert_array_equal(ours, expected, err_msg=str(wish))
    assert eventually(lambda: emoji.scheduler.slots_in_use == emoji.scheduler.waiting == 0)
