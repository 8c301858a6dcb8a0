"""`diptych serve RUN… [--index PLACE]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from diptych.apps.serve.limits import Limits
from diptych.cli.loading import MODEL, add_device

HELP = {
    "body_bytes": "bytes of one request",
    "held_bytes": "bytes of the bodies and answers of all requests at once",
    "pixels": "pixels of one picture; larger ones are refused before they are decoded",
    "text_length": "characters of one text",
    "items": "pictures, or texts, of one request",
    "pairs": "pairs (pictures × texts) of one request to match",
    "queue": "requests in progress at once; others get 429",
    "batch": "pictures, texts or pairs in one batch of requests",
    "wait_ms": "milliseconds that a batch waits for requests that are being prepared",
    "seconds": "seconds for an answer; then 504",
    "body_seconds": "seconds for a request to arrive; then 408",
    "grace_seconds": "seconds for accepted requests after the signal to stop",
    "connections": "connections at once; further ones are closed",
    "request_pixels": "pixels of all pictures of one request, counted again for each phrase that is located",
    "answer_seconds": "seconds for a client to read its answer; then the connection is aborted",
}


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych serve",
        description="Serve models over HTTP: embed, match, search, entail, answer, compare, locate. The page at / "
        "explains the requests. SIGTERM or Ctrl-C finishes accepted requests; a second one ends at once.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help=f"{MODEL}; the runs in a run's tasks folder are loaded too"
    )
    parser.add_argument("--index", metavar="PLACE", help="an index for /v1/search, made by `diptych index build`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument(
        "--port", type=int, default=8080, help="port to listen at; 0 takes any free one (default: 8080)"
    )
    add_device(parser)
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file of the key that requests must have (or DIPTYCH_API_KEY)"
    )
    parser.add_argument("--no-key", action="store_true", help="let other machines send requests without a key")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another host name that clients may use"
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="web pages that may send requests, as in https://photos.example.org; * allows all (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--root-path", default="", metavar="PATH",
        help="prefix under which a proxy offers the server, as in /ai or https://example.org/ai",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    for field in fields(Limits):
        kind = type(field.default)
        assert kind in (int, float)
        limits.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N",
            help=f"{HELP[field.name]} (default: {field.default:,})",
        )  # fmt: skip
    options = parser.parse_args(arguments)
    limits_set = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})

    try:
        from diptych.apps.serve import server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("diptych"):
            raise
        raise ValueError(
            f"serving needs {(error.name or '').partition('.')[0]}: pip install 'diptych[serve]'"
        ) from None
    from diptych.pretrained import locate

    runs = [str(locate(run)) for run in options.runs]
    server.serve(
        runs, options.index, options.host, options.port, options.device, server.read_key(options.api_key_file),
        options.no_key, options.allow_host, limits_set, options.root_path, options.precision,
        options.allow_origin,
    )  # fmt: skip
