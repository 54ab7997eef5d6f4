"""Colours of the page, for Gradio's parts; those of our own parts are in assets/style.css. And the page's last line."""

import html

from dalle_mini.pipeline import Pipeline
from dalle_mini.web.page import gr

SANS, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # of the visitor's: nothing is fetched


def theme() -> gr.themes.Base:
    """Lime so dark that white on it is legible (5:1), and in the dark so light that black on it is."""
    return gr.themes.Default(primary_hue="lime", secondary_hue="yellow", font=SANS, font_mono=MONO).set(
        body_background_fill="#faf9f2",
        body_background_fill_dark="#13150f",
        body_text_color="#1d2015",
        body_text_color_dark="#f2f3ea",
        body_text_color_subdued="#565a4a",
        body_text_color_subdued_dark="#b4b8a6",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1c1f17",
        block_border_color="#dcdccd",
        block_border_color_dark="#3a3e31",
        block_info_text_color="#565a4a",
        block_info_text_color_dark="#b4b8a6",
        input_background_fill_dark="#262a1f",
        input_placeholder_color="#6a6e5c",
        input_placeholder_color_dark="#a3a893",
        button_primary_background_fill="*primary_800",
        button_primary_background_fill_hover="*primary_900",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color_dark="#13150f",
        slider_color="*primary_700",
        slider_color_dark="*primary_400",
        link_text_color="#3f6212",
        link_text_color_hover="#1d2015",
        link_text_color_visited="#3f6212",
        link_text_color_dark="#bef264",
        link_text_color_hover_dark="#ffffff",
        link_text_color_visited_dark="#bef264",
    )


def footer(pipeline: Pipeline) -> str:
    """What draws. The script of the stage puts in how fast it is, once that is measured."""
    facts = {"device": pipeline.device, "model": pipeline.name}
    shown = " · ".join(f"{name} <b>{html.escape(value)}</b>" for name, value in facts.items())
    return f'{shown} · seconds per image <b id="pace">not measured yet</b>'
