"""The options of verbs that load a model, and the line that says in which precision it computes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.predict import Predictor

PRECISION = (
    "auto, fp32, bf16 or int8 (CPUs only); auto takes the fastest on this machine that loses little (default: {})"
)

MODEL = (
    "a run's folder, one of its checkpoints, an exported folder, OWNER/NAME on the Hugging Face Hub, or the name of "
    "published weights"
)
"""Help for what names a model."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where, and in which precision, a model computes."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    add_precision(parser, "auto")


def add_precision(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the option of the precision alone."""
    parser.add_argument("--precision", default=default, metavar="P", help=PRECISION.format(default))


def add_largest_pixels(parser: argparse.ArgumentParser) -> None:
    """Adds the option that admits larger pictures."""
    parser.add_argument(
        "--largest-pixels",
        type=int,
        metavar="N",
        help="refuse pictures of more pixels (default: as the model was trained)",
    )


def load_model(run: str, options: argparse.Namespace) -> Predictor:
    """Loads a model as the options say."""
    from diptych import pretrained

    model = pretrained.load(run, options.device, options.largest_pixels, options.precision)
    tell_precision([model.precision_note])
    return model


def tell_precision(notes: Iterable[str]) -> None:
    """Says in which precision models compute, where `auto` chose it."""
    for note in filter(None, notes):
        print(f"precision: {note}", file=sys.stderr)
