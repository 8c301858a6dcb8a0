"""Published checkpoints in and out. `assemble.py` takes a published file from its bytes to the state of a task:

1. formats.py    reads the file without executing anything in it, and recognises its layout by names and shapes
2. albef.py, vlmo.py    hold each system's layouts; from the shapes they tell the model's configuration
3. albef_names.py, vlmo_names.py    say what each published tensor is called here, or why it is dropped or may be absent
4. checkpoints/convert.py    applies these tables, so that no tensor is left over or missing without a reason
5. albef.py, vlmo.py    resize positions to another image size or text length, where that is wanted
6. exchange.py    writes the checkpoint folder, makes a model of it, or exports a run the other way round

Weights that are named and not there come first: published.py lists names and addresses, fetch.py fetches files and goes
on after a break, named.py keeps them in a cache, checks them, and finds the model of a name.
"""

from diptych.pretrained.assemble import LAYOUTS, Assembled, assemble
from diptych.pretrained.describe import inspect
from diptych.pretrained.exchange import convert, export, fresh_parts
from diptych.pretrained.family import Options
from diptych.pretrained.named import from_pretrained, load, locate, resolve

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
    "load",
    "locate",
    "resolve",
]
