"""Numbers and tables as people read them, in plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Formats a value with three significant digits, without needless zeros.

    >>> [number(v) for v in (0.0, 0.123456, 12.5, 1500.0, 200000.0, -2.5e7, 0.00001)]
    ['0', '0.123', '12.5', '1500', '200k', '-25M', '1e-05']
    """
    if not math.isfinite(value):
        return "–"
    for least, unit, sign in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e9:
            return f"{float(f'{value:.3g}') / unit:g}{sign}"
    if 100 <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Formats a share in percent, with three significant digits at most.

    >>> percent(0.1234), percent(0.00012)
    ('12.3\\xa0%', '0.012\\xa0%')
    """
    return f"{number(100 * share)}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Formats a length of time in its two largest units.

    >>> duration(42.0), duration(605.0), duration(7322.0)
    ('42 s', '10 min 5 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def operations(flops: float | None) -> str:
    """Formats floating-point operations in units of 10¹² (TFLOP).

    >>> operations(2.5e15), operations(None)
    ('2500 TFLOP', '–')
    """
    return "–" if flops is None else f"{number(flops / 1e12)} TFLOP"


def columns(rows: Sequence[Sequence[str]], between: str = "  ") -> list[str]:
    """Aligns the cells of rows in columns, a line for each row.

    >>> columns([("step", "loss"), ("10", "4.2")], between=" | ")
    ['step | loss', '10   | 4.2 ']
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [between.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
