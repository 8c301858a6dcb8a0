"""Reads lists of texts that were written into one text, and tells texts that seem to hold several.

pandas writes the lists, tuples and arrays of a column as texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diptych.printable import printable
from diptych.reading import parse_json

_LIST = re.compile(r"\s*(?:array\(\s*\[(.*)\]\s*(?:,\s*dtype=[^()\[\]]*)?\)|\[(.*)\]|\((.*,.*)\))\s*", re.DOTALL)
"""The inside of a list that Python or NumPy wrote, an array, or a tuple, which has a comma."""
_ENTRY = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?:,\s*)?""", re.DOTALL)
"""An entry of a list of texts that Python or NumPy wrote."""
MARKS: Mapping[str, str] = {
    "\n": "line breaks", "<sep>": "<SEP>", "[sep]": "[SEP]", "\\n": "the letters \\n", "|": "bars", ";": "semicolons"
}  # fmt: skip
"""What people write between several texts, in words."""
MOST = 0.5
"""If more than this share of the texts look like several, all may be meant so."""
LOOKED_AT = 1_000
"""This many texts are looked at."""
SHOWN = 80
"""Letters of an example."""


def written_list(text: str) -> Any:
    """Returns the list that a text is, as JSON, Python or NumPy write one. Any other text is returned as it is.

    >>> written_list("['a cat', 'a dog']"), written_list("['a' 'b']"), written_list("[sic] a cat")
    (['a cat', 'a dog'], ['a', 'b'], '[sic] a cat')
    >>> written_list("('a', 'b')"), written_list("array(['a', 'b'], dtype=object)"), written_list("('a cat')")
    (['a', 'b'], ['a', 'b'], "('a cat')")
    """
    if not text.lstrip().startswith(("[", "(", "array(")):
        return text
    if text.lstrip().startswith("["):
        try:
            return parse_json(text)
        except ValueError:
            pass
    if not text.rstrip().endswith(("]", ")")) or not (match := _LIST.fullmatch(text)):
        return text
    inner, place, entries = next(part for part in match.groups() if part is not None), 0, []
    while entry := _ENTRY.match(inner, place):
        entries.append(entry[1])
        place = entry.end()
    is_list = len(entries) > (match[3] is not None and not inner.rstrip().endswith(",")) and place == len(inner)
    try:  # one entry at a time, because Python joins those between which no comma stands
        return list(map(ast.literal_eval, entries)) if is_list else text
    except (ValueError, SyntaxError):
        return text


def note_on_several(captions: Sequence[str]) -> str:
    """Returns a sentence if most captions look like several in one, which nothing proves; else an empty text."""
    looked = captions[:: max(1, len(captions) // LOOKED_AT)]
    for what, fits in (
        *((f"hold {words} between their parts", _has_parts(mark)) for mark, words in MARKS.items()),
        ("are objects, as of one text a language", lambda text: text.startswith("{") and text.endswith("}")),
    ):
        fitting = [text for caption in looked if fits(text := caption.strip())]
        if len(fitting) > MOST * len(looked):
            return (
                f"{len(fitting)} of {len(looked)} captions {what}, such as {printable(fitting[0][:SHOWN])!r}. Each is"
                ' read as one caption. If they are several, write them as a JSON list (["a fox", "an animal"]), or each'
                " in a row of its own"
            )
    return ""


def _has_parts(mark: str) -> Any:
    return lambda text: mark in text.lower() and all(map(str.strip, text.lower().split(mark)))
