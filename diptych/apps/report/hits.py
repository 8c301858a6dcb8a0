"""A page with the hits of a search, as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.apps.report.html import LARGEST
from diptych.apps.report.page import fill
from diptych.data.pictures import open_picture
from diptych.data.record import BadRecord
from diptych.writing import spare_page, write_text


def write_hits(found: Mapping[str, Any], file: Path) -> Path:
    """Writes a page with the hits of a search, whole or not at all. Returns its path. Raises ValueError if the page
    would overwrite a file that is no page.

    `found` is what `to_json` of `SearchResult` or `SearchResults` returns.
    """
    spare_page(file)
    sections = [("hits", "Hits", True)]
    return write_text(
        file, fill("hits.html.j2", title=found["query"], sections=sections, found=found, hits=list(_opened(found)))
    )


def _opened(found: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Image.Image | None, str]]:
    """Opens the pictures of hits, with the address of each file. One that cannot be opened has the reason instead."""
    for hit in found["hits"]:
        if hit["path"] is None:
            yield hit, None, ""
            continue
        linked = {**hit, "address": Path(hit["path"]).absolute().as_uri()}
        try:
            yield linked, reduced(open_picture(hit["path"], hit["name"])), ""
        except BadRecord as error:
            yield linked, None, error.reason


def reduced(image: Image.Image) -> Image.Image:
    """Reduces a picture to the side at which pages store it, so that a page of many holds little in memory."""
    image.thumbnail((LARGEST, LARGEST))
    return image
