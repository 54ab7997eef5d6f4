"""Previews show what is drawn as soon as it is painted, and never keep anybody waiting."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from patience import eventually

from dalle_mini.serving.batcher import Batcher
from dalle_mini.serving.previews import UNDRAWN, Previews

SIDE, LENGTH = 8, 4  # pixels of a picture, codes of a picture


class Painter:
    """A picture has the colour of its first code. It waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.painted = threading.Event(), 0
        self.batcher: Batcher[np.ndarray, np.ndarray] = Batcher(self.paint, most=16)

    def paint(self, grids: list[np.ndarray]) -> list[np.ndarray]:
        assert self.go.wait(30)
        self.painted += len(grids)
        return [np.full((SIDE, SIDE, 3), grid[0], np.uint8) for grid in grids]


@pytest.fixture
def painter() -> Iterator[Painter]:
    painter = Painter()
    yield painter
    painter.go.set()
    painter.batcher.close()


def codes(*numbers: int) -> list[np.ndarray]:
    """So many codes of each candidate, all of them 7."""
    return [np.full(number, 7, np.int32) for number in numbers]


def columns(previews: Previews) -> list[list[int]]:
    """The first pixel of every second row of each picture."""
    return [np.asarray(image)[::2, 0, 0].tolist() for image in previews.images]


def test_what_is_drawn_is_painted_and_the_rest_is_grey(painter: Painter):
    painter.go.set()
    previews = Previews(painter.batcher, candidates=3, image_length=LENGTH, resolution=SIDE)
    assert columns(previews) == [[UNDRAWN] * 4] * 3
    assert eventually(lambda: previews.update(codes(1, 2, 0)) and columns(previews)[0][0] == 7)
    assert columns(previews) == [[7, UNDRAWN, UNDRAWN, UNDRAWN], [7, 7, UNDRAWN, UNDRAWN], [UNDRAWN] * 4]
    assert painter.painted == 2


def test_the_list_is_another_one_only_when_a_picture_has_changed(painter: Painter):
    painter.go.set()
    previews = Previews(painter.batcher, candidates=1, image_length=LENGTH, resolution=SIDE)
    blank = previews.images
    assert eventually(lambda: previews.update(codes(2)) is not blank)
    shown = previews.images
    assert previews.update(codes(2)) is shown
    assert painter.painted == 1


def test_nobody_waits_for_a_slow_painter_and_what_it_paints_is_shown_later(painter: Painter):
    previews = Previews(painter.batcher, candidates=1, image_length=LENGTH, resolution=SIDE)
    for number in (1, 2, 3):
        previews.update(codes(number))
    assert columns(previews) == [[UNDRAWN] * 4]
    painter.go.set()
    assert eventually(lambda: previews.update(codes(3)) and columns(previews) == [[7, 7, 7, UNDRAWN]])
    assert painter.painted == 2, "the first of them, and the last"


def test_closed_previews_leave_unpainted_what_has_not_begun(painter: Painter):
    first, second = (Previews(painter.batcher, candidates=1, image_length=LENGTH, resolution=SIDE) for _ in range(2))
    first.update(codes(1))
    assert eventually(lambda: not painter.batcher._jobs.qsize()), "the painter is at work"
    second.update(codes(1))
    second.close()
    painter.go.set()
    assert painter.batcher.submit([np.zeros(LENGTH, np.int32)])[0].result(30).shape == (SIDE, SIDE, 3)
    assert painter.painted == 2
