"""A tiny CLIP, really trained on coloured squares, and everything that reads or writes it."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import orbax.checkpoint as ocp
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clip_rerank import Reranker, RerankerError
from dalle_mini.training.clip import train as clip_training
from dalle_mini.training.clip.config import ClipTrainConfig
from dalle_mini.training.clip.loss import contrastive_loss
from dalle_mini.training.clip.train import _images
from dalle_mini.training.clip.train import train as train_clip
from dalle_mini.training.loop import LoopConfig

COLOURS = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
PLACES = {"left": slice(0, 8), "right": slice(8, 16)}
CAPTIONS = [f"a {colour} square on the {place}" for colour in COLOURS for place in PLACES]
TINY = ClipTrainConfig(
    steps=150,
    learning_rate=3e-3,
    warmup_steps=5,
    image_size=16,
    patch_size=4,
    context_length=16,
    width=32,
    heads=2,
    vision_layers=1,
    text_layers=1,
    embed_dim=16,
)


def draw(caption: str) -> np.ndarray:
    """uint8 [16, 16, 3]: a square of the colour, on a half of a grey picture."""
    picture = np.full((16, 16, 3), 90, np.uint8)
    _, colour, *_, place = caption.split()
    picture[4:12, PLACES[place]] = COLOURS[colour]
    return picture


def batches(step: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(step)
    captions = [CAPTIONS[i] for i in rng.integers(0, len(CAPTIONS), 16)]
    pixels = np.stack([draw(caption) for caption in captions])
    noise = rng.integers(-15, 16, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), captions


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Networks this small only wait for a second thread, for long where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer_folder(golden: Callable[[str], Path]) -> Path:
    return golden("tokenizer")


@pytest.fixture(scope="module")
def run(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished training."""
    out = tmp_path_factory.mktemp("run")
    with reporting():
        train_clip(TINY, batches, tokenizer_folder=tokenizer_folder, out=out)
    return out


@contextmanager
def reporting(**values: Any) -> Iterator[None]:
    """How often a run reports and saves, which is fixed for real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_training, "LoopConfig", partial(LoopConfig, log_every=10, **values))
        yield


@pytest.fixture(scope="module")
def reranker(run: Path) -> Reranker:
    return Reranker.load(str(run / "model"))


@pytest.fixture
def pictures() -> np.ndarray:
    return np.stack([draw(caption) for caption in CAPTIONS])


def test_trained_clip_ranks_the_right_picture_first(reranker: Reranker, pictures: np.ndarray) -> None:
    best = [int(reranker.score(caption, pictures).argmax()) for caption in CAPTIONS]
    assert best == list(range(len(CAPTIONS)))


def test_scores_are_cosine_similarities_of_the_trained_weights(run: Path, pictures: np.ndarray) -> None:
    """The checkpoint's float32 weights and the float16 export agree: nothing is lost between out and back."""
    reranker = Reranker.load(str(run / "model"))
    scores = reranker.score(CAPTIONS[0], pictures)
    assert scores.dtype == np.float32
    model = open_clip.create_model(f"local-dir:{run / 'model'}", load_weights=False)
    with ocp.CheckpointManager(run / "checkpoints") as checkpoints:
        saved = checkpoints.restore(TINY.steps, args=ocp.args.StandardRestore())["model"]
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in saved.items()})
    tokens = open_clip.get_tokenizer(f"local-dir:{run / 'model'}")([CAPTIONS[0]])
    with torch.no_grad():
        image = model.encode_image(_images(pictures, len(CAPTIONS), TINY))
        text = model.encode_text(tokens)
        expected = torch.nn.functional.cosine_similarity(image, text).numpy()
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    assert {t.dtype for t in load_file(run / "model" / "open_clip_model.safetensors").values()} == {torch.float16}


def test_training_prepares_pixels_as_the_loaded_model_does(run: Path, pictures: np.ndarray) -> None:
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{run / 'model'}")
    expected = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])
    assert torch.equal(_images(pictures, len(CAPTIONS), TINY), expected)


def test_score_does_not_depend_on_the_other_pictures(reranker: Reranker, pictures: np.ndarray) -> None:
    many = np.concatenate([pictures, pictures[::-1], pictures[:3]])  # three calls of the tower, one of them partial
    together = reranker.score("a red square", many)
    alone = [reranker.score("a red square", many[i : i + 1])[0] for i in range(len(many))]
    np.testing.assert_array_equal(together, alone)
    assert reranker.score("a red square", many[:0]).shape == (0,)


def test_features_are_what_is_scored_before_it_has_length_one(reranker: Reranker, pictures: np.ndarray) -> None:
    many = np.concatenate([pictures, pictures[:3]])  # two calls of the tower, one of them partial
    features = reranker.features(many)
    np.testing.assert_array_equal(features[-3:], reranker.features(pictures[:3]))
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.01).any()
    similar = features / lengths @ (features / lengths).T
    assert similar[0, len(pictures)] == pytest.approx(1, abs=1e-5)
    scores = reranker.score(CAPTIONS[0], many)
    text = reranker._embed_text(CAPTIONS[0]).detach().numpy()
    np.testing.assert_allclose(features / lengths @ text, scores, atol=1e-5)


def test_pictures_of_any_size_are_scored(reranker: Reranker, pictures: np.ndarray) -> None:
    larger = pictures.repeat(4, axis=1).repeat(4, axis=2)
    assert reranker.score(CAPTIONS[3], larger).argmax() == 3


