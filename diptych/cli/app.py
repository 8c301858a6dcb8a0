"""`diptych app RUN… [--images DIR] [--index PLACE]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych app",
        description="Try trained models in the browser: search, match, ask, entail, compare, locate, and look inside. "
        "A run brings those in its tasks folder. The pages work without the internet.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a checkpoint; several are fine")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="pictures to show and search (default: those saved beside a run)"
    )
    parser.add_argument("--index", metavar="PLACE", help="what to search instead: what `diptych index build` made")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    parser.add_argument("--host", default="127.0.0.1", help="who may come: 0.0.0.0 lets everybody (default: 127.0.0.1)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    given = parser.parse_args(arguments)

    try:
        from diptych.apps.app.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"the web app needs {error.name}: pip install 'diptych[app]'") from error

    serve(given.runs, given.images, given.index, given.host, given.port, given.device)
