"""Writes an audit: a page to look at, the scores of all pairs, and lists to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from diptych.apps.audit.audit import Audit, Copy, Pair
from diptych.apps.report.html import LARGEST
from diptych.apps.report.page import fill
from diptych.data.convert import write_splits
from diptych.data.pictures import open_small
from diptych.data.record import BadRecord, Record
from diptych.writing import write_text

PAGE, SCORED = "audit.html", "pairs.jsonl"


def write_audit(audit: Audit, folder: Path, title: str, count: int = 48) -> str:
    """Writes `audit.html` with the `count` worst pairs, `pairs.jsonl`, and `train.jsonl` and so on with what is kept.

    Each file is whole or not written. Returns what was found and how the lists are used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_entry(pair), ensure_ascii=False) for pair in audit.pairs)
    scored = write_text(folder / SCORED, "".join(f"{line}\n" for line in lines))
    page = write_text(folder / PAGE, render(audit, title, count))
    return "\n".join([audit.summary(), f"page: {page}", f"scores: {scored}", write_splits(audit.kept(), folder)])


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