def test_case_and_punctuation_do_not_change_the_score(reranker: Reranker, pictures: np.ndarray) -> None:
    plain = reranker.score("a red square on the left", pictures)
    np.testing.assert_array_equal(plain, reranker.score("A red SQUARE, on the left!", pictures))
    assert not np.array_equal(plain, reranker.score("a red square on the right", pictures))


@pytest.mark.parametrize("prompt", ["", "🥑", "\ud83e", "\x00\u202e", "</s><pad>", "word " * 2000])
def test_no_prompt_raises(reranker: Reranker, pictures: np.ndarray, prompt: str) -> None:
    assert np.isfinite(reranker.score(prompt, pictures)).all()


@pytest.mark.parametrize("bad", [np.zeros((1, 16, 16, 3)), np.zeros((16, 16, 3), np.uint8)])
def test_wrong_pixels_are_named(reranker: Reranker, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[B, H, W, 3\], got"):
        reranker.score("a square", bad)


def test_a_local_folder_is_read_without_a_socket(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "__init__", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    Reranker.load(str(run / "model")).score("a square", np.zeros((1, 16, 16, 3), np.uint8))


def test_stopped_and_resumed_training_equals_uninterrupted(run: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    def stop_after_8(step: int) -> tuple[np.ndarray, list[str]]:
        if step == 8:
            raise KeyboardInterrupt
        return batches(step)

    with reporting(save_seconds=-1), pytest.raises(KeyboardInterrupt):
        train_clip(TINY, stop_after_8, tokenizer_folder=tokenizer_folder, out=tmp_path)
    with pytest.raises(RerankerError, match=r"lacks open_clip_model\.safetensors"):
        Reranker.load(str(tmp_path / "model"))
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')  # as one that is killed leaves it
    with reporting():
        train_clip(TINY, batches, tokenizer_folder=tokenizer_folder, out=tmp_path)

    whole, resumed = (load_file(out / "model" / "open_clip_model.safetensors") for out in (run, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    whole_log, resumed_log = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
        for out in (run, tmp_path)
    )
    assert [line["step"] for line in resumed_log] == list(range(10, 151, 10))
    assert [line["loss"] for line in resumed_log] == [line["loss"] for line in whole_log]


def test_equal_captions_are_not_negatives_of_each_other() -> None:
    """Two pictures of one caption next to a third: each pair competes with the third alone."""
    image = torch.eye(3)[[0, 0, 1]]
    text = torch.eye(3)[[0, 0, 1]]
    scale = torch.tensor(2.0).log()
    loss, accuracy = contrastive_loss(
        image, text, tokens=torch.tensor([[0, 7, 2], [0, 7, 2], [0, 8, 2]]), logit_scale=scale
    )
    e = np.exp
    rows = [-np.log(e(2) / (e(2) + 1))] * 2 + [-np.log(e(2) / (e(2) + 2))]
    assert loss.item() == pytest.approx(np.mean(rows))
    assert accuracy.item() == 1.0


def test_picture_without_a_caption_competes_for_every_caption_and_asks_for_none() -> None:
    """Two pairs and a spoiled picture that is as near to the first caption as its own: e^2 and e^0 are the terms."""
    image, text = torch.eye(2)[[0, 1, 0]], torch.eye(2)
    scale = torch.tensor(2.0).log()
    loss, _ = contrastive_loss(image, text, tokens=torch.tensor([[7], [8]]), logit_scale=scale)
    e = np.exp
    of_pictures = -np.log(e(2) / (e(2) + 1))
    of_captions = [-np.log(e(2) / (2 * e(2) + 1)), -np.log(e(2) / (e(2) + 2))]
    assert loss.item() == pytest.approx((of_pictures + np.mean(of_captions)) / 2)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RerankerError, match="nowhere"):
        Reranker.load(str(tmp_path / "nowhere"))
    with pytest.raises(RerankerError, match=f"{tmp_path} lacks open_clip_config.json"):
        Reranker.load(str(tmp_path))
    with pytest.raises(RerankerError, match="ViT-B-32/no_such_tag"):
        Reranker.load("ViT-B-32/no_such_tag")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def reshape(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    config["model_cfg"]["embed_dim"] = 99
    path.write_text(json.dumps(config), "utf-8")


def use_the_tokenizer_of_open_clip(path: Path) -> None:
    """Its 49,408 tokens are more than the model knows."""
    config = json.loads(path.read_text("utf-8"))
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    path.write_text(json.dumps(config), "utf-8")


def spoil_the_mean(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    config["preprocess_cfg"]["mean"] = [0.5, None, 0.5]
    path.write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(
    ("file_name", "damage"),
    [
        ("open_clip_model.safetensors", truncate),
        ("open_clip_config.json", use_the_tokenizer_of_open_clip),
        ("open_clip_config.json", spoil_the_mean),
        ("open_clip_config.json", lambda path: path.write_text("[]", "utf-8")),
        ("open_clip_config.json", lambda path: path.write_text("not json", "utf-8")),
        ("open_clip_config.json", reshape),
        ("tokenizer.json", truncate),
        ("tokenizer.json", Path.unlink),
    ],
)
def test_damaged_folder_gives_one_sentence_with_its_path(
    run: Path, tmp_path: Path, file_name: str, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(run / "model", tmp_path / "broken"))
    damage(folder / file_name)
    with pytest.raises(RerankerError, match="broken") as caught:
        Reranker.load(str(folder))
    assert "\n" not in str(caught.value)


def test_text_tower_that_needs_the_hub_is_refused(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "model", tmp_path / "hub"))
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "xlm-roberta-base"
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(RerankerError, match=r"must not set text_cfg\.hf_model_name, .* got 'xlm-roberta-base'"):
        Reranker.load(str(folder))
