"""Defines the look of the pages: system fonts, one accent colour, light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
FAVICON = Path(__file__).with_name("mark.svg")
TITLE = "() => { document.title = document.querySelector('.top [aria-current]').textContent + ' · diptych'; }"
"""Script that each page runs when loaded: it puts the page's name into the title of the browser tab."""
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONOSPACE = ("ui-monospace", "Menlo", "Consolas", "monospace")
COLOURS = {
    "body_background_fill": ("#f7f6f3", "#14161a"),
    "background_fill_primary": ("#ffffff", "#1d2026"),
    "background_fill_secondary": ("#f0eee8", "#262a32"),
    "body_text_color": ("#1d1f24", "#e9e8e4"),
    "body_text_color_subdued": ("#5c626c", "#a9afba"),
    "block_background_fill": ("#ffffff", "#1d2026"),
    "block_border_color": ("#e2e0da", "#31353e"),
    "border_color_primary": ("#e2e0da", "#31353e"),
    "block_label_background_fill": ("#ffffff", "#1d2026"),
    "block_label_text_color": ("#5c626c", "#a9afba"),
    "block_title_text_color": ("#5c626c", "#a9afba"),
    "input_background_fill": ("#ffffff", "#14161a"),
    "input_background_fill_focus": ("#ffffff", "#14161a"),
    "input_border_color": ("#b9b6ae", "#565c68"),
    "input_border_color_focus": ("#2458c5", "#8db4ff"),
    "input_placeholder_color": ("#6d727b", "#959ba6"),
    "color_accent": ("#2458c5", None),
    "button_primary_background_fill": ("#2458c5", "#8db4ff"),
    "button_primary_background_fill_hover": ("#1b469f", "#aac7ff"),
    "button_primary_text_color": ("#ffffff", "#10151f"),
    "button_primary_text_color_hover": ("#ffffff", "#10151f"),
    "button_secondary_background_fill": ("#ffffff", "#1d2026"),
    "button_secondary_background_fill_hover": ("#f0eee8", "#262a32"),
    "button_secondary_border_color": ("#e2e0da", "#31353e"),
    "button_secondary_text_color": ("#1d1f24", "#e9e8e4"),
}
"""Light and dark colours by Gradio's names. The colours of answers are in style.css."""


def theme() -> gr.themes.Base:
    """Returns Gradio's Base theme with our colours and system fonts, since its own fonts are fetched from the web."""
    base = gr.themes.Base(font=list(FONTS), font_mono=list(MONOSPACE), radius_size="md", text_size="md")
    light = {name: pair[0] for name, pair in COLOURS.items()}
    dark = {f"{name}_dark": pair[1] for name, pair in COLOURS.items() if pair[1] is not None}
    return base.set(**light, **dark, block_shadow="none", block_border_width="1px", input_border_width="1px")
