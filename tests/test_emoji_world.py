"""The emoji world: its table of objects, the atlas of their pictures, its captioned scenes."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.training.emoji import atlas, objects
from dalle_mini.training.emoji.atlas import SIDE, STYLES, Atlas
from dalle_mini.training.emoji.objects import Object, article, plural
from dalle_mini.training.emoji.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    HATS,
    KINDS,
    PLACES,
    SIZE_WORDS,
    Scene,
    Sprite,
    World,
    held_out,
)  # fmt: skip

CELL = 4


@pytest.fixture(scope="module")
def drawn() -> World:
    """Thirty objects and the hats, as rings of random colours."""
    known = objects.load()
    some = (*known[:30], *(each for each in known if each.name in HATS))
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    sprites = np.zeros((len(some), len(STYLES), SIDE, SIDE, 4), np.uint8)
    sprites[..., :3] = np.random.default_rng(0).integers(256, size=(len(some), len(STYLES), 1, 1, 3))
    sprites[..., 3] = 255 * (np.hypot(x, y) < SIDE / 2)
    return World(Atlas(sprites, some), GRID * CELL)


@pytest.fixture(scope="module")
def seen(drawn: World) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [drawn.draw(rng) for _ in range(3000)]


def names_of(scene: Scene) -> list[str]:
    return [sprite.name for sprite in scene.sprites]


# The table of objects


def test_a_word_means_one_object():
    things = objects.things(objects.load())
    often = Counter(word for name, others in things.items() for word in {name, *others})
    assert [word for word, times in often.items() if times > 1] == []


def test_the_world_is_as_large_as_promised():
    known = objects.load()
    assert len(known) >= 450
    assert min(Counter(each.group for each in known).values()) >= 10
    assert len({each.icon for each in known}) == len(known)


def test_smaller_worlds_are_inside_larger_ones():
    assert objects.load(66) == objects.load()[:66]


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("fox", "foxes"), ("church", "churches"), ("kitty", "kitties"), ("donkey", "donkeys"),
        ("slice of pizza", "slices of pizza"), ("ice cream", "ice creams"), ("mouse", "mice"),
        ("police car", "police cars"),
    ],
)  # fmt: skip
def test_plurals_are_english(one: str, many: str):
    assert plural(one) == many


def test_articles_are_english():
    words = ["owl", "unicorn", "cat", "ufo", "hourglass", "umbrella", "house"]
    assert [article(word).split()[0] for word in words] == ["an", "a", "a", "a", "an", "an", "a"]
    known = {each.name: each for each in objects.load()}
    assert known["scissors"].with_article("scissors") == "scissors"
    assert known["gloves"].with_article("glove") == "a glove"
    assert known["gloves"].plural("glove") == "gloves"
    assert known["sheep"].plural("sheep") == "sheep"


# The atlas


def pack(folder: Path, style: str, icons: dict[str, str], **more: object) -> None:
    content = json.dumps({"icons": {name: {"body": body} for name, body in icons.items()}, **more}).encode()
    with tarfile.open(folder / f"iconify-json-{style}-1.0.0.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    some = tuple(
        Object(name=name, also=(), irregular="", group="things", icon=name, head=False) for name in ("box", "bar")
    )
    monkeypatch.setattr(objects, "load", lambda first=None: some[:first])


BOX, BAR = '<path fill="#f00" d="M10 10h4v4h-4z"/>', '<path fill="#00f" d="M2 2h8v2h-8z"/>'


@pytest.mark.usefixtures("table")
def test_an_atlas_has_every_object_in_every_style_as_large_as_fits(tmp_path: Path):
    for style in STYLES:
        pack(tmp_path, style, {"box": BOX, "beam": BAR}, aliases={"bar": {"parent": "beam"}}, width=20, height=20)
    atlas.build(tmp_path, tmp_path / "run" / "atlas.npz")
    made = Atlas.load(tmp_path / "run" / "atlas.npz")
    assert made.sprites.shape == (2, len(STYLES), SIDE, SIDE, 4)
    assert (made.sprites[0] == (255, 0, 0, 255)).mean() > 0.95
    high = SIDE // 8  # a bar four times as wide as high, in the middle
    assert (made.sprites[1, :, SIDE // 2 - high + 2 : SIDE // 2 + high - 2] == (0, 0, 255, 255)).mean() > 0.95
    assert not made.sprites[1, :, : SIDE // 2 - high - 2, :, 3].any()
    assert [each.name for each in Atlas.load(tmp_path / "run" / "atlas.npz", 1).objects] == ["box"]


@pytest.mark.usefixtures("table")
def test_missing_packages_and_pictures_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must hold one iconify-json-noto-VERSION\.tgz, got 0"):
        atlas.build(tmp_path, tmp_path / "atlas.npz")
    for style in STYLES:
        pack(tmp_path, style, {"box": BOX} if style == "twemoji" else {"box": BOX, "bar": BAR})
    with pytest.raises(ValueError, match=r"every icon of objects\.csv, got none of twemoji bar$"):
        atlas.build(tmp_path, tmp_path / "atlas.npz")


def test_an_atlas_of_another_table_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="atlas must be a file"):
        Atlas.load(tmp_path / "none.npz")
    one = np.zeros((1, len(STYLES), 1, 1, 4), np.uint8)
    other = Object(name="zeppelin", also=(), irregular="", group="things", icon="zeppelin", head=False)
    Atlas(one, (other,)).save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"atlas must hold objects of objects\.csv, in that order, got 1 in "):
        Atlas.load(tmp_path / "a.npz")
    Atlas(one, objects.load(1)).save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"^first must be <= 1, the objects in .*a\.npz, got 2$"):
        Atlas.load(tmp_path / "a.npz", 2)
    with pytest.raises(ValueError, match=r"^styles must be some of noto, .*, got pencil$"):
        Atlas.load(tmp_path / "a.npz", 1, ("noto", "pencil"))


# Scenes


def test_training_shows_every_kind_object_style_and_background(drawn: World, seen: list[Scene]):
    assert {scene.kind for scene in seen} == set(KINDS)
    assert {name for scene in seen for name in names_of(scene)} == set(drawn.names)
    assert {scene.style for scene in seen} == set(STYLES)
    assert {scene.background for scene in seen} == set(COLOURS)


def first_word(scene: Scene) -> bool:
    return scene.look == STYLES[scene.style][0]


def test_training_never_shows_what_is_held_out(seen: list[Scene]):
    for scene in seen:
        names = names_of(scene)
        assert not any(held_out("background", name, scene.background) for name in names), scene
        assert not (first_word(scene) and any(held_out("style", name) for name in names)), scene
        if scene.kind == "count":
            assert not held_out("count", names[0], str(len(names))), scene
        else:
            assert not any(held_out("pair", *sorted((a, b))) for a in names for b in names if a < b), scene


def test_a_full_scene_shows_large_objects_or_many_and_nothing_held_out(drawn: World):
    rng, objects_of = np.random.default_rng(0), Counter[tuple[int, int]]()
    for _ in range(300):
        scene = drawn.full(rng)
        names = names_of(scene)
        assert not any(held_out("background", name, scene.background) for name in names), scene
        assert not any(held_out("pair", a, b) for a in names for b in names if a < b), scene
        objects_of[scene.sprites[0].size, len(set(names))] += 1
    assert set(objects_of) == {(4, 4), (6, 1), (8, 1)}
    assert min(objects_of.values()) > 80


@pytest.mark.parametrize("kind", ["pair", "background", "count", "style"])
def test_a_held_out_scene_has_only_what_is_held_out_of_its_kind(drawn: World, kind: str):
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = drawn.draw(rng, held=kind)
        names = names_of(scene)
        held = {
            "background": any(held_out("background", name, scene.background) for name in names),
            "style": first_word(scene) and any(held_out("style", name) for name in names),
            "count": scene.kind == "count" and held_out("count", names[0], str(len(names))),
            "pair": scene.kind != "count" and any(held_out("pair", a, b) for a in names for b in names if a < b),
        }
        assert [name for name, is_held in held.items() if is_held] == [kind], scene


def test_of_few_objects_no_held_out_style_is_looked_for():
    few = objects.load(5)
    assert not any(held_out("style", each.name) for each in few)
    world = World(Atlas(np.zeros((5, len(STYLES), 1, 1, 4), np.uint8), few), GRID)
    rng = np.random.default_rng(0)
    assert {scene.names_style for scene in (world.draw_held(rng) for _ in range(50))} == {True, False}


def test_a_caption_says_what_it_says_it_names(drawn: World, seen: list[Scene]):
    for scene in seen:
        caption = f" {scene.caption} "
        assert [scene.look] * scene.names_style == [look for look in STYLES[scene.style] if f" {look} " in caption], (
            scene
        )
        ends = (f" on {scene.background} ", f" {scene.background} background ")
        assert scene.names_background == caption.endswith(ends), scene
        for name in names_of(scene):
            known = drawn.objects[name]
            said = [*known.names, *(known.plural(each) for each in known.names)]
            assert any(f" {word}" in caption for word in said), scene
        if scene.kind == "single" and scene.sprites[0].size in SIZE_WORDS:
            sizes = set(SIZE_WORDS[scene.sprites[0].size]) - {""}
            assert not sizes or sizes & set(scene.caption.split()), scene


def test_what_a_caption_does_not_name_is_drawn_in_equal_shares(seen: list[Scene]):
    styles = Counter(scene.style for scene in seen if not scene.names_style)
    colours = Counter(scene.background for scene in seen if not scene.names_background)
    assert min(styles.values()) > 0.8 * max(styles.values())
    assert min(colours.values()) > 0.5 * max(colours.values())  # some are held out for many of so few objects


def test_every_layout_of_a_caption_shows_its_objects(seen: list[Scene]):
    assert {scene.kind for scene in seen if scene.others} == {"pair", "list", "between", "count"}
    for scene in seen:
        for other in scene.others:
            assert other != scene.sprites
            assert [sprite.name for sprite in other] == names_of(scene)


def test_between_is_between_and_a_hat_is_on_the_head(seen: list[Scene]):
    for scene in seen:
        if scene.kind == "between":
            middle, left, right = scene.sprites
            assert left.column < middle.column < right.column, scene
        if scene.kind == "wearing":
            wearer, hat = scene.sprites
            assert hat.name in HATS
            assert hat.row + hat.size == wearer.row, scene
            assert 2 * hat.column + hat.size == 2 * wearer.column + wearer.size, scene


def test_sprites_lie_on_the_code_grid_and_never_overlap(drawn: World, seen: list[Scene]):
    for scene in seen[:400]:
        covered = np.zeros((GRID, GRID), int)
        for sprite in scene.sprites:
            assert (sprite.row, sprite.column) in PLACES[sprite.size], scene
            covered[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size] += 1
        assert covered.max() == 1, scene
        picture = drawn.paint(scene)
        assert picture.shape == (GRID * CELL, GRID * CELL, 3)
        empty = (covered == 0).repeat(CELL, 0).repeat(CELL, 1)
        assert (picture[empty] == BACKGROUNDS[scene.background]).all(), scene


def test_an_object_has_the_same_pixels_in_every_place_and_others_in_every_style(drawn: World):
    pictures: dict[str, set[bytes]] = {}
    for style in STYLES:
        for scene in drawn.alone("robot", style, 4):
            (sprite,) = scene.sprites
            top, left = CELL * sprite.row, CELL * sprite.column
            cut = drawn.paint(scene)[top : top + 4 * CELL, left : left + 4 * CELL]
            pictures.setdefault(f"{style} {scene.background}", set()).add(cut.tobytes())
    assert all(len(each) == 1 for each in pictures.values())
    assert len(set.union(*pictures.values())) == len(pictures)


def test_a_hat_rests_on_the_lower_edge_of_its_square(drawn: World):
    assert drawn.sprite("crown", "noto", 2)[-1, :, 3].any()


def test_a_scene_is_a_function_of_its_generator(drawn: World):
    one, other = (drawn.draw(np.random.default_rng(5), ("cat", "dog", "car", "hat")) for _ in range(2))
    assert one == other
    assert isinstance(one.sprites[0], Sprite)
    assert set(names_of(one)) <= {"cat", "dog", "car", *HATS}
