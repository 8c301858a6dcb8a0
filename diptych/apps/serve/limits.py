"""Defines every number that bounds a server's memory and time."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on a server. Raises ValueError for a limit that is not above 0 (`wait_ms` may be 0)."""

    body_bytes: int = 16 * MIB
    """Bytes of one request body as it is sent, counted while it is read."""
    held_bytes: int = 256 * MIB
    """Bytes of all bodies and answers that are held: being read, worked on, or not yet taken by their client."""
    pixels: int = 4096 * 4096
    """Pixels of one picture, read from its header before it is decoded."""
    text_length: int = 2_000
    """Characters of one text. Models read only its beginning: 30 to 40 tokens in this library's recipes."""
    items: int = 64
    """Pictures, or texts, of one request."""
    pairs: int = 1_024
    """Picture-text pairs of one match request."""
    queue: int = 256
    """Open requests to models: being read, prepared, waiting or answered. Further requests get status 429."""
    batch: int = 32
    """Rows (pictures, texts or pairs) of a batch of several requests. A larger request forms a batch of its own."""
    wait_ms: float = 4.0
    """Milliseconds that the first request of a batch waits for others that are being prepared, if there are any."""
    seconds: float = 30.0
    """Seconds from the complete request to its answer; then status 504."""
    body_seconds: float = 20.0
    """Seconds for the head of a request to arrive, and again for its body. Then the connection ends, or status 408."""
    grace_seconds: float = 30.0
    """Seconds that accepted requests may take after the signal to stop."""
    connections: int = 1_024
    """Open connections. Further ones are closed. At most as many as the process may open files for."""
    request_pixels: int = 8 * 4096 * 4096
    """Pixels that one request may cost: those of all its pictures, and of a picture again for each phrase in it."""
    answer_seconds: float = 30.0
    """Seconds that a client may take to read its answer. Then the connection is aborted."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 or (field.name == "wait_ms" and value == 0)):
                raise ValueError(f"{field.name} is {value}: a limit must be above 0")
