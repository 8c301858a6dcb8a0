"""`diptych search RUN "a fox left of a red car" --images DIR`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diptych.cli.hits import QUERY, add_options, check_options, show
from diptych.cli.loading import MODEL, add_device, add_largest_pixels, load_model

MIN_MATCH = (
    "leave out what matches with a lower probability, from 0 (keep all) to 1 or in percent, as in 0.5 or 50%% "
    "(default: what diptych evaluate found for this model; without that, 0)"
)


def probability(text: str) -> float:
    """Reads a probability: 0.5 or 50%. Whether it is one, `Predictor.min_match` checks.

    >>> probability("0.5"), probability("50%")
    (0.5, 0.5)
    """
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diptych search", description="Rank the pictures in a folder by a text.")
    parser.add_argument("run", help=MODEL)
    parser.add_argument("text", help=QUERY)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder, with its subfolders")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="pictures to show (default: 10)")
    parser.add_argument("--min-match", type=probability, metavar="P", help=MIN_MATCH)
    add_device(parser)
    parser.add_argument(
        "--no-cache", action="store_true", help="embed every picture, and do not keep the vectors for the next search"
    )
    add_largest_pixels(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)

    from diptych import predict

    model = load_model(options.run, options)
    found = predict.search_folder(
        model, options.text, options.images, options.top, min_match=options.min_match,
        fold_copies=not options.keep_copies, cache=not options.no_cache,
    )  # fmt: skip
    show(found, options)
