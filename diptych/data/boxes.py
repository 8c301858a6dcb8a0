"""Notes boxes that cannot be meant as they are written: outside of their picture, as corners, or as shares of it.

A box is x, y, width and height in pixels (`record.Box`). Other tools write two corners, or shares of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from diptych.data.record import AnyRecord, Box, Referring

ENOUGH = 20
"""Fewer boxes may all lie near the upper left corner."""
SLACK = 1.0
"""Pixels by which a box may leave its picture, since published ones are rounded."""


class BoxCheck:
    """Counts the boxes of a split, and those that look wrong."""

    def __init__(self) -> None:
        self.boxes = 0
        self.sized = 0
        """Boxes whose picture's size is known."""
        self.shares = 0
        """Boxes whose numbers are all within 0..1."""
        self.outside = 0
        """Boxes that leave their picture."""
        self.corners = 0
        """Boxes that would fit into their picture if their last two numbers were a corner."""
        self.example = ""
        self.named = 0
        """Phrases with a box."""
        self.larger = 0
        """Those whose last two numbers exceed the first two, as they do in corners."""
        self.different: set[Box] = set()
        self.phrases = 0
        """Phrases with a box and with proposals."""
        self.missed = 0
        """Those of which no proposal overlaps the box."""

    def add(self, record: AnyRecord, size: tuple[int, int] | None) -> None:
        """Counts the boxes of a record whose picture has this `size` (width, height), or None if it is unknown."""
        if isinstance(record, Referring) and record.box:
            x, y, width, height = record.box
            self.larger += 0 < x < width and 0 < y < height
            self.different.add(record.box)
            self.phrases += bool(record.proposals)
            self.missed += bool(record.proposals) and not any(overlap(record.box, box) for box in record.proposals)
            self.named += 1
        for box in boxes_of(record):
            self.boxes += 1
            self.shares += max(box) <= 1
            if size is None:
                continue
            self.sized += 1
            x, y, right, bottom = box
            self.corners += x < right <= size[0] + SLACK and y < bottom <= size[1] + SLACK
            if leaves(box, size):
                self.outside += 1
                numbers = ", ".join(f"{number:g}" for number in box)
                self.example = self.example or f"[{numbers}] in the {size[0]} × {size[1]} pixels of {record.id}"

    def notes(self) -> Iterator[str]:
        """Says what looks wrong."""
        count = f"{self.boxes:,} box{'es' if self.boxes > 1 else ''}"
        if self.boxes and self.shares == self.boxes:
            yield (
                f"the numbers of all {count} are within 0..1, as shares of the picture: a box is x, y, width and "
                "height in pixels"
            )
        elif self.outside and self.corners == self.sized:
            yield (
                f"{self.outside:,} of {count} leave their picture, such as {self.example}, and all would fit as two "
                "corners (x1, y1, x2, y2): a box is x, y, width and height"
            )
        elif self.outside:
            yield f"{self.outside:,} of {count} leave their picture, such as {self.example}"
        elif self.larger == self.named >= ENOUGH and len(self.different) > 2 and self.shares < self.boxes:
            yield (
                f"in all {self.named:,} boxes the third number is larger than the first and the fourth than the second,"
                " as in two corners (x1, y1, x2, y2): a box is x, y, width and height. `diptych data show` draws them"
            )
        if self.missed > self.phrases / 2:
            yield (
                f"no proposal overlaps the box in {self.missed:,} of {self.phrases:,} phrases, so that none can be"
                " right: both are x, y, width and height in pixels of the whole picture"
            )


def boxes_of(record: AnyRecord) -> tuple[Box, ...]:
    """Returns the box and the proposals of a phrase; none for other records."""
    if not isinstance(record, Referring):
        return ()
    return (*((record.box,) if record.box else ()), *record.proposals)


def overlap(first: Box, second: Box) -> bool:
    """Returns whether two boxes share an area.

    >>> box = (10.0, 12.0, 20.0, 22.0)
    >>> overlap(box, (50.0, 50.0, 5.0, 5.0)), overlap(box, (25.0, 30.0, 9.0, 9.0))
    (False, True)
    """
    return all(
        max(first[axis], second[axis]) < min(first[axis] + first[axis + 2], second[axis] + second[axis + 2])
        for axis in (0, 1)
    )


def leaves(box: Box, size: tuple[int, int]) -> bool:
    """Returns whether a box leaves a picture of this width and height by more than `SLACK` pixels.

    >>> leaves((32.0, 32.0, 32.0, 33.0), (64, 64)), leaves((32.0, 32.0, 52.0, 52.0), (64, 64))
    (False, True)
    """
    x, y, width, height = box
    return min(x, y) < -SLACK or x + width > size[0] + SLACK or y + height > size[1] + SLACK
