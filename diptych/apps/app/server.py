"""Builds the pages and serves them."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Gradio reads these once, when it is imported. It must not report anything or look for updates, and uploads go into a
# folder that is deleted when the process ends.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="diptych-app-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

import gradio as gr
from starlette.middleware import Middleware

from diptych.apps.app.fields import MOST_BYTES, PictureField
from diptych.apps.app.form import Form, lay_out
from diptych.apps.app.guard import Guard, cut_logs, limit_connections, limit_uploads
from diptych.apps.app.look import FAVICON, STYLE, TITLE, theme
from diptych.apps.app.pages import ask, compare, entail, experts, locate, match, pseudo_targets, search
from diptych.apps.app.site import Site
from diptych.apps.web import LOOPBACK_NAMES, allowed_hosts, root_path_of
from diptych.data.pictures import LARGEST_PIXELS

PAGES = (search, match, ask, entail, compare, locate, pseudo_targets, experts)
"""The pages, in the order of their links."""
WAITING = 32
"""Number of questions that may wait for the models. Further visitors are asked to try again later."""
KEPT = (600, 3600)
"""Seconds between two searches for old uploads, and the age at which they are deleted."""


def build(site: Site) -> gr.Blocks:
    """Builds all pages of a site."""
    forms = [_limited(module.form(site), site.largest_pixels) for module in PAGES]
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


def _limited(form: Form, largest_pixels: int) -> Form:
    """Gives the picture fields of a form the site's limit."""
    fields = (
        replace(field, largest_pixels=largest_pixels) if isinstance(field, PictureField) else field
        for field in form.fields
    )
    return replace(form, fields=tuple(fields))


def start(blocks: gr.Blocks, host: str, port: int, names: Sequence[str] = (), root_path: str = "") -> str:
    """Starts serving, until `blocks.close()`. Returns the address.

    `names` are further names that a Host header may give, and `root_path` is a proxy's prefix: a path, or a whole
    address, whose host is then accepted too. Raises ValueError for another prefix.
    """
    path, public_names = root_path_of(root_path or os.environ.get("GRADIO_ROOT_PATH", ""))
    further = [name.lower() for name in (*names, *public_names)]
    hosts = allowed_hosts(host, further)
    guard = Middleware(
        Guard,
        blocks=blocks,
        uploads=Path(os.environ["GRADIO_TEMP_DIR"]),
        hosts=hosts and [*LOOPBACK_NAMES, *hosts],  # Gradio itself asks by these at the start
        names=further,
        root_path=path,
    )
    # A client could send a URL instead of an upload, and Gradio would fetch it.
    gr.processing_utils.async_ssrf_protected_download = _no_download
    limit_uploads()
    limit_connections()
    _, address, _ = blocks.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
        max_file_size=MOST_BYTES, allowed_paths=[], enable_monitoring=False, footer_links=[], ssr_mode=False,
        pwa=False, mcp_server=False, run_history=False, theme=theme(), css=STYLE, js=TITLE, favicon_path=FAVICON,
        app_kwargs={"middleware": [guard]}, root_path=root_path.rstrip("/") or None,
    )  # fmt: skip
    cut_logs()
    return address


async def _no_download(url: str, *_: Any, **__: Any) -> str:
    raise ValueError(f"{url} is a URL: pictures are uploaded, never fetched")


def free_port(host: str, port: int = 0) -> int:
    """Returns the port, or any free one for 0. Raises ValueError if it cannot be listened at."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listening:
            return int(listening.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error}): choose another --port, or another --host"
        ) from None


def serve(
    runs: Sequence[str | Path], images: Path | None, index: str | None, host: str, port: int, device: str = "auto",
    largest_pixels: int = LARGEST_PIXELS, names: Sequence[str] = (), root_path: str = "", precision: str = "fp32",
) -> None:  # fmt: skip
    """Loads the models and serves their pages until the process is stopped. Raises ValueError for bad arguments."""
    root_path_of(root_path)
    port = free_port(host, port)  # before loading, which takes minutes
    site = Site.load(runs, images, index, device, largest_pixels, precision)
    for note in site.pool.precision_notes():
        print(f"precision: {note}", file=sys.stderr)
    if site.album.passed_over:
        print(f"{site.album.folder}: {site.album.passed_over}", file=sys.stderr)
    blocks = build(site)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # exits normally, so that uploads are deleted
    address = start(blocks, host, port, names, root_path)
    print(f"{len(site.pool.models)} model(s) at {address} (Ctrl-C stops)", flush=True)
    blocks.block_thread()
