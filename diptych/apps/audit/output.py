"""Writes an audit: a page to look at, the scores of all pairs, and lists to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from diptych.apps.audit.audit import Audit, Copy, Pair
from diptych.apps.report.html import LARGEST
from diptych.apps.report.page import fill
from diptych.data.convert import files_read, spare_data, write_splits
from diptych.data.files import json_lines
from diptych.data.pictures import open_small
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.schema import Split
from diptych.writing import spare, write_text

PAGE, SCORED = "audit.html", "pairs.jsonl"
NOTHING_FITS = (
    "no list is written, since no pair would be left: the model has not learnt from pairs like these. With --drop 0.1 "
    "the worst tenth is left out, whatever the scores"
)


def write_audit(audit: Audit, folder: Path, title: str, count: int = 48, read: Sequence[str | Path] = ()) -> str:
    """Writes `audit.html` with the `count` worst pairs, `pairs.jsonl`, and `train.jsonl` and so on with what is kept.

    Each file is whole or not written. Returns what was found and how the lists are used. Raises ValueError where
    `spare_audit` does; `read` names the files that the data were read from.
    """
    spare_audit(audit.listings, folder, read)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_entry(pair), ensure_ascii=False) for pair in audit.pairs)
    scored = write_text(folder / SCORED, "".join(f"{line}\n" for line in lines))
    page = write_text(folder / PAGE, render(audit, title, count))
    lists = NOTHING_FITS
    if len(audit.dropped) < len(audit.pairs):
        lists = write_splits(audit.kept(), folder, read=read)
    return "\n".join([audit.summary(), f"page: {page}", f"scores: {scored}", lists])


def spare_audit(listings: Mapping[Split, SourceListing], folder: Path, read: Sequence[str | Path]) -> None:
    """Raises ValueError if `write_audit` would overwrite a file that is read, or what no audit wrote."""
    spare([folder / PAGE, folder / SCORED], files_read(listings, read), _is_own)
    spare_data(listings, folder, read)


def _is_own(file: Path) -> bool:
    if file.name == PAGE:
        return True
    first = next(json_lines(file), ("", None))[1]
    return first is None or (isinstance(first, dict) and {"contrast", "score", "dropped"} <= first.keys())


def _entry(pair: Pair) -> dict[str, object]:
    return {
        "split": pair.split, "id": pair.record.id, "image": str(pair.record.image), "caption": pair.caption,
        "similarity": round(pair.similarity, 4), "contrast": round(pair.contrast, 3),
        "match": None if pair.match is None else round(pair.match, 3), "score": round(pair.score, 3),
        "dropped": pair.dropped, "empty": pair.empty,
    }  # fmt: skip


def render(audit: Audit, title: str, count: int = 48) -> str:
    """Renders the page."""
    sections = [("worst", "Worst pairs", True), ("empty", "Captions that say nothing", bool(audit.empty)),
                ("copies", "Images of several splits", bool(audit.copies))]  # fmt: skip
    return fill(
        "audit.html.j2", title=f"Audit of {title}", sections=sections, audit=audit,
        summary=audit.summary().splitlines(),
        worst=_shown(audit.pairs[:count]), empty=_shown(audit.empty[:count]), copies=_copies(audit.copies[:count]),
    )  # fmt: skip


def _shown(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Image.Image | None, str]]:
    for pair in pairs:
        yield (pair, *_opened(pair.record))


def _copies(copies: Sequence[Copy]) -> Iterator[tuple[Copy, Image.Image | None, Image.Image | None]]:
    for copy in copies:
        yield copy, _opened(copy.record)[0], _opened(copy.training)[0]


def _opened(record: Record) -> tuple[Image.Image | None, str]:
    """Opens a record's image at the size of pages. One that cannot be opened gives None and why."""
    try:
        return open_small(record.image, record.id, LARGEST)[0], ""
    except BadRecord as error:
        return None, error.reason
