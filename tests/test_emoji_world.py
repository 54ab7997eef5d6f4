"""The world that the embedded model draws: what training may see, what captions say, and the judge of pictures."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dalle_mini.training.emoji.judge import judge
from dalle_mini.training.emoji.spelling import BARE, Spelling
from dalle_mini.training.emoji.world import (
    BACKGROUNDS,
    CENTRES,
    COLOURS,
    GRID,
    NAMES,
    NUMBERS,
    OBJECTS,
    RELATIONS,
    SIZE_WORDS,
    SMALL,
    Scene,
    Sprite,
    World,
    _plural,
    held_out,
)

if TYPE_CHECKING:
    from dalle_mini import Pipeline

CELL = 8  # pixels, at the resolution of the embedded model


@pytest.fixture(scope="module")
def world() -> World:
    return World(GRID * CELL)


@pytest.fixture(scope="module")
def seen(world: World) -> list[Scene]:
    """Scenes of training."""
    rng = np.random.default_rng(0)
    return [world.draw(rng) for _ in range(1000)]


@pytest.fixture(scope="module")
def unseen(world: World) -> list[Scene]:
    """Scenes of the evaluation."""
    rng = np.random.default_rng(1)
    return [world.draw(rng, held=True) for _ in range(300)]


def names_of(scene: Scene) -> list[str]:
    return [sprite.name for sprite in scene.sprites]


def scene_of(names: tuple[str, ...], corners: tuple[tuple[int, int], ...], background: str = "white") -> Scene:
    placed = zip(names, corners, strict=True)
    sprites = tuple(Sprite(name=name, size=SMALL, row=row, column=column) for name, (row, column) in placed)
    return Scene(kind="pair", sprites=sprites, background=background, caption="", names_background=False)


# What training sees


def test_training_sees_no_held_out_combination(seen: list[Scene]):
    for scene in seen:
        names = names_of(scene)
        assert not any(held_out("background", name, scene.background) for name in names), scene
        assert not (scene.kind == "pair" and held_out("pair", *names)), scene
        assert not (scene.kind == "count" and held_out("count", names[0], str(len(names)))), scene


def test_the_evaluation_asks_only_for_held_out_combinations(unseen: list[Scene]):
    for scene in unseen:
        names = names_of(scene)
        combination = {
            "single": ("background", names[0], scene.background),
            "pair": ("pair", *names),
            "count": ("count", names[0], str(len(names))),
        }[scene.kind]
        assert held_out(*combination), scene
        assert scene.names_background, scene


def test_every_object_background_relation_and_number_is_trained(seen: list[Scene]):
    assert {name for scene in seen for name in names_of(scene)} == set(NAMES)
    assert {scene.background for scene in seen} == set(COLOURS)
    corners = {tuple((sprite.row, sprite.column) for sprite in scene.sprites) for scene in seen}
    assert corners >= set(CENTRES.values())
    assert {sprite.size for scene in seen for sprite in scene.sprites} == set(SIZE_WORDS)


def test_a_pair_is_held_out_in_both_orders():
    for one, other in itertools.combinations(NAMES[:20], 2):
        assert held_out("pair", one, other) == held_out("pair", other, one)


def test_about_a_tenth_of_the_pairs_is_held_out():
    pairs = [held_out("pair", *pair) for pair in itertools.combinations(NAMES, 2)]
    assert 0.08 < np.mean(pairs) < 0.12


def test_same_rng_gives_the_same_scenes_and_pictures(world: World, seen: list[Scene]):
    other, rng = World(world.resolution), np.random.default_rng(0)
    for scene in seen[:20]:
        assert other.draw(rng) == scene
        np.testing.assert_array_equal(other.paint(scene), world.paint(scene))


# What captions say


def test_a_caption_names_its_objects_number_relation_and_background(seen: list[Scene], unseen: list[Scene]):
    for scene in [*seen, *unseen]:
        names = names_of(scene)
        said = [{name, *OBJECTS[name][1:]} for name in names]
        if scene.kind == "count":
            said = [{_plural(word) for word in said[0]}]
            assert any(f"{number} " in scene.caption for number in NUMBERS[len(names)]), scene
        for words in said:
            assert any(word in scene.caption for word in words), scene
        if scene.kind == "pair":
            corners = tuple((sprite.row, sprite.column) for sprite in scene.sprites)
            (relation,) = (r for r in RELATIONS if CENTRES[r] == corners)
            assert any(f" {phrase} " in scene.caption for phrase in RELATIONS[relation]), scene
        if scene.kind == "single" and (words := set(SIZE_WORDS[scene.sprites[0].size]) - {""}):
            assert words & set(scene.caption.split()), scene
        assert scene.names_background == (f" {scene.background}" in scene.caption), scene


def test_a_word_means_one_object():
    words = [word for name, (_, *others) in OBJECTS.items() for word in (name, *others)]
    words += [_plural(word) for word in words if _plural(word) != word]
    assert len(words) == len(set(words))


def test_the_world_is_as_large_as_promised():
    assert len(NAMES) >= 60
    assert 6 <= len(COLOURS) <= 8


# Pictures


def test_every_object_has_a_picture_of_its_own(world: World):
    """A font without a glyph would draw the same box for each."""
    pictures = {world.sprites[name, SMALL].tobytes() for name in NAMES}
    assert len(pictures) == len(NAMES)
    for name in NAMES:
        assert world.sprites[name, SMALL][..., 3].mean() > 0.15, name  # cactus and carrot are thin


def test_sprites_lie_on_the_code_grid(world: World, seen: list[Scene]):
    for scene in seen[:300]:
        inside = np.zeros((GRID, GRID), bool)
        for sprite in scene.sprites:
            assert 0 <= sprite.row <= GRID - sprite.size
            assert 0 <= sprite.column <= GRID - sprite.size
            inside[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size] = True
        picture = world.paint(scene)
        assert picture.shape == (GRID * CELL, GRID * CELL, 3)
        assert picture.dtype == np.uint8
        outside = ~inside.repeat(CELL, 0).repeat(CELL, 1)
        assert (picture[outside] == BACKGROUNDS[scene.background]).all(), scene


def test_an_object_has_the_same_pixels_in_every_place(world: World):
    one = world.paint(scene_of(("robot",), ((0, 0),), "pink"))[: 4 * CELL, : 4 * CELL]
    other = world.paint(scene_of(("robot",), ((4, 3),), "pink"))[4 * CELL :, 3 * CELL : 7 * CELL]
    np.testing.assert_array_equal(one, other)


def test_a_picture_fills_the_resolution(seen: list[Scene]):
    assert World(128).paint(seen[0]).shape == (128, 128, 3)


def test_a_missing_font_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"font must be Noto Color Emoji .* got .*/none\.ttf"):
        World(64, tmp_path / "none.ttf")


# The judge


def test_the_judge_finds_the_truth_right(world: World, seen: list[Scene], unseen: list[Scene]):
    for scene in [*seen[:100], *unseen[:100]]:
        verdict = judge(world, scene, world.paint(scene))
        assert verdict.objects, scene
        assert verdict.background, scene


def test_the_judge_knows_every_object(world: World):
    for name in NAMES:
        scene = scene_of((name,), ((2, 2),), "yellow")
        assert judge(world, scene, world.paint(scene)).objects, name


def without_object(scene: Scene) -> Scene:
    return dataclasses.replace(scene, sprites=scene.sprites[1:])


def with_another_object(scene: Scene) -> Scene:
    first, *others = scene.sprites
    name = next(name for name in ("apple", "tree") if name not in names_of(scene))
    return dataclasses.replace(scene, sprites=(dataclasses.replace(first, name=name), *others))


def with_one_more_object(scene: Scene) -> Scene:
    """In a corner, half behind the others."""
    taken = {(sprite.row, sprite.column) for sprite in scene.sprites}
    row, column = next(corner for corner in ((0, 0), (4, 4), (0, 4)) if corner not in taken)
    extra = Sprite(name="tree", size=SMALL, row=row, column=column)
    return dataclasses.replace(scene, sprites=(extra, *scene.sprites))


def turned_around(scene: Scene) -> Scene:
    names = names_of(scene)[::-1]
    sprites = tuple(dataclasses.replace(sprite, name=name) for sprite, name in zip(scene.sprites, names, strict=True))
    return dataclasses.replace(scene, sprites=sprites)


def moved(scene: Scene) -> Scene:
    """One cell up or down."""
    sprites = tuple(dataclasses.replace(sprite, row=sprite.row + (-1 if sprite.row else 1)) for sprite in scene.sprites)
    return dataclasses.replace(scene, sprites=sprites)


@pytest.mark.parametrize("spoil", [without_object, with_another_object, with_one_more_object, turned_around, moved])
def test_the_judge_finds_other_objects_wrong(
    world: World, seen: list[Scene], unseen: list[Scene], spoil: Callable[[Scene], Scene]
):
    pairs = [scene for scene in [*seen, *unseen] if scene.kind == "pair"][:60]
    fooled = [scene for scene in pairs if judge(world, scene, world.paint(spoil(scene))).objects]
    assert not fooled


def test_the_judge_finds_another_number_wrong(world: World):
    two, three = (scene_of(("star",) * number, CENTRES[number], "blue") for number in (2, 3))
    assert not judge(world, two, world.paint(three)).objects
    assert not judge(world, three, world.paint(two)).objects


def test_the_judge_tells_a_wrong_background_from_wrong_objects(world: World, seen: list[Scene]):
    for scene in seen[:60]:
        for colour in COLOURS:
            verdict = judge(world, scene, world.paint(dataclasses.replace(scene, background=colour)))
            assert verdict.objects, (scene, colour)
            assert verdict.background == (colour == scene.background or not scene.names_background), (scene, colour)


def test_the_judge_finds_noise_and_empty_pictures_wrong(world: World, seen: list[Scene]):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    empty = np.full((64, 64, 3), 255, np.uint8)
    for scene in seen[:60]:
        assert not judge(world, scene, noise).objects, scene
    wrong = [not judge(world, scene, empty).objects for scene in seen[:200]]
    assert np.mean(wrong) > 0.9  # the nearest template to nothing is a pale one


# What the text-to-code model is trained on


def test_no_caption_without_a_background_is_of_an_object_that_is_held_out_on_white(world: World):
    rng = np.random.default_rng(0)
    scenes = [world.example(rng) for _ in range(3000)]
    shown: dict[bool, set[str]] = {True: set(), False: set()}
    for scene in scenes:
        shown[scene.names_background] |= {sprite.name for sprite in scene.sprites}
    avoided = {name for name in NAMES if held_out("background", name, "white")}
    assert avoided
    assert shown == {True: set(NAMES), False: set(NAMES) - avoided}


@pytest.mark.slow
def test_an_object_is_spelt_alike_over_every_background_and_painted_right(world: World, emoji: "Pipeline"):
    spelling = Spelling.vote(world, emoji.vqgan)
    scenes = [
        scene for scene in world.alone("cat", "", SMALL) if scene.sprites == world.alone("cat", "", SMALL)[0].sprites
    ]
    codes = spelling.codes(scenes).reshape(-1, GRID, GRID)
    assert len(scenes) > 3
    sprite = scenes[0].sprites[0]
    block = spelling.blocks["cat", "", SMALL]
    for scene, grid in zip(scenes, codes, strict=True):
        expected = np.full_like(grid, spelling.grounds[scene.background])
        area = expected[sprite.row : sprite.row + SMALL, sprite.column : sprite.column + SMALL]
        area[block != BARE] = block[block != BARE]
        np.testing.assert_array_equal(grid, expected)
    pictures = emoji.vqgan.decode(codes.reshape(len(codes), -1))
    assert all(judge(world, scene, picture).objects for scene, picture in zip(scenes, pictures, strict=True))
