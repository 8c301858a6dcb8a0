"""Checks of a run's machinery: gradients, records, loader, checkpoints. The thresholds are our own choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import FEWEST, Run

EXPLODED = 10.0
"""Multiple of the median norm of all earlier lines from which on a gradient counts as exploding."""
VANISHED = 1e-6
"""Norm below which a gradient counts as vanished."""
WAITING = (0.1, 0.25)
"""Shares of the time spent waiting for data above which it is a note, and above which it is wrong."""
GROWING = 2.0
"""Multiple of the first half's share of skipped records above which the second half's share counts as growing."""


def gradient(run: Run) -> Iterator[Finding]:
    """Checks that the gradient neither vanishes nor explodes. A jump that has passed is a note."""
    points = run.points("gradient_norm")
    if len(points) < FEWEST:
        yield Finding("gradient", "unknown", "the log has too few lines yet")
        return
    values = [value for _, value in points]
    usual = median(values)
    jumps = [
        (step, value)
        for place, (step, value) in enumerate(points)
        if place >= FEWEST // 2 and value > EXPLODED * median(values[:place])
    ]
    if usual < VANISHED:
        yield Finding(
            "gradient",
            "wrong",
            f"the norm is {usual:.1g}: no gradient arrives",
            "check `freeze` and the losses",
        )
    elif jumps and (jumps[-1][0] == points[-1][0] or len(jumps) > len(points) // 10):
        step, value = jumps[-1]
        yield Finding(
            "gradient",
            "wrong",
            f"the gradient explodes: its norm is {value:.3g} at step {step:,} and usually {usual:.3g}",
            "set optim.clip=1.0, lower optim.lr or lengthen the warm-up, and go on from an earlier checkpoint",
        )
    elif jumps:
        steps = ", ".join(f"{step:,}" for step, _ in jumps[:3])
        yield Finding(
            "gradient",
            "note",
            f"the norm jumped near step {steps}, then was {usual:.3g} again",
            "set optim.clip",
        )
    else:
        yield Finding("gradient", "fine", f"the norm is usually {usual:.3g}, and {max(values):.3g} at most")


def records(run: Run) -> Iterator[Finding]:
    """Checks how many records could not be read, by the pairs that steps lack. A checkpoint names some of them."""
    pairs_per_step = run.recipe.run.batch_size * run.recipe.optim.accumulate
    known = [(0, 0.0), *((int(line["step"]), line["pairs"]) for line in run.lines if "pairs" in line)]
    gaps = [(new[0] - old[0]) * pairs_per_step - (new[1] - old[1]) for old, new in pairwise(known)]
    total = run.step * pairs_per_step
    if sum(gaps) <= 0:
        yield Finding("records", "fine", "no record was skipped")
        return
    half = len(gaps) // 2
    middle = known[half][0]
    early = sum(gaps[:half]) / max(1, middle * pairs_per_step)
    late = sum(gaps[half:]) / max(1, (run.step - middle) * pairs_per_step)
    grows = bool(half) and late > GROWING * early and late > run.recipe.data.bad_share / GROWING
    yield Finding(
        "records",
        "wrong" if grows or late > run.recipe.data.bad_share else "note",
        f"{sum(gaps):,.0f} of {total:,} records were skipped{_named(run)}: {early:.2%} of the first half and "
        f"{late:.2%} of the second" + (", so their share grows" if grows else ""),
        "`diptych data validate` names them all; a growing share points to a failing disk or mount",
    )


def _named(run: Run) -> str:
    """Gives the reasons and the first record's name, from the newest checkpoint."""
    bad = run.state.get("skipped", {}).get("bad", [])
    if not bad:
        return ""
    reasons = ", ".join(f"{count} × {why}" for why, count in Counter(why for _, why, *_ in bad).most_common(3))
    return f" ({reasons}, such as {bad[0][0]})"


def loader(run: Run) -> Iterator[Finding]:
    """Checks how long training waits for its data. The first line does not count, since workers start in it."""
    points = run.points("waiting")[1:]
    if not points:
        yield Finding("loader", "unknown", "the log does not tell how long steps waited for their batches")
        return
    share = sum(value for _, value in points) / len(points)
    noted, wrong = WAITING
    workers = run.recipe.data.workers
    yield Finding(
        "loader",
        "wrong" if share > wrong else "note" if share > noted else "fine",
        f"{share:.0%} of the time is spent waiting for data, with data.workers={workers}",
        f"raise data.workers (to {max(2, 2 * workers)} at first) if there are idle cores; set data.resize=torch; store "
        "pictures near their training size, or in shards (`diptych data convert --shards`)"
        if share > noted
        else "",
    )


def checkpoints(run: Run) -> Iterator[Finding]:
    """Reports damaged checkpoints that resuming has set aside."""
    aside = sorted(path.name for path in (run.folder / "checkpoints").glob("damaged-*"))
    if aside:
        yield Finding(
            "checkpoints",
            "note",
            f"these checkpoints were set aside as damaged: {', '.join(aside)}",
            "check the disk, and remove the folders when nobody needs them",
        )
