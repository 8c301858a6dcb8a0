"""`diptych app RUN… [--images DIR] [--index PLACE]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diptych.cli.loading import MODEL, add_device


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych app",
        description="Try trained models in the browser: search, match, ask, entail, compare, locate, and look inside. "
        "A run also loads the runs in its tasks folder. The pages work without the internet.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=MODEL)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="pictures to show and search (default: those saved in a run's folder)",
    )
    parser.add_argument("--index", metavar="PLACE", help="an index to search instead, made by `diptych index build`")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at (default: 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another host name that browsers may use"
    )
    parser.add_argument(
        "--root-path", default="", metavar="PATH",
        help="prefix under which a proxy offers the app, as in /ai or https://example.org/ai",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--largest-pixels",
        type=int,
        default=100_000_000,
        metavar="N",
        help="refuse pictures of more pixels (default: 100000000)",
    )
    options = parser.parse_args(arguments)

    try:
        from diptych.apps.app.server import serve
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "diptych":
            raise
        raise ValueError(f"the web app needs {package}: pip install 'diptych[app]'") from error

    from diptych.pretrained import locate

    runs = [str(locate(run)) for run in options.runs]
    serve(
        runs, options.images, options.index, options.host, options.port, options.device, options.largest_pixels,
        options.allow_host, options.root_path, options.precision,
    )  # fmt: skip
