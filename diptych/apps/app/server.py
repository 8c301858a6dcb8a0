"""The server: what it loads, what it shows, what it lets through."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before Gradio is imported, which reads them once: it asks nobody whether it is up to date and reports nothing, and
# what is uploaded stands in a folder of ours that is gone when the process ends.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="diptych-app-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

import gradio as gr

from diptych.apps.app.fields import MOST_BYTES
from diptych.apps.app.form import lay_out
from diptych.apps.app.look import FAVICON, STYLE, TITLE, theme
from diptych.apps.app.pages import ask, compare, entail, experts, locate, match, search, teacher
from diptych.apps.app.site import Site

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
    """Serves until `blocks.close()`. Returns the address."""
    # A client can name an address in the place of its upload, and Gradio would fetch it.
    gr.processing_utils.async_ssrf_protected_download = _no_download
    _, address, _ = blocks.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
        max_file_size=MOST_BYTES, allowed_paths=[], enable_monitoring=False, footer_links=[], ssr_mode=False,
        pwa=False, mcp_server=False, run_history=False, theme=theme(), css=STYLE, js=TITLE, favicon_path=FAVICON,
    )  # fmt: skip
    return address


async def _no_download(url: str, *_: Any, **__: Any) -> str:
    raise ValueError(f"{url} is an address: a picture is uploaded, never fetched")


def free_port(host: str, port: int = 0) -> int:
    """The port, or any free one for 0. Raises ValueError where nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as tried:
            return int(tried.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error}): choose another --port, or another --host"
        ) from None


def serve(
    runs: Sequence[str | Path], images: Path | None, index: str | None, host: str, port: int, device: str = "auto"
) -> None:
    """Loads the models and serves their pages until the process is stopped. Raises ValueError for what cannot be."""
    port = free_port(host, port)  # before minutes of loading
    site = Site.load(runs, images, index, device)
    blocks = build(site)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was uploaded goes then too
    print(f"{len(site.pool.models)} models at {start(blocks, host, port)} (Ctrl-C stops)", flush=True)
    blocks.block_thread()
