"""Token ids are those of the published tokenizers, from either kind of file; `train` writes such files."""

import json
import shutil
import time
import timeit
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dalle_mini import tokenizer
from dalle_mini.tokenizer import Tokenizer
from vqgan.files import CheckpointError

GOLDEN = Path(__file__).parent / "golden"
FILES = GOLDEN / "tokenizer"
CASES = json.loads((FILES / "golden.json").read_text(encoding="utf-8"))
LENGTH = CASES["max_text_length"]
CAPTIONS = [
    f"A {size} {name} on a {colour} BACKGROUND"
    for size in ("tiny", "big", "huge")
    for name in ("cat", "pizza", "rocket", "avocado", "robot")
    for colour in ("blue", "red", "yellow")
]


@pytest.fixture(scope="module", params=[["tokenizer.json"], ["vocab.json", "merges.txt"]], ids=["whole", "pair"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name in request.param:
        shutil.copy(FILES / name, folder)
    shutil.copy(GOLDEN / "text" / "enwiki-words-frequency.txt", folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tokenizer.train(CAPTIONS, folder, vocab_size=300, max_text_length=24)
    return folder


def load(folder: Path = FILES, *, normalize: bool = True, max_text_length: int = LENGTH) -> Tokenizer:
    return Tokenizer.load(folder, max_text_length=max_text_length, normalize=normalize)


@pytest.mark.parametrize("normalize", [False, True])
def test_tokens_equal_the_reference(published: Path, normalize: bool):
    subject = load(published, normalize=normalize)
    cases = [case for case in CASES["cases"] if case["normalize_text"] == normalize]
    assert len(cases) == 22
    for case in cases:
        encoded = subject.encode(case["text"])
        assert encoded.text == case["normalized"]
        assert encoded.tokens.tolist() == [case["input_ids"], CASES["uncond_input_ids"]], case["text"]
        assert encoded.mask.tolist() == [case["attention_mask"], CASES["uncond_attention_mask"]]


def test_truncation_is_told_only_when_something_was_cut():
    subject = load()
    full, cut = (subject.encode(" 1" * count) for count in (LENGTH - 2, LENGTH - 1))  # one token each
    assert not full.truncated
    assert full.mask[0].all()
    assert cut.truncated
    np.testing.assert_array_equal(cut.tokens, full.tokens)


def test_truncation_is_told_when_what_lies_beyond_was_never_looked_at():
    encoded = load().encode("!" * 10_000 + " a cat")
    assert encoded.truncated
    assert encoded.text == " "


def test_cutting_and_padding_saved_in_a_file_are_ignored(tmp_path: Path):
    content = json.loads((FILES / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None}
    content["padding"] = padding | {"pad_id": 7, "pad_type_id": 0, "pad_token": "#"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for prompt in ("a", "a cat sitting on a mat"):
        np.testing.assert_array_equal(load(tmp_path).encode(prompt).tokens, load().encode(prompt).tokens)


def test_files_appear_when_all_are_whole(tmp_path: Path):
    folder = tmp_path / "dalle"

    def write_half() -> None:
        with tokenizer.aside(folder) as new:
            (new / "tokenizer.json").write_text("{")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]
    tokenizer.train(CAPTIONS, folder, vocab_size=300, max_text_length=8)
    assert {path.name for path in folder.iterdir()} < set(tokenizer.FILES)


def test_a_huge_prompt_is_quick_and_cut():
    subject = load(max_text_length=64)
    for prompt in ("a cat on the mat " * 600, "a cat " * 1_000_000):
        encoded = subject.encode(prompt)
        assert encoded.truncated
        assert encoded.tokens.shape == (2, 64)
        assert min(timeit.repeat(partial(subject.encode, prompt), number=1, repeat=3, timer=time.process_time)) < 1


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "prompt", ["\ud83d", "\udc31\ud83d", "\0\1\x7f", "👩‍👩‍👧‍👦", "\u202eשלום", "\U0010ffff", "</s><s>"]
)
def test_no_prompt_raises(prompt: str, normalize: bool):
    subject = load(normalize=normalize)
    encoded = subject.encode(prompt)
    assert encoded.tokens.dtype == encoded.mask.dtype == np.int32
    assert 0 <= encoded.tokens.min() <= encoded.tokens.max() < subject.vocab_size


def test_mask_swallows_the_space_before_it_as_in_bart(published: Path):
    tokens = load(published, normalize=False).encode("a <mask> it").tokens[0]
    assert tokens[:5].tolist() == [0, 69, 4, 340, 2]


def test_a_batch_equals_its_prompts_one_by_one():
    subject = load()
    prompts = ["a cat", "A Dog, running!", "🐱", "one two three four five six seven eight nine ten eleven"]
    tokens, mask = subject.encode_batch(prompts)
    assert tokens.dtype == mask.dtype == np.int32
    for i, prompt in enumerate(prompts):
        encoded = subject.encode(prompt)
        np.testing.assert_array_equal(tokens[i], encoded.tokens[0])
        np.testing.assert_array_equal(mask[i], encoded.mask[0])


def test_a_dropped_caption_is_the_empty_prompt():
    tokens, mask = load().encode_batch([""])
    assert tokens[0].tolist() == CASES["uncond_input_ids"]
    assert mask[0].tolist() == CASES["uncond_attention_mask"]


def test_row_1_is_the_negative_prompt_read_as_a_prompt_is():
    subject, long = load(), "one two three four five six seven eight nine ten eleven"
    both = subject.encode("a cat", long)
    np.testing.assert_array_equal(both.tokens[1], subject.encode(long).tokens[0])
    np.testing.assert_array_equal(both.tokens[0], subject.encode("a cat").tokens[0])
    assert (both.truncated, both.negative_truncated, both.negative.strip()) == (False, True, long)


@pytest.mark.parametrize("nothing", ["", " ", "<b></b>"])
def test_a_negative_prompt_of_which_nothing_is_left_is_the_empty_prompt(nothing: str):
    both = load().encode("a cat", nothing)
    assert both.tokens[1].tolist() == CASES["uncond_input_ids"]
    assert (both.mask[1].tolist(), both.negative) == (CASES["uncond_attention_mask"], "")


def test_training_twice_gives_the_same_files(trained: Path, tmp_path: Path):
    tokenizer.train(CAPTIONS, tmp_path, vocab_size=300, max_text_length=24)
    names = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_trained_tokens_begin_with_the_published_special_ones(trained: Path):
    vocab = json.loads((trained / "vocab.json").read_text(encoding="utf-8"))
    assert [vocab[token] for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert load(trained).vocab_size == 300


def test_trained_words_become_single_tokens(trained: Path):
    subject = load(trained)
    assert subject.encode("Background").mask[0].sum() == 3  # <s> Ġbackground </s>
    assert subject.encode("zebra").mask[0].sum() > 3


def test_either_trained_file_gives_the_same_tokens(trained: Path, tmp_path: Path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(trained / name, tmp_path)
    prompts = [*CAPTIONS, "Zürich 東京 <mask> </s>", ""]
    for normalize in (False, True):
        whole = load(trained, normalize=normalize).encode_batch(prompts)
        pair = load(tmp_path, normalize=normalize).encode_batch(prompts)
        np.testing.assert_array_equal(whole, pair)


def test_transformers_reads_the_trained_files_alike(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(trained)
    prompts = [*CAPTIONS, " a cat", "", "a cat " * 30]
    theirs = other(prompts, padding="max_length", truncation=True, max_length=24, return_tensors="np")
    tokens, mask = load(trained, normalize=False, max_text_length=24).encode_batch(prompts)
    np.testing.assert_array_equal(theirs["input_ids"], tokens)
    np.testing.assert_array_equal(theirs["attention_mask"], mask)


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="vocab_size must be >= 260, got 259"):
        tokenizer.train(CAPTIONS, tmp_path, vocab_size=259, max_text_length=24)


def test_missing_files_are_named(tmp_path: Path):
    shutil.copy(FILES / "vocab.json", tmp_path)  # useless without merges.txt
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load(tmp_path)


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\x00" + content,
    "foreign": lambda content: b"<!doctype html>",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_a_damaged_file_is_named(names: list[str], damage, tmp_path: Path):
    for name in names:
        shutil.copy(FILES / name, tmp_path)
    first = tmp_path / names[0]
    first.write_bytes(damage(first.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{names[0]}.* is not a readable tokenizer"):
        load(tmp_path)


def test_a_file_without_the_special_tokens_is_named(tmp_path: Path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "<s>": 1, "</s>": 2, "<unk>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json with merges\.txt has no token <pad>"):
        load(tmp_path)
