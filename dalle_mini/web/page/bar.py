"""The head of the page: its name, the prompt with Draw, and examples, of which a click draws one."""

import html
from pathlib import Path
from typing import Any

from PIL import Image

from dalle_mini.gallery import read_metadata
from dalle_mini.pictures import data_url
from dalle_mini.web.page import gr
from dalle_mini.web.page.words import say

LANGUAGES = {"en": "English", "fr": "Français", "de": "Deutsch", "es": "Español", "pt": "Português", "ja": "日本語"}


def title() -> gr.HTML:
    languages = "".join(f'<option value="{name}" lang="{name}">{own}</option>' for name, own in LANGUAGES.items())
    return gr.HTML(
        '<h1><span aria-hidden="true">🥑</span> DALL·E mini</h1>'
        '<nav><a href="#card" data-say="to-card">Model card</a>'
        f'<select id="language" data-label="language" aria-label="Language">{languages}</select>'
        '<button type="button" class="round" id="theme" data-label="theme" aria-label="Light or dark">◐</button></nav>',
        elem_id="title",
        apply_default_css=False,
    )


def prompt_bar() -> tuple[gr.Textbox, gr.HTML]:
    """gr.Row and gr.Button would be eight more files to fetch."""
    with gr.Column(elem_id="bar"):
        prompt = gr.Textbox(
            label=say("prompt"),
            placeholder=say("prompt"),
            show_label=False,
            container=False,
            max_lines=5,
            scale=1,
            min_width=100,
            elem_id="prompt",
            html_attributes=gr.InputHTMLAttributes(enterkeyhint="go", autocapitalize="off"),
        )
        draw = gr.HTML('<button type="button" data-say="draw"></button>', elem_id="draw", apply_default_css=False)
    return prompt, draw


def examples(folder: Path, prompts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Prompts with pictures of ours, where `folder` has them: the PNG of each is found by its prompt."""
    made = {read_metadata(path).get("prompt"): path for path in sorted(folder.glob("*.png"))}
    found = {prompt: made.get(prompt) for prompt in prompts}
    return [
        {"prompt": prompt, "picture": data_url(Image.open(path), "WEBP") if path else None}
        for prompt, path in found.items()
    ]


def chips(shown: list[dict[str, Any]]) -> gr.HTML:
    """A line that scrolls. The prompts are ours, their pictures are put in by the script of the stage."""
    buttons = (
        f'<button type="button" class="chip" data-draw="{html.escape(example["prompt"])}">'
        f"{html.escape(example['prompt'])}</button>"
        for example in shown
    )
    dice = '<button type="button" class="chip round" id="surprise" data-label="surprise">🎲</button>'
    return gr.HTML(dice + "".join(buttons), elem_id="examples", apply_default_css=False)
