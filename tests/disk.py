"""A disk that is full, as far as this process and those that it starts can tell."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(at: int = 0) -> Iterator[None]:
    """Lets no file grow beyond `at` bytes. The system refuses the rest of a write, as it does on a full disk.

    This holds for shared memory too, which consists of files in /dev/shm, and not for pipes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
