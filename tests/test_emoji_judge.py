"""The judge on the larger emoji world: what a caption leaves open may be anything, what it says must be there."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from dalle_mini.training.emoji import objects
from dalle_mini.training.emoji.atlas import STYLES, Atlas
from dalle_mini.training.emoji.judge import different_right, judge, percentages_right
from dalle_mini.training.emoji.scenes import COLOURS, GRID, HATS, Scene, Scenes

CELL = 16  # the judge compares 8


@pytest.fixture(scope="module")
def world() -> Scenes:
    """Nine objects with a head and the hats, as discs of coarse noise."""
    some = tuple(each for each in objects.load() if each.head)[:9]
    some += tuple(each for each in objects.load() if each.name in HATS)
    noise = np.random.default_rng(0).integers(256, size=(len(some), len(STYLES), 8, 8, 4), dtype=np.uint8)
    sprites = noise.repeat(8, 2).repeat(8, 3)
    y, x = np.mgrid[:64, :64] - 31.5
    sprites[..., 3] = 255 * (np.hypot(x, y) < 32)
    return Scenes(Atlas(sprites, some), GRID * CELL)


@pytest.fixture(scope="module")
def seen(world: Scenes) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [world.draw(rng) for _ in range(300)]


def is_right(world: Scenes, scene: Scene, shown: Scene) -> bool:
    verdict = judge(world, scene, world.paint(shown))
    return verdict.objects and verdict.background


def test_the_truth_is_right_in_every_layout_that_the_caption_allows(world: Scenes, seen: list[Scene]):
    for scene in seen[:120]:
        for sprites in (scene.sprites, *scene.others):
            assert is_right(world, scene, dataclasses.replace(scene, sprites=sprites)), scene
    scenes = seen[:50]
    right = percentages_right(world, scenes, np.stack([world.paint(scene) for scene in scenes]))
    assert set(right) == {"background", *(scene.kind for scene in scenes)}
    assert set(right.values()) == {100}


def test_a_style_or_background_counts_only_where_the_caption_names_it(world: Scenes, seen: list[Scene]):
    for scene in seen[:100]:
        style = next(each for each in STYLES if each != scene.style)
        assert is_right(world, scene, dataclasses.replace(scene, style=style)) != scene.names_style, scene
        colour = next(each for each in COLOURS if each != scene.background)
        assert is_right(world, scene, dataclasses.replace(scene, background=colour)) != scene.names_background, scene


def test_a_near_miss_is_wrong_for_its_caption(world: Scenes, seen: list[Scene]):
    rng, found = np.random.default_rng(0), Counter[str]()
    for scene in seen:
        if miss := world.near_miss(rng, scene):
            found[scene.kind] += 1
            if scene.kind == "single" and miss.sprites != scene.sprites:
                continue  # of another size, which the judge does not see
            assert not is_right(world, scene, miss), (scene, miss)
    assert set(found) == {"single", "pair", "count", "list", "between", "wearing"}
    assert 0.3 < found.total() / len(seen) < 0.5


def test_different_right_pictures_are_counted_once_each(world: Scenes):
    scene = world.bare("cat")
    shown = [
        scene,
        scene,  # a copy
        dataclasses.replace(scene, style="twemoji"),
        dataclasses.replace(scene, background="red"),
        world.bare("dog"),  # wrong
    ]
    assert different_right(world, scene, [world.paint(each) for each in shown]) == 3


def test_a_bare_name_says_nothing_else(world: Scenes):
    for name in world.names:
        scene = world.bare(name)
        assert scene.caption.split(" ", 1)[-1] in (name, scene.caption)
        assert (scene.names_style, scene.names_background) == (False, False)
