"""The Settings panel: a control for every sampling param, with the loaded model's own default in it."""

import re

from dalle_mini.sampling_params import MAX_CANDIDATES, SamplingParams
from dalle_mini.web.page import gr

# Setting: label, step, what it does. No ends: SamplingParams refuses what cannot be, where Gradio would change it.
NUMBERS = {
    "num_candidates": ("Candidates", 1, f"Pictures to draw and rank, up to {MAX_CANDIDATES}"),
    "condition_scale": ("Condition scale", 0.1, "How closely to follow the prompt"),
    "temperature": ("Temperature", 0.05, "Higher is more varied"),
    "top_k": ("Top-k", 1, "Only the k likeliest codes; 0 is off"),
    "top_p": ("Top-p", 0.05, "Only the likeliest codes, up to this probability; 1 is off"),
}


def settings_panel(defaults: SamplingParams) -> dict[str, gr.Number | gr.Textbox]:
    controls: dict[str, gr.Number | gr.Textbox] = {}
    for name, (label, step, info) in NUMBERS.items():
        value = getattr(defaults, name)
        controls[name] = gr.Number(value, step=step, label=label, info=info, min_width=240)
    # Not a Number, which shows 0 where it has no value.
    info = "The same seed, the same pictures"
    controls["seed"] = gr.Textbox(label="Seed", placeholder="random", info=info, min_width=240)
    return controls


def whole(text: str) -> int | str | None:
    """A seed as typed: blank is None (random), and what is no whole number is left for the pipeline to refuse."""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else text or None
