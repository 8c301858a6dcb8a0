"""What building, changing and searching an index give back: small frozen values that print as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diptych.apps.index.items import Kind
from diptych.data.record import BadRecord

SHOWN = 60
"""Characters of a text in a table."""
NAMED = 20
"""Skipped ones that are listed."""


@dataclass(frozen=True)
class IndexHit:
    """A picture or text that was found."""

    id: str
    kind: Kind
    path: Path | None
    """Of a picture; None for texts."""
    text: str | None
    """None for pictures."""
    similarity: float
    """Cosine of its vector and the query's, in -1..1."""
    match: float | None
    """Probability that query and hit belong together, by the fusion encoder; None where it was not asked."""

    def __str__(self) -> str:
        name = self.id if self.text is None else f"{_cut(self.text)}  ({self.id})"
        return name if self.match is None else f"{name} {self.match:.1%}"


@dataclass(frozen=True)
class Found:
    """What fits a query best; `print` shows it as a table."""

    query: str
    """The text, or the picture's path."""
    hits: tuple[IndexHit, ...]
    """The best first: by match where that was asked, else by similarity; equal ones by id."""
    searched: int
    """Pictures, or texts, among which was searched."""
    how: str
    """How the nearest vectors were found, as in "exact, 1,000 vectors"."""
    unknown_words: tuple[str, ...] = ()
    """Words of the query that the tokenizer has no pieces for."""

    def __str__(self) -> str:
        kind = "text" if self.hits and self.hits[0].kind == "text" else "picture"
        lines = [f'"{self.query}" among {self.searched:,} {kind}s ({self.how})', "", f"      match  similarity  {kind}"]
        for place, hit in enumerate(self.hits, start=1):
            match = "–" if hit.match is None else f"{100 * hit.match:.1f} %"
            name = hit.id if hit.text is None else f"{_cut(hit.text)}  ({hit.id})"
            lines.append(f"{place:3} {match:>7}  {hit.similarity:10.3f}  {name}")
        if self.unknown_words:
            lines += ["", f"words the model cannot read: {', '.join(self.unknown_words)}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Built:
    """What building an index, or adding to one, did."""

    place: str
    added: int
    """Embedded in this call."""
    kept: int
    """Of the source, already there: in the index, or from an earlier call that was broken off."""
    skipped: tuple[BadRecord, ...]
    """What could not be read."""
    counts: Mapping[Kind, int]
    """What the index holds now."""
    how: Mapping[Kind, str]
    """How each is searched, as in "exact, 1,000 vectors"."""
    notes: tuple[str, ...] = ()
    """What a person should know: why something was begun anew."""

    def __str__(self) -> str:
        kept = f", {self.kept:,} were there" if self.kept else ""
        lines = [f"{self.place}: {self.added:,} added{kept}", *_held(self.counts, self.how)]
        if self.skipped:
            lines.append(f"{len(self.skipped):,} could not be used:")
            lines += [f"  {error}" for error in self.skipped[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(f"  … and {len(self.skipped) - NAMED:,} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Info:
    """What an index is, told without its model."""

    place: str
    checkpoint: str
    """Of the model that made it, where it was then."""
    digest: str
    """Of the model's weights and settings."""
    width: int
    """Numbers in a vector."""
    counts: Mapping[Kind, int]
    how: Mapping[Kind, str]
    roots: tuple[str, ...]
    """Where the pictures' paths start, a folder for each source."""
    skipped: tuple[str, ...] = field(default=(), repr=False)
    """What the last build or addition could not read; a server does not keep it."""

    def __str__(self) -> str:
        lines = [
            self.place,
            f"  model     {self.checkpoint} (weights {self.digest[:12]}), {self.width} numbers a vector",
        ]
        lines += [f"  source    {root}" for root in self.roots]
        lines += [f"  {line}" for line in _held(self.counts, self.how)]
        lines += [f"  skipped   {message}" for message in self.skipped]
        return "\n".join(lines)


def _held(counts: Mapping[Kind, int], how: Mapping[Kind, str]) -> list[str]:
    """A line a kind that there is, or one that there is nothing."""
    lines = [f"{kind + 's':<9} {how[kind]}" for kind, count in counts.items() if count]
    return lines or ["nothing is in it"]


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
