"""Defines the values that building, changing and searching an index return. `print` shows them as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.apps.index.items import Kind
from diptych.apps.index.presence import named
from diptych.data.record import BadRecord
from diptych.nn.lowered import Precision
from diptych.predict.duplicates import copies_noted
from diptych.predict.identity import SHORT
from diptych.predict.results import EVERYTHING, MinMatch
from diptych.printable import printable

TEXT_WIDTH = 60
"""Characters of a text that a table shows."""
LISTED = 20
"""Number of skipped items that a report lists."""


@dataclass(frozen=True)
class IndexHit:
    """A picture or text that a search found."""

    id: str
    kind: Kind
    path: Path | None
    """The file of a picture; None for texts."""
    text: str | None
    """None for pictures."""
    similarity: float
    """Cosine of its vector and the query's, in -1..1."""
    match: float | None
    """Probability that the hit is right, by the fusion encoder, if the model is calibrated; otherwise ITM's softmax.
    None without re-ranking."""
    copies: tuple[str, ...] = ()
    """Ids of further pictures that nearly equal it, if near-duplicates are folded."""

    def __str__(self) -> str:
        return self.label if self.match is None else f"{self.label} {self.match:.1%}"

    @property
    def label(self) -> str:
        """The id, after the beginning of a text."""
        return self.id if self.text is None else f"{_shortened(self.text)}  ({self.id})"


@dataclass(frozen=True)
class SearchResults:
    """What fits a query best; `print` shows it as a table."""

    query: str
    """The text, or the path of the picture."""
    hits: tuple[IndexHit, ...]
    """Best first: by match if re-ranked, else by similarity; equal ones by id."""
    searched: int
    """Number of pictures, or texts, that were searched."""
    search_method: str
    """How the nearest vectors were found, as in "exact, 1,000 vectors"."""
    unknown_words: tuple[str, ...] = ()
    """Words of the query that the tokenizer has no pieces for."""
    of: Kind = "picture"
    """What was searched."""
    min_match: MinMatch = EVERYTHING
    """Items that match with less were left out."""
    best_match: float | None = None
    """The highest probability of a match, whether that item is among the hits or not; None without re-ranking."""
    notes: tuple[str, ...] = ()
    """Remarks for the user: which hits are gone or changed, and what re-ranking could not open."""

    @property
    def nothing(self) -> str | None:
        """Says that nothing matches; None if there are hits."""
        if not self.hits and self.best_match is None and self.notes:
            return f"none of the nearest {self.of}s can be opened"
        return None if self.hits else self.min_match.nothing(self.of, self.best_match)

    def __str__(self) -> str:
        title = f'"{self.query}" among {self.searched:,} {self.of}s ({self.search_method})'
        lines = [title, "", self.nothing or f"      match  similarity  {self.of}"]
        for place, hit in enumerate(self.hits, start=1):
            match = "–" if hit.match is None else f"{100 * hit.match:.1f} %"
            lines.append(
                f"{place:3} {match:>7}  {hit.similarity:10.3f}  {printable(hit.label)}{copies_noted(hit.copies)}"
            )
        if self.min_match.note:
            lines += ["", self.min_match.note]
        if self.unknown_words:
            lines += ["", f"words the model cannot read: {', '.join(self.unknown_words)}"]
        if self.notes:
            lines += ["", *map(printable, self.notes)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: what was searched, and each hit with the path of its picture or with its text."""
        return {
            "query": self.query, "of": self.of, "searched": self.searched, "search_method": self.search_method,
            "min_match": self.min_match.least, "best_match": self.best_match,
            "hits": [
                {
                    "name": hit.id, "path": None if hit.path is None else str(hit.path), "text": hit.text,
                    "similarity": hit.similarity, "match": hit.match, "copies": list(hit.copies),
                }
                for hit in self.hits
            ],
            "unknown_words": list(self.unknown_words), "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class BuildReport:
    """Reports what building an index, or adding to one, did."""

    place: str
    added: int
    """Number of items embedded in this call."""
    kept: int
    """Number of the source's items that were stored already, in the index or by an interrupted call."""
    skipped: tuple[BadRecord, ...]
    """Items that could not be read."""
    counts: Mapping[Kind, int]
    """Number of items of each kind that the index holds now."""
    search_methods: Mapping[Kind, str]
    """How each kind is searched, as in "exact, 1,000 vectors"."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, such as why an index was begun anew."""
    renamed: int = 0
    """Number of the added pictures whose file only has another name now. Their earlier names are removed."""
    gone: tuple[str, ...] = ()
    """Ids of items of this source that the index holds and the source has no more. They stay unless they are pruned."""
    pruned: int = 0
    """Number of such items that were removed."""

    def __str__(self) -> str:
        kept = f", {self.kept:,} already there" if self.kept else ""
        renamed = f" ({self.renamed:,} of them renamed)" if self.renamed else ""
        lines = [f"{self.place}: {self.added:,} added{renamed}{kept}", *_contents(self.counts, self.search_methods)]
        if self.pruned:
            lines.append(f"{self.pruned:,} removed, which the source has no more")
        if self.gone:
            lines.append(
                f"{len(self.gone):,} in the index, which the source has no more: {printable(named(self.gone))} "
                "(`diptych index add PLACE SOURCE --prune` removes them)"
            )
        if self.skipped:
            lines.append(f"{len(self.skipped):,} could not be used:")
            lines += [f"  {error}" for error in self.skipped[:LISTED]]
        if len(self.skipped) > LISTED:
            lines.append(f"  … and {len(self.skipped) - LISTED:,} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class IndexInfo:
    """Describes an index without its model."""

    place: str
    checkpoint: str
    """Path of the model that made the index, at that time."""
    digest: str
    """Digest of the model's weights and settings."""
    width: int
    """Width of the vectors."""
    counts: Mapping[Kind, int]
    search_methods: Mapping[Kind, str]
    roots: tuple[str, ...]
    """For each source the folder at which the pictures' paths start."""
    skipped: tuple[str, ...] = field(default=(), repr=False)
    """What the last build or addition could not read. A server does not store it."""
    precision: Precision = "fp32"
    """The precision in which the model computed the first vectors."""

    def __str__(self) -> str:
        lines = [
            self.place,
            f"  model     {self.checkpoint} (weights {self.digest[:SHORT]}), "
            f"vectors of width {self.width} in {self.precision}",
        ]
        lines += [f"  source    {root}" for root in self.roots]
        lines += [f"  {line}" for line in _contents(self.counts, self.search_methods)]
        lines += [f"  skipped   {message}" for message in self.skipped]
        return "\n".join(map(printable, lines))


def _contents(counts: Mapping[Kind, int], search_methods: Mapping[Kind, str]) -> list[str]:
    """Returns a line for each kind that the index holds."""
    lines = [f"{kind + 's':<9} {search_methods[kind]}" for kind, count in counts.items() if count]
    return lines or ["it is empty"]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_WIDTH else f"{line[: TEXT_WIDTH - 1]}…"
