"""Published checkpoints in and out: what a file is, the checkpoint of ours that it becomes, and the way back."""

from diptych.pretrained.assemble import LAYOUTS, Assembled, assemble
from diptych.pretrained.describe import inspect
from diptych.pretrained.exchange import convert, export, fresh_parts, from_pretrained
from diptych.pretrained.family import Options

__all__ = [
    "LAYOUTS",
    "Assembled",
    "Options",
    "assemble",
    "convert",
    "export",
    "fresh_parts",
    "from_pretrained",
    "inspect",
]
