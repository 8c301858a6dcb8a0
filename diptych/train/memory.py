"""Returns memory that was freed to the system, so that a long training does not grow."""

from __future__ import annotations

import ctypes

TRIM_EVERY = 50
"""Steps after which a training returns freed memory."""


def trim() -> None:
    """Returns freed memory to the system. Does nothing where the C library is not glibc, which alone keeps it.

    Texts of other lengths make tensors of other sizes. glibc puts them where there is room in its heap, small tensors
    that last land between them, and pages that are free again stay with the process. A step touches some that no
    earlier one has touched, so that a process whose live memory is constant grows all the same.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
