"""The text-to-code network trains to the same bits after any stop, and to the same losses on any devices."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dalle_process import SIZES, StopError, examples
from jax.sharding import PartitionSpec
from random_params import random_params

from dalle_mini import model
from dalle_mini.config import MEGA
from dalle_mini.training.dalle import sharding
from dalle_mini.training.dalle import train as dalle
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.dalle.loss import Batch, row_losses
from dalle_mini.training.dalle.optimiser import make_optimiser
from dalle_mini.training.dalle.plan import flops_of_row, make_plan, peak_of
from dalle_mini.training.dalle.sharding import axes_for, spec_of, specs_of
from dalle_mini.training.dalle.train_step import init_state, make_gradient, make_step
from dalle_mini.training.loop import LoopConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimised")]
SCRIPT = Path(__file__).parent / "dalle_process.py"
CONFIG = DalleTrainConfig(steps=20, batch_size=16, optimiser="adamw", learning_rate=3e-3, warmup_steps=2)


def train(out: Path, config: DalleTrainConfig, *, stop: int | None = None, sheet: Any = None) -> Any:
    """A whole run that logs and saves every step, or its first `stop` steps."""

    def stop_here(params: Any) -> None:
        raise StopError

    every = stop or 1000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dalle, "LoopConfig", partial(LoopConfig, log_every=1, save_seconds=-1, sheet_every=every))
        return dalle.train(SIZES, config, examples(), held_out=held_out(), out=out, sheet=stop_here if stop else sheet)


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    found = rows(out)
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    return [row["loss"] for row in found]


def params_and_batch() -> tuple[Any, Batch]:
    params = random_params(SIZES)
    return params, jax.tree.map(jnp.asarray, examples().batch(np.arange(16)))


def held_out() -> Examples:
    return examples().first(16)


def loss_of(params: Any, count: int) -> float:
    """Of the first examples."""
    batch = jax.tree.map(jnp.asarray, examples().batch(np.arange(count)))
    return float(row_losses(params, SIZES, batch).mean())


# -- One step


def test_gradient_of_a_batch_in_parts_is_that_of_the_whole_batch():
    params, batch = params_and_batch()
    whole, parts = (
        jax.jit(make_gradient(SIZES, dataclasses.replace(CONFIG, accumulation=parts)))(params, batch)
        for parts in (1, 4)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), parts, whole)


def test_computing_layers_again_gives_the_same_gradient():
    params, batch = params_and_batch()
    kept, again = (
        jax.jit(make_gradient(SIZES, dataclasses.replace(CONFIG, remat=remat)))(params, batch)
        for remat in (False, True)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), again, kept)


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor", "muon"])
def test_bfloat16_is_for_products_and_the_state_stays_float32(optimiser: str):
    params, batch = params_and_batch()
    config = dataclasses.replace(CONFIG, dtype="bfloat16", ema_decay=0.9, optimiser=optimiser)
    state = init_state(config, make_optimiser(config, params), params)
    shapes, metrics = jax.eval_shape(make_step(SIZES, config, make_optimiser(config, params)), state, batch)
    floats = {leaf.dtype for leaf in jax.tree.leaves((shapes, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert floats == {jnp.dtype("float32")}
    exact, rounded = (
        float(make_gradient(SIZES, dataclasses.replace(CONFIG, dtype=dtype))(params, batch)[0])
        for dtype in ("float32", "bfloat16")
    )
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=1e-2)


def test_dropped_caption_is_the_empty_prompt():
    data = examples()
    batch = data.batch(np.array([5, 6]), np.array([[True], [False]]))
    np.testing.assert_array_equal(batch.tokens, [data.empty[0], data.tokens[6]])
    np.testing.assert_array_equal(batch.mask, [data.empty[1], data.mask[6]])
    np.testing.assert_array_equal(batch.codes, data.codes[[5, 6]])


def test_average_follows_params_by_its_decay():
    config = dataclasses.replace(CONFIG, ema_decay=0.15)
    params, batch = params_and_batch()
    optimiser = make_optimiser(config, params)
    state, step = init_state(config, optimiser, params), jax.jit(make_step(SIZES, config, optimiser))
    expected = params["decoder"]["lm_head"]["kernel"]
    for decay in (1 / 10, 0.15, 0.15):  # (1 + k) / (10 + k) as long as that is less
        state, _ = step(state, batch)
        expected = decay * expected + (1 - decay) * state.params["decoder"]["lm_head"]["kernel"]
    np.testing.assert_allclose(state.result["decoder"]["lm_head"]["kernel"], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor", "muon"])
def test_weight_decay_shrinks_matrices_by_the_learning_rate_and_nothing_else(optimiser: str):
    params, _ = params_and_batch()
    config = dataclasses.replace(CONFIG, optimiser=optimiser, weight_decay=0.5)
    chain = make_optimiser(config, params)
    state, zero = chain.init(params), jax.tree.map(jnp.zeros_like, params)
    _, state = chain.update(zero, state, params)
    updates, _ = chain.update(zero, state, params)  # the learning rate of the first step is 0
    rate = CONFIG.learning_rate / 2  # half of the warm-up
    kernel = ("decoder", "layers_0", "glu", "up_proj", "kernel")
    moved, was = updates, params
    for name in kernel:
        moved, was = moved[name], was[name]
    np.testing.assert_allclose(moved, -rate * 0.5 * was, rtol=1e-4, atol=1e-8)
    assert not np.any(updates["decoder"]["embed"]["ids"]["embedding"])


# -- Runs that stop


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optimiser": "adafactor"}, id="adafactor"),
        pytest.param({"optimiser": "muon"}, id="muon"),
        pytest.param({"weight_decay": 0.1, "ema_decay": 0.9, "accumulation": 4}, id="average and accumulation"),
    ],
)
def test_two_steps_then_two_more_equal_four_at_once(settings: dict[str, Any], tmp_path: Path):
    config = dataclasses.replace(CONFIG, steps=4, **settings)
    once = train(tmp_path / "once", config)
    with pytest.raises(StopError):
        train(tmp_path / "twice", config, stop=2)
    assert len(losses(tmp_path / "twice")) == 2
    twice = train(tmp_path / "twice", config)
    assert losses(tmp_path / "twice") == losses(tmp_path / "once")
    jax.tree.map(np.testing.assert_array_equal, twice, once)


def test_rows_of_metrics_after_the_checkpoint_are_written_once(tmp_path: Path):
    config = dataclasses.replace(CONFIG, steps=3)
    with pytest.raises(StopError):
        train(tmp_path, config, stop=2)
    with (tmp_path / "metrics.jsonl").open("a") as log:  # what a killed run had got to
        log.write('{"step": 3, "loss": 7.0}\n{"step": 4, "lo')
    train(tmp_path, config)
    assert len(losses(tmp_path)) == 3
    assert losses(tmp_path)[2] != 7.0


def test_metrics_hold_rates_and_a_validation_loss_and_no_invented_figure(tmp_path: Path):
    train(tmp_path, dataclasses.replace(CONFIG, steps=2))
    last = rows(tmp_path)[-1]
    assert last["codes_per_second"] == pytest.approx(9 * last["examples_per_second"], rel=1e-2)
    assert "mfu" not in last
    params = dalle.train(SIZES, dataclasses.replace(CONFIG, steps=2), examples(), held_out=held_out(), out=tmp_path)
    assert last["validation_loss"] == pytest.approx(loss_of(params, 16), rel=1e-5)


def test_validation_covers_every_held_out_row_once(tmp_path: Path):
    """Ten rows in parts of four: the last part is filled up, and what fills it does not count."""
    config = dataclasses.replace(CONFIG, accumulation=4)
    mesh = sharding.make_mesh(config)
    params, _ = params_and_batch()
    state = init_state(config, make_optimiser(config, params), params)
    got = dalle._validation(SIZES, config, examples().first(10), mesh)(state)["validation_loss"]
    assert got == pytest.approx(loss_of(params, 10), rel=1e-5)


def start(runs: list[dict[str, Any]], *, devices: int = 1, where: str = "") -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(SCRIPT), json.dumps(runs), *([where] if where else [])]
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        told = process.communicate(timeout=600)[0]
        assert process.returncode == 0, told[-4000:]


def test_killed_at_random_moments_training_ends_as_if_never_stopped(tmp_path: Path):
    config = dataclasses.asdict(dataclasses.replace(CONFIG, steps=120, ema_decay=0.9))
    finish(start([{"out": str(tmp_path / "whole"), "config": config}]))
    rng, out, reached = np.random.default_rng(0), tmp_path / "killed", 0
    killed = {"out": str(out), "config": config, "save_every_step": True, "pause": 0.05}

    def newest() -> int:
        """Of the checkpoints that are whole."""
        return max((int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit()), default=0)

    for _ in range(5):
        with start([killed]) as process:
            while newest() == reached:
                assert process.poll() is None, process.communicate()[0][-4000:]
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
        reached = newest()
    assert 1 < reached < 120  # or some of them killed nothing
    finish(start([{**killed, "save_every_step": False, "pause": 0}]))
    assert losses(out) == losses(tmp_path / "whole")
    ours, theirs = np.load(out / "params.npz"), np.load(tmp_path / "whole" / "params.npz")
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


# -- Many devices


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def test_losses_on_eight_devices_and_on_two_processes_are_those_of_one(tmp_path: Path):
    config = {**dataclasses.asdict(CONFIG), "accumulation": 2}
    # Stopped on 8 x 1, and on again on 2 x 4, and on one device.
    runs = [{"out": str(tmp_path / name), "config": config, "stop": 10} for name in ("moved", "moved to one")]
    runs.append({"out": str(tmp_path / "moved"), "config": {**config, "model_devices": 4}})
    finish(start(runs, devices=8))
    train(tmp_path / "moved to one", DalleTrainConfig(**config))
    train(tmp_path / "one", DalleTrainConfig(**config))
    two = [{"out": str(tmp_path / "two processes"), "config": {**config, "model_devices": 2}}]
    port = free_port()
    finish(*(start(two, devices=4, where=f"127.0.0.1:{port},2,{i}") for i in range(2)))

    one = losses(tmp_path / "one")
    assert len(one) == 20
    assert one[-1] < one[0] - 0.3  # it learns, or equal losses would say little
    for name in ("moved", "moved to one", "two processes"):
        np.testing.assert_allclose(losses(tmp_path / name), one, rtol=0, atol=1e-5, err_msg=name)


def test_matrices_and_their_optimiser_state_are_split_alike():
    axes = {"data": 2, "model": 4}
    for settings, moments in (
        ({"optimiser": "adamw", "ema_decay": 0.9}, 3),  # two, and the average
        ({"optimiser": "muon"}, 1),
        ({"optimiser": "adafactor"}, 1),
    ):
        config = dataclasses.replace(CONFIG, **settings)
        shapes = model.param_shapes(SIZES)
        state = jax.eval_shape(lambda p, c=config: init_state(c, make_optimiser(c, p), p), shapes)
        leaves = zip(
            jax.tree_util.tree_leaves_with_path(state),
            jax.tree.leaves(specs_of(state, axes), is_leaf=lambda x: isinstance(x, PartitionSpec)),
            strict=True,
        )
        kernel = "layers_1/glu/up_proj/kernel"
        split = [
            (jax.tree_util.keystr(path, simple=True, separator="/"), spec)
            for (path, leaf), spec in leaves
            if leaf.shape == (32, 32) and jax.tree_util.keystr(path, simple=True, separator="/").endswith(kernel)
        ]
        assert [spec for _, spec in split] == [PartitionSpec(None, "model")] * (1 + moments), split
    assert spec_of("params/decoder/layers_0/glu/down_proj/kernel", (32, 8), axes)[0] == "model"
    assert spec_of("opt_state/1/0/v_row/decoder/layers_0/glu/up_proj/kernel", (32,), axes) == PartitionSpec()
    # 21 classes are not to be divided by 4.
    assert spec_of("params/decoder/lm_head/kernel", (32, 21), axes) == PartitionSpec(None, None)


# -- Plans


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor", "muon"])
def test_planned_bytes_are_those_of_the_arrays(optimiser: str):
    config = dataclasses.replace(CONFIG, optimiser=optimiser, ema_decay=0.9)
    params, _ = params_and_batch()
    state = init_state(config, make_optimiser(config, params), params)
    planned = make_plan(SIZES, config, 1)

    def bytes_of(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert planned.params == planned.average == planned.gradients == bytes_of(state.params)
    assert planned.optimiser == bytes_of(state.opt_state)
    assert planned.total == 3 * bytes_of(state.params) + bytes_of(state.opt_state) + planned.activations
    assert planned.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_planned_flops_are_those_that_xla_counts():
    params, batch = params_and_batch()
    wide = dataclasses.replace(SIZES, d_model=128, encoder_ffn_dim=256, decoder_ffn_dim=256)
    params = model.param_shapes(wide)
    counted = jax.jit(make_gradient(wide, CONFIG)).lower(params, batch).cost_analysis()["flops"]
    # XLA counts the element-wise work, too; we leave out what a product with a table's one-hot rows would be.
    assert 16 * flops_of_row(wide) == pytest.approx(counted, rel=0.15)


def test_plan_of_mega_is_made_without_its_arrays():
    config = DalleTrainConfig(steps=10, batch_size=64, optimiser="adamw", dtype="bfloat16", remat=True)
    one = make_plan(MEGA, config, 1)
    assert one.parameters == 2_587_521_024
    assert one.params == 4 * one.parameters
    assert one.optimiser == pytest.approx(2 * one.params, rel=1e-6)
    shared = make_plan(MEGA, dataclasses.replace(config, model_devices=4), 16)
    assert shared.axes == {"data": 4, "model": 4}
    for part in ("params", "optimiser", "gradients"):
        assert getattr(shared, part) == pytest.approx(getattr(one, part) / 4, rel=0.01), part
    # Rows are shared by 4, and heads, feed-forwards and logits of each by 4 again; what remains whole is d_model wide.
    assert one.activations / 16 < shared.activations < one.activations / 4
    kept = make_plan(MEGA, dataclasses.replace(config, remat=False), 1)
    assert kept.activations > 5 * one.activations
    assert kept.flops == one.flops == shared.flops


def test_planned_activations_grow_by_the_layer_and_by_the_row():
    def kept(layers: int, batch: int = 16) -> int:
        sizes = dataclasses.replace(SIZES, decoder_layers=layers)
        return make_plan(sizes, dataclasses.replace(CONFIG, batch_size=batch), 1).activations

    assert kept(3) - kept(2) == kept(2) - kept(1) > 0
    assert kept(2, batch=32) == 2 * kept(2)


def test_peaks_are_of_known_devices_only():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("TPU v5 lite") == 197e12
    assert peak_of("NVIDIA RTX A1000") is None  # no A100
    assert peak_of("cpu") is None


# -- Refused before training


def refused(tmp_path: Path, config: DalleTrainConfig = CONFIG, **data: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the callers look at the message
        dalle.train(SIZES, config, examples()._replace(**data), held_out=held_out(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_run_that_would_not_fit_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dalle, "memory_of", lambda device: 2**18)
    message = refused(tmp_path)
    total = make_plan(SIZES, CONFIG, 1).total / 2**30
    assert message.startswith(f"the recipe must fit the 0.00 GiB of each device (cpu), got {total:.2f} GiB (params ")
    assert "activations" in message


def test_path_without_a_sharding_rule_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "RULES", sharding.RULES[:-1])
    assert refused(tmp_path).endswith("got none for params/decoder/lm_head/kernel")


def test_token_outside_the_vocabulary_is_named(tmp_path: Path):
    tokens = examples().tokens.copy()
    tokens[3, 2] = 30
    assert refused(tmp_path, tokens=tokens) == (
        "tokens must be [*, 6], >= 0 and < encoder_vocab_size 30, got (64, 6) from 4 to 30"
    )


def test_batch_and_devices_that_do_not_divide_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^model_devices must divide the number of devices 8, got 3$"):
        axes_for(dataclasses.replace(CONFIG, model_devices=3), 8)
    with pytest.raises(ValueError, match=r"^batch_size must be a multiple of 32 .*data axis 8 \* accumulation 4.*16$"):
        axes_for(dataclasses.replace(CONFIG, accumulation=4), 8)
    with pytest.raises(ValueError, match=r"^distributed must be auto or ADDRESS:PORT,.* got 'here'$"):
        sharding.start_processes("here")
