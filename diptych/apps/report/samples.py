"""A page of samples that shows what the records of some data look like, as one HTML file that loads nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from diptych.apps.report.html import LARGEST
from diptych.apps.report.page import fill
from diptych.data.convert import files_read
from diptych.data.heatmap import scaled_box
from diptych.data.pictures import LARGEST_PIXELS, open_small
from diptych.data.record import TASK_NAMES, AnyRecord, BadRecord, Entailment, PairStatement, Question, Referring
from diptych.data.sources.listing import SourceListing
from diptych.schema import Split
from diptych.writing import spare_page, write_text

MOST_ANSWERS = 5
MOST_PROPOSALS = 20
BOX, PROPOSAL = (230, 40, 40), (250, 200, 60)


@dataclass(frozen=True)
class Sample:
    """A record as the page shows it."""

    record: AnyRecord
    largest_pixels: int = LARGEST_PIXELS

    @property
    def pictures(self) -> Iterator[tuple[Image.Image | None, str]]:
        """Opens the pictures one by one. A picture that cannot be opened gives None and why."""
        name = next(iter(self.record.texts), self.record.id)
        for path in self.record.images:
            try:
                small, size = open_small(path, self.record.id, LARGEST, self.largest_pixels)
                yield _with_boxes(small, size, self.record), name
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


def write_samples(
    parts: Mapping[Split, SourceListing],
    file: Path,
    title: str,
    count: int,
    seed: int,
    largest_pixels: int = LARGEST_PIXELS,
    read: Sequence[str | Path] = (),
) -> Path:
    """Writes a page with `count` records of each split, drawn by `seed`, whole or not at all. Returns its path.

    Raises ValueError if the page would overwrite a file that is no page, or one that is `read`.
    """
    if count < 1:
        raise ValueError(f"--count is {count}: it must be at least 1")
    spare_page(file, files_read(parts, read))
    return write_text(file, render(parts, title, count, seed, largest_pixels))


def render(
    parts: Mapping[Split, SourceListing], title: str, count: int, seed: int, largest_pixels: int = LARGEST_PIXELS
) -> str:
    """Renders the page of samples. Raises ValueError where no split has a record."""
    splits = {split: found.records for split, found in parts.items() if found.records}
    if not splits:
        raise ValueError(f"{title} holds no record to show")
    samples = {
        split: [
            Sample(records[place], largest_pixels)
            for place in sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
        ]
        for split, records in splits.items()
    }
    kinds = {split: TASK_NAMES[type(records[0])] for split, records in splits.items()}
    sections = [(split, split, True) for split in splits]
    return fill("samples.html.j2", title=title, sections=sections, splits=splits, samples=samples, kinds=kinds)


def _with_boxes(small: Image.Image, size: tuple[int, int], record: AnyRecord) -> Image.Image:
    """Draws the box and the first proposals of a phrase on a picture that was scaled down from `size`."""
    if not isinstance(record, Referring):
        return small
    draw = ImageDraw.Draw(small)
    boxes = [(box, PROPOSAL) for box in record.proposals[:MOST_PROPOSALS]]
    for box, colour in [*boxes, *([(record.box, BOX)] if record.box else [])]:
        x, y, width, height = scaled_box(box, size, small.size)
        draw.rectangle([x, y, x + width, y + height], outline=colour, width=2)
    return small
