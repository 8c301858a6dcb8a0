"""`diptych serve RUN… [--index PLACE]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from diptych.apps.serve.limits import Limits

HELP = {
    "body_bytes": "bytes of one request",
    "held_bytes": "bytes of the bodies of all requests at once",
    "pixels": "pixels of one picture, refused before it is decoded",
    "text_length": "characters of one text",
    "items": "pictures, or texts, of one request",
    "pairs": "pictures × texts of one request to match",
    "queue": "requests in work at once; others get 429",
    "batch": "pictures, texts or pairs that requests are put together up to",
    "wait_ms": "how long a batch waits for requests that are being prepared",
    "seconds": "for an answer; then 504",
    "body_seconds": "for a request to arrive; then 408",
    "grace_seconds": "for what was taken, after the signal to stop",
    "connections": "open at once; further ones are closed",
}


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych serve",
        description="Answer over HTTP what models can be asked: embed, match, search, entail, answer, compare, locate. "
        "The page at / says how. SIGTERM or Ctrl-C finishes what was taken; a second one ends at once.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; runs in its tasks folder come along")
    parser.add_argument("--index", metavar="PLACE", help="what /v1/search searches, as diptych index made it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free (default: 8080)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="holds the key that requests must bring (or DIPTYCH_API_KEY)"
    )
    parser.add_argument("--no-key", action="store_true", help="let other machines ask without a key")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name that clients may call it by"
    )
    limits = parser.add_argument_group("limits")
    for field in fields(Limits):
        kind = type(field.default)
        assert kind in (int, float)
        limits.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N",
            help=f"{HELP[field.name]} (default: {field.default:,})",
        )  # fmt: skip
    given = parser.parse_args(arguments)
    chosen = Limits(**{field.name: getattr(given, field.name) for field in fields(Limits)})

    try:
        from diptych.apps.serve import server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("diptych"):
            raise
        raise ValueError(f"serving needs {error.name}: pip install 'diptych[serve]'") from None
    server.serve(
        given.runs, given.index, given.host, given.port, given.device, server.read_key(given.api_key_file),
        given.no_key, given.allow_host, chosen,
    )  # fmt: skip
