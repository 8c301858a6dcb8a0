"""One schema for image-text pairs, and the protocol of whatever serves them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Record:
    """A picture and its captions: one line of JSON.

    `{"id": "…", "image": "relative/path.jpg", "captions": ["…"], "image_id": "…", "clean": ["…"]}`;
    `caption` with one string may stand for `captions`; `id` defaults to `FILE:LINE`, `image_id` to the image path.
    """

    id: str
    """Names the record in messages; unique in its source."""
    image: Any
    """What the source needs to produce the picture: a path for files, an index for made scenes."""
    captions: tuple[str, ...]
    image_id: str
    """Equal for equal pictures, whatever record they come from."""
    clean: tuple[str, ...] = ()
    """The captions without the noise that was put into `captions`; empty where none was."""


class BadRecord(ValueError):
    """A record that cannot be used. `reason` is a short fixed phrase to count by; the message names the record."""

    def __init__(self, record: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{record}: {reason}" + (f" ({detail})" if detail else ""))
        self.record = record
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.record, self.reason, self.detail)


@runtime_checkable
class Source(Protocol):
    """An ordered set of records. Cheap to index; pictures are made or decoded only on request. Picklable."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """What could not become a record when the source was opened (broken lines, missing files, empty captions)."""
        ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...

    def picture(self, record: Record) -> Image.Image:
        """An RGB picture. Raises BadRecord."""
        ...
