"""Seeds of random streams, as pure functions of each stream's purpose."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on every part and not on the machine: `seed_of(seed, "masking", step)`."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
