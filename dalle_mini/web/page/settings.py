"""The Settings panel: a control for every sampling param, with the loaded model's own default in it."""

import re

from dalle_mini.sampling_params import MAX_CANDIDATES, SamplingParams
from dalle_mini.web.page import gr
from dalle_mini.web.page.words import say

# Setting: ends of its slider and step. What can be asked for reaches further: SamplingParams has the rules.
SLIDERS = {
    "num_candidates": (1, MAX_CANDIDATES, 1),
    "temperature": (0.05, 2, 0.05),
    "condition_scale": (0, 20, 0.1),
    "top_k": (0, 1000, 1),
    "top_p": (0.05, 1, 0.05),
}


def settings_panel(defaults: SamplingParams) -> dict[str, gr.Slider | gr.Textbox]:
    controls: dict[str, gr.Slider | gr.Textbox] = {}
    for name, (least, most, step) in SLIDERS.items():
        controls[name] = gr.Slider(
            least,
            most,
            getattr(defaults, name),
            step=step,
            label=say(name),
            info=say(f"{name}-info"),
            min_width=240,
            elem_id=f"set-{name}",
        )
    # Not a number, which shows 0 where it has no value.
    controls["seed"] = gr.Textbox(
        label=say("seed"), placeholder=say("random"), info=say("seed-info"), min_width=240, elem_id="set-seed"
    )
    return controls


def whole(text: str) -> int | str | None:
    """A seed as typed: blank is None (random), and what is no whole number is left for the pipeline to refuse."""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else text or None
