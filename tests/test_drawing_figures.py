"""How well the embedded model draws from something: as docs/drawing.md measures it, but of fewer objects."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from dalle_mini.training.emoji.judge import judge
from dalle_mini.training.emoji.scene import Scene

if TYPE_CHECKING:
    from dalle_mini import Candidate, Pipeline
    from dalle_mini.training.emoji.world import World

pytestmark = pytest.mark.slow
NUMBER = 50
LEFT = np.arange(8)[None] < np.full((8, 1), 4)


def scenes_of(world: "World", seed: int, wanted: Callable[[Scene], bool], *, held: str = "") -> list[Scene]:
    rng, found = np.random.default_rng(seed), list[Scene]()
    while len(found) < NUMBER:
        scene = world.draw(rng, held=held)
        found += [scene] if wanted(scene) else []
    return found


def galleries(
    emoji: "Pipeline", scenes: Sequence[Scene], candidates: int = 4, **settings: Sequence[Any]
) -> "list[list[Candidate]]":
    """Of every caption, best first; of each setting, a value for every scene."""

    def gallery(i: int) -> "list[Candidate]":
        own = {"seed": i} | {name: each[i] for name, each in settings.items()}
        return emoji.generate(scenes[i].caption, num_candidates=candidates, **own)

    with ThreadPoolExecutor(18 // candidates) as pool:
        return list(pool.map(gallery, range(len(scenes))))


def drawn(*asked: Any, **settings: Sequence[Any]) -> "list[Candidate]":
    """The best of `galleries`."""
    return [gallery[0] for gallery in galleries(*asked, **settings)]


def right(world: "World", scene: Scene, candidate: "Candidate") -> bool:
    return judge(world, scene, np.asarray(candidate.image)).objects


def half(world: "World", scene: Scene) -> Image.Image:
    """The object on the left alone."""
    (left,) = (number for number, sprite in enumerate(scene.sprites) if sprite.column == 0)
    return Image.fromarray(world.paint(scene.alone(left)))


def side_by_side(scene: Scene) -> bool:
    return scene.kind == "pair" and {sprite.row for sprite in scene.sprites} == {2}


def is_white(candidate: "Candidate") -> bool:
    pixels = np.asarray(candidate.image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool((np.median(border, axis=0) > 235).all())


def test_the_other_half_of_a_picture_is_what_the_prompt_says(emoji: "Pipeline", world: "World"):
    """Pairs that training never showed; the left half is given, of its own drawings or as the VQGAN encodes it."""
    scenes = scenes_of(world, 1, side_by_side, held="pair")
    own = drawn(emoji, scenes, 9, seed=range(1000, 1000 + NUMBER))
    for start in (own, [half(world, scene) for scene in scenes]):
        done = drawn(emoji, scenes, 9, start=start, keep=[LEFT] * NUMBER)
        assert sum(right(world, *pair) for pair in zip(scenes, done, strict=True)) >= 0.9 * NUMBER


def test_a_negative_prompt_takes_white_away(emoji: "Pipeline", world: "World"):
    scenes = scenes_of(world, 2, lambda scene: not scene.names_background)
    negative = galleries(emoji, scenes, negative_prompt=["white background"] * NUMBER)
    white = [sum(map(is_white, chain(*drawings))) for drawings in (galleries(emoji, scenes), negative)]
    assert white[0] >= 4 * NUMBER / 9 / 2  # one background of nine
    assert white[1] <= white[0] / 4
    assert sum(right(world, scene, gallery[0]) for scene, gallery in zip(scenes, negative, strict=True)) >= 0.9 * NUMBER


def test_variations_differ_the_more_the_stronger_and_stay_recognisable(emoji: "Pipeline", world: "World"):
    scenes, shares = scenes_of(world, 5, lambda scene: True), []
    first = drawn(emoji, scenes, 1)
    again: dict[str, Any] = {"start": first, "seed": range(1000, 1000 + NUMBER)}
    for strength in (0.25, 0.5, 1.0):
        varied = drawn(emoji, scenes, 1, strength=[strength] * NUMBER, **again)
        shares.append(np.mean([one.codes == other.codes for one, other in zip(varied, first, strict=True)]))
        assert sum(right(world, *pair) for pair in zip(scenes, varied, strict=True)) >= 0.9 * NUMBER
        assert shares[-1] >= 1 - strength
    assert shares == sorted(shares, reverse=True)


def test_across_the_seam_neighbours_differ_less_than_inside(emoji: "Pipeline", world: "World"):
    scenes = scenes_of(world, 6, lambda scene: True)
    pictures = np.stack([np.asarray(each.image, float) for each in drawn(emoji, scenes, seamless=["both"] * NUMBER)])
    for axis in (1, 2):
        seams = np.take(pictures, 0, axis) - np.take(pictures, -1, axis)
        assert np.abs(seams).mean() <= np.abs(np.diff(pictures, axis=axis)).mean() / 4
