"""Several devices: an engine for each, the work shared among them, the same pictures. CPU devices that XLA makes up."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from dalle_mini import Pipeline

ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat", "two rockets", "a bee above a cake", "a moon on blue", "three hearts", "a tiny dog", "a fox", "x"]


@pytest.mark.slow
def test_four_devices_share_the_work_and_draw_what_one_draws(emoji: "Pipeline", tmp_path: Path) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    command = [sys.executable, str(ROOT / "tests" / "devices_process.py"), str(tmp_path / "drawn.npz"), *PROMPTS]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    drawn = np.load(tmp_path / "drawn.npz")
    candidates = emoji.defaults.num_candidates
    assert drawn["used"].shape == (4,)
    assert (drawn["used"] >= candidates).all(), "each engine had a request"
    assert drawn["together"] > drawn["used"].max(), "at the same time"
    for i, (prompt, codes) in enumerate(zip(PROMPTS, drawn["codes"], strict=True)):
        alone = sorted(emoji.generate(prompt, seed=i), key=lambda candidate: candidate.index)
        np.testing.assert_array_equal(codes, np.stack([candidate.codes for candidate in alone]), err_msg=prompt)
