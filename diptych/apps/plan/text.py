"""A plan as text for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diptych.apps.report.numbers import columns

if TYPE_CHECKING:
    from diptych.apps.plan.check import Compared
    from diptych.apps.plan.predict import Plan

GIB = 1 << 30


def as_text(plan: Plan) -> str:
    """Formats parameters, memory, time, exchange, the whole training, and the sources of the numbers."""
    pieces = f", in {plan.pieces} pieces each" if plan.pieces > 1 else ""
    head = f"{plan.recipe} on {plan.devices}: {plan.pairs * plan.pieces} pairs a device and step{pieces}"
    parameters = ", ".join(f"{value / 1e6:,.1f} M {name}" for name, value in plan.parameters.items() if value)
    blocks = [f"{head}\nParameters: {parameters}", _memory(plan), _parts(plan), _seconds(plan)]
    if plan.exchanged:
        blocks.append(
            _table("Bytes that a device sends in a step", ("", ""), [(k, size(v)) for k, v in plan.exchanged.items()])
        )
    blocks.append(_training(plan))
    if plan.advice:
        blocks.append(
            "\n".join(["It does not fit. These changes need less memory:", *(f"  {line}" for line in plan.advice)])
        )
    blocks.append("\n".join(["Sources of the numbers", *(f"  {note}" for note in plan.notes)]))
    return "\n\n".join(blocks)


def _memory(plan: Plan) -> str:
    rows = [(name, size(value)) for name, value in plan.memory.items()]
    left = plan.capacity - plan.total
    verdict = f"{size(left)} left" if left >= 0 else f"{size(-left)} too much"
    rows += [("in all", size(plan.total)), ("available", f"{size(plan.capacity)}: {verdict}")]
    return _table("Peak memory of a device", ("", ""), rows)


def _parts(plan: Plan) -> str:
    rows = [
        (part.name, flops(part.forward), flops(part.backward), flops(part.recompute), seconds(part.seconds))
        for part in plan.parts
    ]
    return _table("Computation of a device in a step", ("", "forward", "backward", "recompute", "time"), rows)


def _seconds(plan: Plan) -> str:
    rows = [(name, seconds(value), f"{value / plan.step:.0%}") for name, value in plan.seconds.items()]
    rows.append(("a step", seconds(plan.step), f"{flops(plan.flops)}, {flops(int(plan.flops / plan.step))}/s"))
    return _table("Time of a step", ("", "", ""), rows)


def _training(plan: Plan) -> str:
    lines = [
        f"Bottleneck: {plan.bottleneck}",
        f"Loader: each device needs {plan.pictures:,.0f} pairs a second",
        f"Checkpoint: {size(plan.checkpoint)}, every {seconds(plan.checkpoint_every)}",
    ]
    if plan.steps is None or plan.total_seconds is None:
        return "\n".join(
            [*lines, "Training: run.epochs counts the data, whose size is not known: give it as --pairs N"]
        )
    lines.append(f"Training: {plan.steps:,} steps, {seconds(plan.total_seconds)} without validations")
    if plan.cost is not None:
        lines.append(f"Cost: {plan.cost:,.2f}, in the currency of --price")
    return "\n".join(lines)


def checked_as_text(compared: Compared) -> str:
    """Formats planned and measured values side by side."""
    rows = [
        (
            name,
            size(planned) if name == "memory" else seconds(planned),
            size(measured) if name == "memory" else seconds(measured),
            f"{planned / measured - 1:+.0%}",
        )
        for name, (planned, measured) in compared.rows.items()
    ]
    table = _table(
        f"Planned and measured here, {compared.steps} steps", ("", "planned", "measured", "difference"), rows
    )
    return "\n".join([table, *(f"  {note}" for note in compared.notes)])


def as_json(plan: Plan, compared: Compared | None) -> dict[str, Any]:
    """Gives the plan's fields, whether it fits, and the comparison if there is one."""
    extra = {} if compared is None else {"check": asdict(compared)}
    return asdict(plan) | {"fits": plan.fits, "flops": plan.flops} | extra


def size(value: int | float) -> str:
    """Formats bytes.

    >>> size(3.5 * 2**30), size(2**20), size(10)
    ('3.50 GiB', '1.0 MiB', '0.0 MiB')
    """
    return f"{value / GIB:,.2f} GiB" if value >= GIB / 10 else f"{value / (1 << 20):,.1f} MiB"


def seconds(value: int | float) -> str:
    """Formats a duration.

    >>> seconds(0.0123), seconds(3.21), seconds(600), seconds(7200), seconds(3 * 86400)
    ('12.3 ms', '3.21 s', '10.0 min', '2.0 h', '3.0 days')
    """
    for least, unit, name in ((2 * 86400, 86400, "days"), (7200, 3600, "h"), (120, 60, "min")):
        if value >= least:
            return f"{value / unit:,.1f} {name}"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def flops(value: int) -> str:
    """Formats floating-point operations.

    >>> flops(0), flops(2_500_000_000), flops(3_100_000_000_000)
    ('–', '2.5 GFLOP', '3.1 TFLOP')
    """
    if not value:
        return "–"
    return f"{value / 1e12:,.3g} TFLOP" if value >= 1e12 else f"{value / 1e9:,.3g} GFLOP"


def _table(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [*([head] if any(head) else []), *body]
    return "\n".join([title, *(f"  {line}".rstrip() for line in columns(rows))])
