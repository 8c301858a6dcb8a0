"""A page of samples that shows what the records of some data look like, as one HTML file that loads nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from diptych.apps.report.html import LARGEST
from diptych.apps.report.page import fill
from diptych.data.pictures import open_picture
from diptych.data.record import TASK_NAMES, AnyRecord, BadRecord, Entailment, PairStatement, Question, Referring
from diptych.data.sources.listing import SourceListing
from diptych.schema import Split
from diptych.writing import write_text

MOST_ANSWERS = 5
MOST_PROPOSALS = 20
BOX, PROPOSAL = (230, 40, 40), (250, 200, 60)


@dataclass(frozen=True)
class Sample:
    """A record as the page shows it."""

    record: AnyRecord

    @property
    def pictures(self) -> Iterator[tuple[Image.Image | None, str]]:
        """Opens the pictures one by one. A picture that cannot be opened gives None and why."""
        name = next(iter(self.record.texts), self.record.id)
        for path in self.record.images:
            try:
                yield _with_boxes(open_picture(path, self.record.id), self.record), name
            except BadRecord as error:
                yield None, f"{error.reason}: {error.detail}"

    @property
    def label(self) -> str:
        """The label of a record in words; empty where its kind has none."""
        match self.record:
            case Entailment(label=label):
                return label
            case PairStatement(label=label):
                return "true" if label else "false"
            case Question(targets=targets):
                likeliest = sorted(targets, key=lambda target: -target[1])[:MOST_ANSWERS]
                return ", ".join(f"{answer} ({weight:.2g})" for answer, weight in likeliest) or "no answer known"
            case Referring(proposals=proposals, part=part):
                return f"{len(proposals)} proposals" + (f", {part}" if part else "")
            case _:
                return ""


def write_samples(parts: Mapping[Split, SourceListing], file: Path, title: str, count: int, seed: int) -> Path:
    """Writes a page with `count` records of each split, drawn by `seed`, whole or not at all. Returns its path."""
    if count < 1:
        raise ValueError(f"--count is {count}: it must be at least 1")
    return write_text(file, render(parts, title, count, seed))


def render(parts: Mapping[Split, SourceListing], title: str, count: int, seed: int) -> str:
    """Renders the page of samples. Raises ValueError where no split has a record."""
    splits = {split: found.records for split, found in parts.items() if found.records}
    if not splits:
        raise ValueError(f"{title} holds no record to show")
    samples = {
        split: [
            Sample(records[place])
            for place in sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
        ]
        for split, records in splits.items()
    }
    kinds = {split: TASK_NAMES[type(records[0])] for split, records in splits.items()}
    sections = [(split, split, True) for split in splits]
    return fill("samples.html.j2", title=title, sections=sections, splits=splits, samples=samples, kinds=kinds)


def _with_boxes(image: Image.Image, record: AnyRecord) -> Image.Image:
    """Draws the box and the first proposals of a phrase on the picture, at the size at which it is shown."""
    if not isinstance(record, Referring):
        return image
    scale = min(1.0, LARGEST / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(small)
    boxes = [(box, PROPOSAL) for box in record.proposals[:MOST_PROPOSALS]]
    for (x, y, width, height), colour in [*boxes, *([(record.box, BOX)] if record.box else [])]:
        draw.rectangle([x * scale, y * scale, (x + width) * scale, (y + height) * scale], outline=colour, width=2)
    return small
