"""Whether a run's machinery works: gradients, records, loader, checkpoints. Levels are our own choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import FEWEST, Run

EXPLODED = 10.0
"""Times the median norm of the lines before from which on a gradient explodes."""
VANISHED = 1e-6
"""Norm below which nothing is learnt."""
WAITING = (0.1, 0.25)
"""Shares of the time waited for data from which on it is noted, and wrong."""
GROWING = 2.0
"""Times the share of records skipped in the first half from which on the second half's grows."""


def gradient(run: Run) -> Iterator[Finding]:
    """Explosions that stayed, that passed, and norms of nothing."""
    points = run.points("gradient_norm")
    if len(points) < FEWEST:
        yield Finding("gradient", "unknown", "too few lines yet")
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
            "gradient", "wrong", f"norm {usual:.1g}: no gradient arrives", "see `freeze` and the loss's terms"
        )
    elif jumps and (jumps[-1][0] == points[-1][0] or len(jumps) > len(points) // 10):
        step, value = jumps[-1]
        yield Finding(
            "gradient",
            "wrong",
            f"norm {value:.3g} at step {step:,}, usual {usual:.3g}: it explodes",
            "set optim.clip=1.0, lower optim.lr or lengthen the warm-up, and go on from a checkpoint before it",
        )
    elif jumps:
        steps = ", ".join(f"{step:,}" for step, _ in jumps[:3])
        yield Finding(
            "gradient", "note", f"jumped and came back near step {steps}; usual {usual:.3g}", "set optim.clip"
        )
    else:
        yield Finding("gradient", "fine", f"norm {usual:.3g}, {max(values):.3g} at most")


def records(run: Run) -> Iterator[Finding]:
    """What could not be read, by the pairs that steps lack, and by name where a checkpoint says so."""
    asked = run.recipe.run.batch_size * run.recipe.optim.accumulate
    known = [(0, 0.0), *((int(line["step"]), line["pairs"]) for line in run.lines)]
    gaps = [(new[0] - old[0]) * asked - (new[1] - old[1]) for old, new in pairwise(known)]
    total = run.step * asked
    if sum(gaps) <= 0:
        yield Finding("records", "fine", "none was left out")
        return
    half = len(gaps) // 2
    middle = known[half][0]
    early, late = sum(gaps[:half]) / max(1, middle * asked), sum(gaps[half:]) / max(1, (run.step - middle) * asked)
    grows = bool(half) and late > GROWING * early and late > run.recipe.data.bad_share / GROWING
    yield Finding(
        "records",
        "wrong" if grows or late > run.recipe.data.bad_share else "note",
        f"{sum(gaps):,.0f} of {total:,} were left out{_named(run)}; {early:.2%} of the first half, {late:.2%} of the "
        "second" + (": they grow more" if grows else ""),
        "`diptych data validate` names them all; where they grow more, a disk or a mount is failing",
    )


def _named(run: Run) -> str:
    """Reasons and the first names, from the newest checkpoint."""
    bad = run.state.get("skipped", {}).get("bad", [])
    if not bad:
        return ""
    reasons = ", ".join(f"{count} × {why}" for why, count in Counter(why for _, why, *_ in bad).most_common(3))
    return f" ({reasons}, such as {bad[0][0]})"


def loader(run: Run) -> Iterator[Finding]:
    """Whether training waits for its data; the first line, in which workers start, does not count."""
    points = run.points("waiting")[1:]
    if not points:
        yield Finding("loader", "unknown", "the log does not say how long the next batch was waited for")
        return
    share = sum(value for _, value in points) / len(points)
    noted, wrong = WAITING
    workers = run.recipe.data.workers
    yield Finding(
        "loader",
        "wrong" if share > wrong else "note" if share > noted else "fine",
        f"{share:.0%} of the time is spent waiting for data, with data.workers={workers}",
        f"raise data.workers (to {max(2, 2 * workers)} at first), where there are cores for them; store pictures near "
        "the size that is trained on, or in shards (`diptych data convert --shards`)"
        if share > noted
        else "",
    )


def checkpoints(run: Run) -> Iterator[Finding]:
    """Damaged ones that resuming has set aside."""
    aside = sorted(path.name for path in (run.folder / "checkpoints").glob("damaged-*"))
    if aside:
        yield Finding(
            "checkpoints",
            "note",
            f"set aside as damaged: {', '.join(aside)}",
            "look at the disk; remove them when nobody needs them",
        )
