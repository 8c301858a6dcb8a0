"""The server: what it loads, what it shows, what it lets through."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Before Gradio is imported, which reads them once: it asks nobody whether it is up to date and reports nothing, and
# what is uploaded stands in a folder of ours that is gone when the process ends.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="diptych-app-"))

import gradio as gr

from diptych.app.fields import MOST_BYTES
from diptych.app.form import lay_out
from diptych.app.look import FAVICON, STYLE, TITLE, theme
from diptych.app.pages import ask, compare, entail, experts, locate, match, search, teacher
from diptych.app.site import Site

PAGES = (search, match, ask, entail, compare, locate, teacher, experts)
"""In the order of the links."""
WAITING = 32
"""Questions that may wait for the models; more are told to come again."""
KEPT = (600, 3600)
"""Seconds between two looks for old uploads, and the age at which they are deleted."""


def build(site: Site) -> gr.Blocks:
    """All pages of a site."""
    forms = [module.form(site) for module in PAGES]
    pages = [form.page for form in forms]
    first, *others = forms
    with gr.Blocks(title="diptych", analytics_enabled=False, delete_cache=KEPT) as blocks:
        gr.Navbar(visible=False)
        lay_out(first, pages)
    for form in others:
        with blocks.route(form.page.title, form.page.path):
            gr.Navbar(visible=False)
            lay_out(form, pages)
    return blocks.queue(default_concurrency_limit=1, max_size=WAITING)


def start(blocks: gr.Blocks, host: str, port: int) -> str:
    """Serves until `blocks.close()`; port 0: any free one. Returns the address. Raises ValueError where it cannot."""
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port or _free_port(host), prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
            max_file_size=MOST_BYTES, allowed_paths=[], enable_monitoring=False, footer_links=[], ssr_mode=False,
            pwa=False, mcp_server=False, run_history=False, theme=theme(), css=STYLE, js=TITLE, favicon_path=FAVICON,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(f"cannot listen at {host}:{port}: choose another --port, or another --host") from error
    return address


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])


def serve(
    runs: Sequence[str | Path], images: Path | None, index: str | None, host: str, port: int, device: str = "auto"
) -> None:
    """Loads the models and serves their pages until the process is stopped."""
    site = Site.load(runs, images, index, device)
    blocks = build(site)
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    print(f"{len(site.shelf.models)} models at {start(blocks, host, port)} (Ctrl-C stops)", flush=True)
    blocks.block_thread()
