"""Reads queries with wanted and unwanted words, as search engines do: `a fox +snow -car^0.5`.

T terms, E embedding width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

PLUS, MINUS = 1.0, 0.5
"""Weights of `+word` and `-word` without a weight of their own; the words without a sign have weight 1."""
_TERM = re.compile(
    r"""(?:^|(?<=\s))(?P<sign>[+\-−])          # only at the beginning of a word, so that t-shirt stays whole
        (?:"(?P<phrase>[^"]+)"|(?P<word>[^\W_][^\s"^]*))
        (?:\^(?P<weight>\d+(?:\.\d+)?|\.\d+))?(?=\s|$)""",
    re.VERBOSE,
)

_WEIGHT = re.compile(r"""(?:(?<!\S)[+\-−]\S*\^\S*|[^\s^]*[^\W_]"?\^[\d.]*(?!\S))""")
"""A weight that is no number, or one behind words without a sign."""


class QueryError(ValueError):
    """A query asks for nothing that can be searched for."""


@dataclass(frozen=True)
class Term:
    """A text of a query and how much it counts: above 0 for what is wanted, below for what is not."""

    text: str
    weight: float


@dataclass(frozen=True)
class Query:
    """What a search looks for: a weighted sum of texts. The first term is wanted, and hits are matched with it."""

    terms: tuple[Term, ...]

    @property
    def texts(self) -> list[str]:
        return [term.text for term in self.terms]

    @property
    def is_plain(self) -> bool:
        """Whether it is a single text, which needs no sum."""
        return len(self.terms) == 1


def read_query(text: Any) -> Query:
    """Splits a query into the words without a sign and its terms: `+word`, `-word`, `+"two words"`, `-word^0.5`.

    A text without signs is one term, unchanged. Raises ValueError for what is no text, for a query that wants nothing,
    for weight 0 and for a weight that is no number or behind no term.

    >>> [(term.text, term.weight) for term in read_query('a fox in a t-shirt +snow -"red car"^0.3').terms]
    [('a fox in a t-shirt', 1.0), ('snow', 1.0), ('red car', -0.3)]
    """
    if not isinstance(text, str):
        raise QueryError(f"a search by words needs a text, and {text!r:.40} is none: give one str")
    found = list(_TERM.finditer(text))
    if misplaced := _WEIGHT.search(_TERM.sub(" ", text)):
        raise QueryError(f"{misplaced[0]!r}: a weight is a number behind a term with a sign, as in +snow^0.3")
    if not found:
        return Query((Term(text, 1.0),))
    terms = []
    for match in found:
        weight = PLUS if match["sign"] == "+" else MINUS
        if match["weight"]:
            weight = float(match["weight"])
        if weight == 0:
            raise QueryError(f"{match[0]} has weight 0: leave it out, or give it a weight above 0")
        terms.append(Term(match["phrase"] or match["word"], weight if match["sign"] == "+" else -weight))
    rest = " ".join(_TERM.sub(" ", text).split())
    wanted = [Term(rest, 1.0)] if rest else []
    wanted += [term for term in terms if term.weight > 0]
    if not wanted:
        raise QueryError(f"{text!r} says only what is unwanted: add what to look for, as in 'a fox {text.strip()}'")
    return Query((*wanted, *(term for term in terms if term.weight < 0)))
