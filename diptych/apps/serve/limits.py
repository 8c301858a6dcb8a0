"""What a server takes and how long it waits: every number that bounds its memory or its time."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Raises ValueError for a limit that is not above 0 (`wait_ms` may be)."""

    body_bytes: int = 16 * MIB
    """Of one request, as it is sent; counted while it is read."""
    held_bytes: int = 256 * MIB
    """Of the bodies of all requests at once. A body, its JSON and its pictures together take about three times this."""
    pixels: int = 4096 * 4096
    """Of one picture, by its header, before it is decoded."""
    text_length: int = 2_000
    """Characters of one text. Models read the first words only: 30 to 40 tokens in the recipes here."""
    items: int = 64
    """Pictures, or texts, of one request."""
    pairs: int = 1_024
    """Pictures × texts of one request to match."""
    queue: int = 256
    """Requests in the server that ask a model: being read, prepared, waiting or answered. Others get 429."""
    batch: int = 32
    """Rows (pictures, texts or pairs) that requests are put together up to; a larger request goes alone."""
    wait_ms: float = 4.0
    """How long the first request of a batch waits for others that are being prepared; with none it does not wait."""
    seconds: float = 30.0
    """From the whole request to its answer; then 504."""
    body_seconds: float = 20.0
    """For the head and again for the body of a request to arrive; then the connection ends, or 408."""
    grace_seconds: float = 30.0
    """What was taken may take this long after the signal to stop."""
    connections: int = 1_024
    """Open at once; further ones are closed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 or (field.name == "wait_ms" and value == 0)):
                raise ValueError(f"{field.name} is {value}: a limit lies above 0")
