"""What is counted, on numbers known beforehand, and by the embedded model."""

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dalle_mini.gallery import Preview
from dalle_mini.serving.metrics import OUTCOMES, Metrics
from dalle_mini.serving.refusals import LimitError
from dalle_mini.web.limits import Limits

if TYPE_CHECKING:
    from dalle_mini import Pipeline


def read(metrics: Metrics) -> dict[str, float]:
    """By name without dalle_mini_, and label."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    return {" ".join([s.name.removeprefix("dalle_mini_"), *s.labels.values()]): s.value for s in samples}


def outcomes(metrics: Metrics) -> dict[str, float]:
    found = read(metrics)
    return {outcome: found[f"requests_total {outcome}"] for outcome in OUTCOMES}


def rise(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in before if after[name] != before[name]}


def test_a_request_is_counted_by_how_it_ends():
    metrics = Metrics()

    def stream() -> Generator[int, None, None]:
        with metrics.request():
            yield from (1, 2)

    list(stream())
    with closing(stream()) as events:
        next(events)
        assert read(metrics)["requests_open"] == 1
    for error in (LimitError, MemoryError, MemoryError):
        with pytest.raises(error), metrics.request():
            raise error
    assert outcomes(metrics) == {"finished": 1, "cancelled": 1, "refused": 1, "failed": 2}
    assert read(metrics)["requests_open"] == 0


def test_every_outcome_and_stage_is_there_before_anything_happened():
    found = read(Metrics())
    assert [found[f"requests_total {outcome}"] for outcome in OUTCOMES] == [0] * 4
    stages = ("encoding", "waiting", "drawing", "painting", "ranking")
    assert [found[f"stage_seconds_count {stage}"] for stage in stages] == [0] * 5


def test_stages_are_histograms_in_seconds():
    metrics = Metrics()
    metrics.took("drawing", 2.0)
    metrics.took("drawing", 40.0)
    assert 'stage_seconds_bucket{le="3.0",stage="drawing"} 1.0' in metrics.text().decode()
    assert (read(metrics)["stage_seconds_count drawing"], read(metrics)["stage_seconds_sum drawing"]) == (2, 42)


def test_gauges_are_read_when_they_are_asked_for_and_belong_to_one_server():
    first, second = Metrics(), Metrics()
    numbers = [3]
    first.gauge("slots_in_use", "Slots.", lambda: numbers[0])
    numbers[0] = 5
    assert read(first)["slots_in_use"] == 5
    assert "slots_in_use" not in read(second)


def test_a_gallery_is_one_finished_request_with_all_its_codes_and_stages(emoji: "Pipeline"):
    before = read(emoji.metrics)
    emoji.generate("a tiny dog", num_candidates=3, seed=1)
    found = rise(before, read(emoji.metrics))
    assert found["requests_total finished"] == 1
    assert found["codes_drawn_total"] == 3 * emoji.config.image_length
    assert [found[f"stage_seconds_count {stage}"] for stage in ("waiting", "drawing", "painting", "ranking")] == [1] * 4
    assert (read(emoji.metrics)["slots_in_use"], read(emoji.metrics)["requests_waiting"]) == (0, 0)


def test_stopped_and_refused_requests_are_counted_as_such(emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch):
    before = outcomes(emoji.metrics)
    with closing(emoji.stream("a tiny dog", num_candidates=1)) as events:
        next(event for event in events if isinstance(event, Preview))
    with pytest.raises(ValueError, match="seed"):
        emoji.stream("a tiny dog", seed=-1)
    monkeypatch.setattr(emoji, "limits", Limits(per_visitor=1))
    with emoji.limits.admit("ann"), pytest.raises(LimitError):
        next(emoji.stream("a tiny dog", visitor="ann"))
    assert rise(before, outcomes(emoji.metrics)) == {"cancelled": 1, "refused": 2}
