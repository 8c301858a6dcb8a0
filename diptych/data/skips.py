"""Lists and counts records that cannot be used, and decides when there are too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from diptych.data.record import BadRecord

SMALL_SOURCE_TOLERANCE = 10
"""Training tolerates this many bad records, or a quarter of a small source, wherever `bad_share` is above 0."""


def list_errors(errors: Sequence[BadRecord], most: int = 20) -> str:
    """Returns the first `most` errors, one per line, and how many more there are."""
    more = [f"  and {len(errors) - most} more"] if len(errors) > most else []
    return "\n".join([*(f"  {error}" for error in errors[:most]), *more])


class SkipLedger:
    """Collects the records that could not be used, and says when they are too many.

    The share of bad records is taken of the whole source, and each record counts once, however often it is read. One
    per cent of a handful of pictures is less than one picture, so every source is allowed some bad records: up to a
    quarter, at most ten.
    """

    def __init__(self, limit_share: float, total: int, at_opening: Iterable[BadRecord] = ()) -> None:
        """`total` is the number of records, including those in `at_opening`, which could not be opened at all."""
        self.limit_share = limit_share
        self.total = total
        self.seen = 0
        self.bad: dict[str, BadRecord] = {}
        self.note(0, at_opening)

    @property
    def allowed(self) -> int:
        """The largest number of bad records that training tolerates."""
        if self.limit_share <= 0:
            return 0
        return max(int(self.limit_share * self.total), min(SMALL_SOURCE_TOLERANCE, self.total // 4))

    @property
    def count(self) -> int:
        """The number of bad records so far."""
        return sum(error.count for error in self.bad.values())

    def note(self, seen: int, skipped: Iterable[BadRecord]) -> None:
        """Notes that `seen` more records were read, of which those in `skipped` could not be used."""
        self.seen += seen
        for error in skipped:
            self.bad.setdefault(error.record, error)

    def check(self) -> None:
        """Raises ValueError, which names the first bad records, if there are more than allowed."""
        if self.count > self.allowed:
            raise ValueError(
                f"{self.count} of {self.total} records could not be used, more than the {self.allowed} that"
                f" data.bad_share={self.limit_share:g} allows:\n{list_errors(list(self.bad.values()), most=10)}\n"
                "Repair or remove them, or raise data.bad_share."
            )

    def summary(self) -> str:
        """Says in words how many records were skipped and why, and names the first of them."""
        if not self.bad:
            return "no record was skipped"
        reasons: Counter[str] = Counter()
        for error in self.bad.values():
            reasons[error.reason] += error.count
        counts = ", ".join(f"{number} × {reason}" for reason, number in reasons.most_common())
        names = list_errors(list(self.bad.values()), most=10)
        return f"{self.count} of {self.total} records skipped: {counts}\n{names}"
