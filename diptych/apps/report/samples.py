"""A page of samples: what the records of some data look like. One HTML file that loads nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from diptych.apps.report.html import LARGEST, Html, picture, tag
from diptych.apps.report.shell import Section, page, write_whole
from diptych.data.pictures import open_picture
from diptych.data.record import TASK_NAMES, AnyRecord, BadRecord, Entailment, PairStatement, Question, Referring
from diptych.data.sources.listing import SourceListing
from diptych.schema import Split

WHOLE = "figure img { aspect-ratio: auto; }"
"""Here pictures are shown whole: boxes reach to their edges."""
MOST_ANSWERS = 5
MOST_PROPOSALS = 20
BOX, PROPOSAL = (230, 40, 40), (250, 200, 60)


def write_samples(parts: Mapping[Split, SourceListing], file: Path, title: str, count: int, seed: int) -> Path:
    """Write the page, whole or not at all: of each split `count` records, drawn by `seed`. Returns its path."""
    if count < 1:
        raise ValueError(f"--count is {count}: it must be at least 1")
    return write_whole(file, render(parts, title, count, seed))


def render(parts: Mapping[Split, SourceListing], title: str, count: int, seed: int) -> str:
    """The page."""
    shown = {split: found for split, found in parts.items() if found.records}
    if not shown:
        raise ValueError(f"{title} holds no record to show")
    sections = [_section(split, found, count, seed) for split, found in shown.items()]
    return page(title, sections, style=WHOLE)


def _section(split: Split, found: SourceListing, count: int, seed: int) -> Section:
    records = found.records
    places = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
    intro = f"{len(places)} of {len(records)} records ({TASK_NAMES[type(records[0])]})"
    cards = tag("div", [tag("div", _card(records[place]), class_="tile") for place in places], class_="tiles")
    return split, split, [tag("p", intro, class_="intro"), tag("div", cards, class_="tiles")]


def _card(record: AnyRecord) -> Iterator[Html]:
    for path in record.images:
        try:
            image = open_picture(path, record.id)
        except BadRecord as error:
            yield tag("p", f"{error.reason}: {error.detail}")
            continue
        yield tag("figure", picture(_marked(image, record), next(iter(record.texts), record.id)))
    for text in record.texts:
        yield tag("h3", text)
    for line in _facts(record):
        yield tag("p", line)
    yield tag("small", record.id)


def _facts(record: AnyRecord) -> Iterator[str]:
    if isinstance(record, Entailment):
        yield record.label
    elif isinstance(record, PairStatement):
        yield "true" if record.label else "false"
    elif isinstance(record, Question):
        likeliest = sorted(record.targets, key=lambda target: -target[1])[:MOST_ANSWERS]
        yield ", ".join(f"{answer} ({weight:.2g})" for answer, weight in likeliest) or "no answer known"
    elif isinstance(record, Referring):
        yield f"{len(record.proposals)} proposals" + (f", {record.part}" if record.part else "")


def _marked(image: Image.Image, record: AnyRecord) -> Image.Image:
    """The picture at the size it is shown, with a phrase's box and the first proposals."""
    if not isinstance(record, Referring):
        return image
    scale = min(1.0, LARGEST / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(small)
    boxes = [(box, PROPOSAL) for box in record.proposals[:MOST_PROPOSALS]]
    for (x, y, width, height), colour in [*boxes, *([(record.box, BOX)] if record.box else [])]:
        draw.rectangle([x * scale, y * scale, (x + width) * scale, (y + height) * scale], outline=colour, width=2)
    return small
