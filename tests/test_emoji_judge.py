"""The judge of the emoji world: what a caption leaves open may be anything, what it says must be there."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dalle_mini.training.emoji import objects
from dalle_mini.training.emoji.atlas import STYLES, Atlas
from dalle_mini.training.emoji.judge import different_right, judge, percentages_right
from dalle_mini.training.emoji.scene import Sprite
from dalle_mini.training.emoji.spelling import BARE, Spelling
from dalle_mini.training.emoji.world import COLOURS, GRID, HATS, SMALL, Scene, World

if TYPE_CHECKING:
    from dalle_mini import Pipeline

CELL = 16  # the judge compares 8


@pytest.fixture(scope="module")
def noise() -> World:
    """Nine objects with a head and the hats, as discs of coarse noise."""
    some = tuple(each for each in objects.load() if each.head)[:9]
    some += tuple(each for each in objects.load() if each.name in HATS)
    coarse = np.random.default_rng(0).integers(256, size=(len(some), len(STYLES), 8, 8, 4), dtype=np.uint8)
    sprites = coarse.repeat(8, 2).repeat(8, 3)
    y, x = np.mgrid[:64, :64] - 31.5
    sprites[..., 3] = 255 * (np.hypot(x, y) < 32)
    return World(Atlas(sprites, some), GRID * CELL)


@pytest.fixture(scope="module")
def seen(noise: World) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [noise.draw(rng) for _ in range(300)]


def is_right(world: World, scene: Scene, shown: Scene) -> bool:
    verdict = judge(world, scene, world.paint(shown))
    return verdict.objects and verdict.background


def test_the_truth_is_right_in_every_layout_that_the_caption_allows(noise: World, seen: list[Scene]):
    for scene in seen[:120]:
        for sprites in (scene.sprites, *scene.others):
            assert is_right(noise, scene, dataclasses.replace(scene, sprites=sprites)), scene
    scenes = seen[:50]
    right = percentages_right(noise, scenes, np.stack([noise.paint(scene) for scene in scenes]))
    assert set(right) == {"background", *(scene.kind for scene in scenes)}
    assert set(right.values()) == {100}


def test_a_style_or_background_counts_only_where_the_caption_names_it(noise: World, seen: list[Scene]):
    for scene in seen[:100]:
        style = next(each for each in STYLES if each != scene.style)
        assert is_right(noise, scene, dataclasses.replace(scene, style=style)) != scene.names_style, scene
        colour = next(each for each in COLOURS if each != scene.background)
        assert is_right(noise, scene, dataclasses.replace(scene, background=colour)) != scene.names_background, scene


def test_a_near_miss_is_wrong_for_its_caption(noise: World, seen: list[Scene]):
    rng, found = np.random.default_rng(0), Counter[str]()
    for scene in seen:
        if miss := noise.near_miss(rng, scene):
            found[scene.kind] += 1
            if scene.kind == "single" and miss.sprites != scene.sprites:
                continue  # of another size, which the judge does not see
            assert not is_right(noise, scene, miss), (scene, miss)
    assert set(found) == {"single", "pair", "count", "list", "between", "wearing"}
    assert 0.4 < found.total() / len(seen) < 0.6  # half of the time, where there is one


def test_different_right_pictures_are_counted_once_each(noise: World):
    scene = noise.bare("cat")
    shown = [
        scene,
        scene,  # a copy
        dataclasses.replace(scene, style="twemoji"),
        dataclasses.replace(scene, background="red"),
        noise.bare("dog"),  # wrong
    ]
    assert different_right(noise, scene, [noise.paint(each) for each in shown]) == 3


def test_a_bare_name_says_nothing_else(noise: World):
    for name in noise.names:
        scene = noise.bare(name)
        assert scene.caption.split(" ", 1)[-1] in (name, scene.caption)
        assert (scene.names_style, scene.names_background) == (False, False)


# On real pictures


@pytest.fixture(scope="module")
def pairs(world: World) -> list[Scene]:
    rng = np.random.default_rng(0)
    scenes = iter(lambda: world.draw(rng), None)
    return [scene for scene, _ in zip((scene for scene in scenes if scene.kind == "pair"), range(60), strict=False)]


def names_of(scene: Scene) -> list[str]:
    return [sprite.name for sprite in scene.sprites]


def without_object(scene: Scene) -> Scene:
    return dataclasses.replace(scene, sprites=scene.sprites[1:])


def with_another_object(scene: Scene) -> Scene:
    first, *others = scene.sprites
    name = next(name for name in ("apple", "tree", "fish") if name not in names_of(scene))
    return dataclasses.replace(scene, sprites=(dataclasses.replace(first, name=name), *others))


def with_one_more_object(scene: Scene) -> Scene:
    """In a corner, half behind the others."""
    taken = {(sprite.row, sprite.column) for sprite in scene.sprites}
    row, column = next(corner for corner in ((0, 0), (4, 4), (0, 4)) if corner not in taken)
    extra = Sprite(name="tree", size=SMALL, row=row, column=column)
    return dataclasses.replace(scene, sprites=(extra, *scene.sprites))


def moved(scene: Scene) -> Scene:
    """One cell up or down."""
    sprites = tuple(dataclasses.replace(sprite, row=sprite.row + (-1 if sprite.row else 1)) for sprite in scene.sprites)
    return dataclasses.replace(scene, sprites=sprites)


@pytest.mark.parametrize("spoil", [without_object, with_another_object, with_one_more_object, moved])
def test_the_judge_finds_other_objects_wrong(world: World, pairs: list[Scene], spoil: Callable[[Scene], Scene]):
    assert len(pairs) == 60
    fooled = [scene for scene in pairs if judge(world, scene, world.paint(spoil(scene))).objects]
    assert len(fooled) <= 3  # the nearest template to nothing is that of a thin or pale object


def test_the_judge_knows_every_object_in_every_style(world: World):
    for name in world.names:
        for style in world.styles:
            scene = dataclasses.replace(world.bare(name), style=style, look=STYLES[style][0])
            assert judge(world, scene, world.paint(scene)).objects, (name, style)


def test_the_judge_finds_noise_and_empty_pictures_wrong(world: World, pairs: list[Scene]):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for scene in pairs:
        assert not judge(world, scene, noise).objects, scene
    wrong = [not judge(world, scene, np.full((64, 64, 3), 255, np.uint8)).objects for scene in pairs]
    assert np.mean(wrong) > 0.9  # the nearest template to nothing is a pale one


@pytest.mark.slow
def test_an_object_is_spelt_alike_over_every_background_and_painted_right(world: World, emoji: "Pipeline"):
    spelling = Spelling.vote(world, emoji.vqgan)
    scenes = [dataclasses.replace(world.bare("cat"), background=colour) for colour in COLOURS]
    codes = spelling.codes(scenes).reshape(-1, GRID, GRID)
    (sprite,) = scenes[0].sprites
    block = spelling.blocks["cat", world.styles[0], sprite.size]
    for scene, grid in zip(scenes, codes, strict=True):
        expected = np.full_like(grid, spelling.grounds[scene.background])
        area = expected[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size]
        area[block != BARE] = block[block != BARE]
        np.testing.assert_array_equal(grid, expected)
    pictures = emoji.vqgan.decode(codes.reshape(len(codes), -1))
    assert all(judge(world, scene, picture).objects for scene, picture in zip(scenes, pictures, strict=True))
