"""The dVAE equals OpenAI's on golden data that OpenAI's code computed, whichever way its weights come in."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

import vqgan
from dalle_mini.__main__ import main
from vqgan import Codec, dvae
from vqgan.checkpoint import from_openai, read_openai
from vqgan.config import DVAEConfig, VQGANConfig
from vqgan.files import CheckpointError, read_json, write_safetensors

GOLDEN = Path(__file__).parent / "golden"
ATOL = 5e-5  # given with the golden data
both_cases = pytest.mark.parametrize("name", ["dvae", "dvae_pkl"])


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


class Case(NamedTuple):
    codec: Codec
    arrays: dict[str, np.ndarray]

    def apply(self, function: Callable, *given: np.ndarray) -> np.ndarray:
        """A function of (params, config, arrays), compiled; from and to channels first, as torch has them."""
        given = tuple(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in given)
        out = np.asarray(jax.jit(function, static_argnums=1)(self.codec.params, self.codec.config, *given))
        return out.transpose(0, 3, 1, 2) if out.ndim == 4 else out


@cache
def load(name: str) -> Case:
    arrays = arrays_of(GOLDEN / name / "golden.npz")
    sizes = read_json(GOLDEN / name / "config.json") | {"resolution": arrays["image"].shape[-1]}
    states = {part: arrays_of(GOLDEN / name / f"{part}_state_dict.npz") for part in ("encoder", "decoder")}
    params = {part: from_openai(state) for part, state in states.items()}
    return Case(Codec(DVAEConfig.from_dict(sizes), params), arrays)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


# The network


@both_cases
def test_pixels_are_mapped_and_unmapped_as_by_the_reference(name: str):
    arrays = load(name).arrays
    close(dvae.map_pixels(arrays["image"]), arrays["mapped"])
    close(dvae.map_pixels(arrays["unmap_in"]), arrays["map_out"])
    close(dvae.unmap_pixels(arrays["unmap_in"]), arrays["unmap_out"])


@both_cases
def test_logits_and_codes_equal_the_reference(name: str):
    case = load(name)
    close(case.apply(dvae.logits, case.arrays["image"]), case.arrays["z_logits"])
    codes = case.apply(dvae.encode, case.arrays["image"])
    np.testing.assert_array_equal(codes, case.arrays["codes"].reshape(codes.shape))


@both_cases
@pytest.mark.parametrize("which", ["", "_random"])
def test_pictures_equal_the_reference(name: str, which: str):
    case = load(name)
    codes = case.arrays["random_codes" if which else "codes"]
    chosen = np.eye(case.codec.codebook_size, dtype=np.float32)[codes].transpose(0, 3, 1, 2)
    close(case.apply(dvae.distribution, chosen), case.arrays[f"decoder_stats{which}"])
    close(case.apply(dvae.decode, codes.reshape(len(codes), -1)), case.arrays[f"reconstruction{which}"])


@both_cases
def test_every_stage_of_the_encoder_equals_the_reference(name: str):
    """The first group, pooled as the reference pools it inside, and the last."""
    case = load(name)
    pixels = dvae.map_pixels(case.arrays["image"]).transpose(0, 2, 3, 1)
    _, kept = dvae.DVAEModule(case.codec.config).apply(
        {"params": case.codec.params}, pixels, method="encode", capture_intermediates=True
    )
    for i in (1, 4):
        (group,) = kept["intermediates"]["encoder"][f"group_{i}"]["__call__"]
        expected = case.arrays[f"enc_group_{i}"].transpose(0, 2, 3, 1)
        B, H, W, C = expected.shape
        close(np.asarray(group).reshape(B, H, group.shape[1] // H, W, group.shape[2] // W, C).max((2, 4)), expected)


@both_cases
def test_uint8_pictures_go_through_the_same_door_as_a_vqgans(name: str):
    case = load(name)
    pixels = (case.arrays["image"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    exact = case.apply(dvae.encode, pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    codes = case.codec.encode(pixels)
    np.testing.assert_array_equal(codes, exact)
    painted = case.codec.decode(case.arrays["random_codes"].reshape(2, -1))
    expected = (case.arrays["reconstruction_random"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    away = np.abs(painted.astype(int) - expected)
    assert (painted.dtype, away.max() <= 1, (away > 0).mean() < 0.001) == (np.uint8, True, True)
    assert case.codec.resolution == 8 * case.codec.side == pixels.shape[1]


def test_the_published_dvae_has_the_published_sizes():
    def conv(kernel: int, before: int, after: int) -> int:
        return kernel * kernel * before * after + after

    def group(before: int, after: int, kernels: tuple[int, ...]) -> int:
        first, second, third, fourth = kernels
        hidden, total = after // 4, conv(1, before, after) if before != after else 0
        for width in (before, after):
            total += conv(first, width, hidden) + conv(second, hidden, hidden)
            total += conv(third, hidden, hidden) + conv(fourth, hidden, after)
        return total

    widths = [256, 512, 1024, 2048]
    encoder = conv(7, 3, 256) + conv(1, 2048, 8192)
    encoder += sum(group(a, b, (3, 3, 3, 1)) for a, b in zip([256, *widths], widths, strict=False))
    decoder = conv(1, 8192, 128) + conv(1, 256, 6)
    decoder += sum(group(a, b, (1, 3, 3, 3)) for a, b in zip([128, *widths[::-1]], widths[::-1], strict=False))
    config = DVAEConfig()
    shapes = dvae.param_shapes(config)
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    assert count == {"encoder": encoder, "decoder": decoder}
    assert (config.side, config.codebook_size) == (32, 8192)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_hid": 30}, "n_hid must be a multiple of 4, got 30"),
        ({"vocab_size": 0}, "vocab_size must be a whole number >= 1, got 0"),
        ({"group_count": 3}, "group_count must be 4 for a dVAE, got 3"),
        ({"resolution": 100}, "resolution must be a multiple of 8, got 100"),
    ],
)
def test_sizes_that_do_not_fit_are_named(values: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DVAEConfig.from_dict(values)


def test_codes_outside_the_codebook_are_named():
    codes = np.full((1, 16), 16, np.int32)
    with pytest.raises(ValueError, match=r"^codes must be in \[0, 16\), got 16..16$"):
        load("dvae_pkl").codec.decode(codes)


# Files


def test_the_published_pickles_give_the_state_dicts():
    config, params = read_openai(GOLDEN / "dvae_pkl")
    expected = load("dvae_pkl").codec
    hashes = {
        f"{part}_sha256": hashlib.sha256((GOLDEN / "dvae_pkl" / f"{part}.pkl").read_bytes()).hexdigest()
        for part in ("encoder", "decoder")
    }
    assert config == DVAEConfig(n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8, **hashes)
    flat, wanted = flatten_dict(params, sep="/"), flatten_dict(expected.params, sep="/")
    assert flat.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(flat[path], array, err_msg=path)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path):
    codec = load("dvae").codec
    vqgan.save(tmp_path, codec.config, codec.params, dtype=np.float32)
    again = vqgan.load(tmp_path)
    assert (again.config, again.name) == (codec.config, "dVAE")
    for one, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(codec.params), strict=True):
        np.testing.assert_array_equal(one, other)


def pickles(folder: Path) -> Path:
    for part in ("encoder", "decoder"):
        shutil.copy(GOLDEN / "dvae_pkl" / f"{part}.pkl", folder)
    return folder


def swap(folder: Path) -> None:
    (folder / "encoder.pkl").rename(folder / "x")
    (folder / "decoder.pkl").rename(folder / "encoder.pkl")
    (folder / "x").rename(folder / "decoder.pkl")


def cut(folder: Path) -> None:
    path = folder / "encoder.pkl"
    path.write_bytes(path.read_bytes()[:-2000])


def other_module(folder: Path) -> None:
    torch.save(torch.nn.Linear(3, 4), folder / "decoder.pkl")


def other_size(folder: Path) -> None:
    state = {name: torch.from_numpy(x) for name, x in arrays_of(GOLDEN / "dvae" / "decoder_state_dict.npz").items()}
    torch.save(state, folder / "decoder.pkl")


def lacking(folder: Path) -> None:
    (folder / "decoder.pkl").unlink()


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


def test_what_a_pickle_would_run_does_not_run(tmp_path: Path):
    """Beside the tensors it is passed over; in their place it is refused."""
    state = {name: torch.from_numpy(x) for name, x in arrays_of(GOLDEN / "dvae_pkl" / "encoder_state_dict.npz").items()}
    canary, path = tmp_path / "canary", pickles(tmp_path) / "encoder.pkl"
    torch.save({"trap": Trap(canary), "state_dict": state}, path)
    assert read_openai(tmp_path)[0].n_hid == 8
    for content in (Trap(canary), {**state, "blocks.input.b": Trap(canary)}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"encoder\.pkl must hold a state_dict of tensors"):
            read_openai(tmp_path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # it was a trap


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """The zip with its entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: change(name.partition("/")[2], archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def deep(folder: Path) -> None:
    lists = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    rewritten(folder / "encoder.pkl", lambda name, content: lists if name == "data.pkl" else content)


def lying(folder: Path) -> None:
    rewritten(folder / "decoder.pkl", lambda name, content: content[:-4] if name == "data/0" else content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap, r"encoder\.pkl must hold the encoder of a dVAE, got the other half$"),
        (cut, r"encoder\.pkl must be a whole torch file of tensors: "),
        (other_module, r"decoder\.pkl must hold the decoder of a dVAE: 'input'$"),
        (other_size, r"does not fit its config\.json"),
        (deep, r"encoder\.pkl must "),
        (lying, r"decoder\.pkl must be a whole torch file of tensors: a tensor of shape .* must fit its storage"),
        (lacking, r"decoder\.pkl must be a whole torch file of tensors: .*No such file"),
    ],
)
def test_files_of_another_kind_are_named(damage: Callable[[Path], None], message: str, tmp_path: Path):
    damage(pickles(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        read_openai(tmp_path)


def test_a_folder_with_the_config_of_the_other_network_is_one_sentence(tmp_path: Path):
    codec = load("dvae_pkl").codec
    write_safetensors(codec.params, tmp_path / "model.safetensors", dtype=None)
    (tmp_path / "config.json").write_text(VQGANConfig().to_json())
    with pytest.raises(CheckpointError, match=r"config\.json must be a dVAE's, as the weights are, got a VQGAN's$"):
        vqgan.load(tmp_path)
    shutil.copy(GOLDEN / "vqgan_a" / "flax_model.msgpack", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(codec.config.to_json())
    with pytest.raises(CheckpointError, match=r"config\.json must be a VQGAN's, as the weights are, got a dVAE's$"):
        vqgan.load(tmp_path)


def test_converted_once_it_is_a_folder_that_every_command_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", str(GOLDEN / "dvae_pkl"), "--out", str(tmp_path / "dvae")]) == 0
    config = vqgan.load(tmp_path / "dvae").config
    assert isinstance(config, DVAEConfig)
    told = capsys.readouterr().out
    assert f"encoder.pkl SHA-256 {config.encoder_sha256}" in told
    assert len(config.decoder_sha256) == 64
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "dvae")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
