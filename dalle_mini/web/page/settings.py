"""The Settings panel: a control for every sampling param, with the loaded model's own default in it."""

import dataclasses
import json
import re
from typing import Any

from dalle_mini.pictures import from_base64
from dalle_mini.sampling_params import MAX_CANDIDATES, SamplingParams
from dalle_mini.web.page import gr
from dalle_mini.web.page.part import part
from dalle_mini.web.page.words import say

Control = gr.Slider | gr.Textbox | gr.HTML
# Setting: ends of its slider and step. What can be asked for reaches further: SamplingParams has the rules.
SLIDERS = {
    "num_candidates": (1, MAX_CANDIDATES, 1),
    "show": (0, MAX_CANDIDATES, 1),
    "temperature": (0.05, 2, 0.05),
    "condition_scale": (0, 20, 0.1),
    "top_k": (0, 1000, 1),
    "top_p": (0.05, 1, 0.05),
}
EXPERT = ("top_k", "top_p")


def usual(defaults: SamplingParams) -> dict[str, Any]:
    """What the fields show, by name, where nobody has chosen anything: 0 pictures to show are all of them."""
    nothing = {"show": 0, "seed": "", "start": ""}
    return {name: nothing.get(name, value) for name, value in dataclasses.asdict(defaults).items() if name != "seconds"}


def settings_panel(defaults: SamplingParams) -> dict[str, Control]:
    """Controls by the names of SamplingParams. The start is a field that nobody sees: start.js writes it."""
    shown, controls = usual(defaults), dict[str, Control]()
    with gr.Column(elem_classes="side-by-side"):
        controls |= {name: _slider(name, shown[name]) for name in SLIDERS if name not in EXPERT}
        controls["negative_prompt"] = _text("negative_prompt", max_lines=5)
    with gr.Accordion(say("expert"), open=True, elem_id="expert"), gr.Column(elem_classes="side-by-side"):
        controls |= {name: _slider(name, shown[name]) for name in EXPERT}
        # Not a number, which shows 0 where it has no value.
        controls["seed"] = _text("seed", placeholder=say("random"))
        # gr.Radio would be four more files to fetch.
        controls["seamless"] = part("seamless", shown["seamless"], elem_id="set-seamless")
    controls["start"] = gr.Textbox(visible=False)
    return controls


def _slider(name: str, value: float) -> gr.Slider:
    least, most, step = SLIDERS[name]
    shown: dict[str, Any] = {"label": say(name), "info": say(f"{name}-info"), "elem_id": f"set-{name}"}
    return gr.Slider(least, most, value, step=step, min_width=240, **shown)


def _text(name: str, **shown: Any) -> gr.Textbox:
    return gr.Textbox(label=say(name), info=say(f"{name}-info"), min_width=240, elem_id=f"set-{name}", **shown)


def settings_of(fields: dict[str, Any], side: int) -> dict[str, Any]:
    """What `Pipeline.stream` takes, of fields as the page has them. Raises ValueError.

    The start is JSON: {"from": a picture as a data URL, or codes, "keep" or "strength": ...}, or what a PNG has.
    side: pixels along the side of a picture.
    """
    given = {**fields, "seed": whole(str(fields["seed"] or "").strip()), "show": fields["show"] or None}
    start = fields["start"] or None
    if start:
        try:
            start = json.loads(start)
        except (ValueError, RecursionError, TypeError):
            start = None
        if not isinstance(start, dict):
            raise ValueError(f"start must be what the page makes of a picture, got {str(fields['start'])[:100]!r}")
    if start and "from" in start:
        given |= {name: start[name] for name in ("keep", "strength") if name in start}
        start = sent(start["from"], side)
    return given | {"start": start}


def sent(start: Any, side: int) -> Any:
    """What a stranger starts from: no text is a path. Raises ValueError."""
    if isinstance(start, str):
        return from_base64(start, side, setting="start")
    if not isinstance(start, list):
        raise ValueError(f"start must be a picture as a data URL, or codes, got {str(start)[:100]}")
    return start


def whole(text: str) -> int | str | None:
    """A seed as typed: blank is None (random), and what is no whole number is left for the pipeline to refuse."""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else text or None
