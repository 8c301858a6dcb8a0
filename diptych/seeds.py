"""Seeds of random streams as pure functions of their purpose."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """Hashes the parts to a 63-bit seed, the same on every machine: `seed_of(seed, "masking", step)`."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
