"""What the variants of an ablation reached, and what that took: over seeds, and against the first variant.

V variants, in the grid's order; S seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from diptych.apps.ablate.grid import Grid, Part
from diptych.apps.ablate.runs import place
from diptych.apps.compare.quality import quality, same_data
from diptych.apps.report.compared import Score
from diptych.apps.report.numbers import duration, number
from diptych.metrics.intervals import Interval, seed_interval

Line = tuple[str, ...]


@dataclass(frozen=True)
class Reached:
    """One measure of one variant, in percent."""

    measure: str
    variant: str
    mean: float
    interval: Interval | None
    """95 % over seeds, by Student's t; None with one seed."""
    difference: float | None
    """To the first variant: the mean over the seeds that both have. None for the first itself."""
    difference_interval: Interval | None
    """The same of the differences, seed by seed."""
    seeds: Mapping[int, Score]
    """Each run alone, with the 95 % interval over what it was asked."""
    chance: float | None


@dataclass(frozen=True)
class Took:
    """One training of a variant or of a stage before it; means over seeds."""

    part: str
    steps: float
    records: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """All that was trained for a variant, itself last. A stage that variants share counts for each."""

    variant: str
    parts: tuple[Took, ...]

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


@dataclass(frozen=True)
class Table:
    """The result of an ablation."""

    grid: str
    data: Mapping[str, Any]
    """What the runs were measured on."""
    reached: tuple[Reached, ...]
    costs: tuple[Cost, ...]
    missing: Mapping[str, str]
    """Runs that are not in it, with the reason."""

    def to_json(self) -> dict[str, Any]:
        totals = [{"flops": cost.flops, "seconds": cost.seconds} for cost in self.costs]
        return asdict(self) | {"costs": [asdict(cost) | each for cost, each in zip(self.costs, totals, strict=True)]}


def table(grid: Grid, folder: Path, missing: Mapping[Path, str] | None = None) -> Table:
    """Of the runs that are done. Raises ValueError where none is, or where two were measured on different data."""
    done = [
        (variant, seed)
        for variant in grid.variants
        for seed in grid.seeds
        if (place(folder, variant, seed) / "compute.json").is_file()
    ]
    if not done:
        raise ValueError(f"{folder}: no run of a variant has ended, so there is nothing to sum up")
    folders = [place(folder, variant, seed) for variant, seed in done]
    data = same_data(folders)
    reached = []
    for one in quality(folders):
        scores: dict[str, dict[int, Score]] = {variant.name: {} for variant in grid.variants}
        for (variant, seed), score in zip(done, one.scores, strict=True):
            if score is not None:
                scores[variant.name][seed] = score
        reached += list(_reached(one.measure, scores, one.chance))
    costs = tuple(_cost(grid, variant, folder) for variant in grid.variants if variant in [one for one, _ in done])
    named = {str(run.relative_to(folder)): why for run, why in (missing or {}).items()}
    return Table(grid.name, data, tuple(reached), costs, named)


def _reached(measure: str, scores: Mapping[str, Mapping[int, Score]], chance: float | None) -> Iterator[Reached]:
    first, *_ = scores
    for variant, seeds in scores.items():
        if not seeds:
            continue
        values = [score.value for score in seeds.values()]
        paired = [seeds[seed].value - score.value for seed, score in scores[first].items() if seed in seeds]
        known = variant != first and bool(paired)
        yield Reached(
            measure, variant, fmean(values), seed_interval(values), fmean(paired) if known else None,
            seed_interval(paired) if known else None, seeds, chance,
        )  # fmt: skip


def _cost(grid: Grid, variant: Part, folder: Path) -> Cost:
    return Cost(variant.name, tuple(_took(grid, part, folder) for part in grid.chain(variant)))


def _took(grid: Grid, part: Part, folder: Path) -> Took:
    files = [place(folder, part, seed) / "compute.json" for seed in grid.seeds]
    found = [json.loads(file.read_text()) for file in files if file.is_file()]
    return Took(part.name, *(fmean(one[key] for one in found) for key in ("steps", "records", "flops", "seconds")))


# --------------------------------------------------------------------------- for people


def as_markdown(found: Table) -> str:
    """The measures with the whole computation beside them, and what was trained for each variant."""
    costs = {cost.variant: cost for cost in found.costs}
    reached = [
        (
            one.measure, one.variant, f"{one.mean:.1f}", _interval(one.interval),
            "" if one.difference is None else f"{one.difference:+.1f}", _interval(one.difference_interval),
            "; ".join(f"{score.value:.1f} ({score.interval})" for score in one.seeds.values()),
            number(costs[one.variant].flops / 1e12), duration(costs[one.variant].seconds),
        )
        for one in found.reached
    ]  # fmt: skip
    first = found.reached[0].variant if found.reached else ""
    head = ("measure, %", "variant", "mean", "95 % over seeds", f"less {first}", "95 %", "each run", "TFLOP", "time")
    trained = [
        (cost.variant, part.part, f"{part.steps:,.0f}", f"{part.records:,.0f}", number(part.flops / 1e12),
         duration(part.seconds))
        for cost in found.costs
        for part in cost.parts
    ]  # fmt: skip
    lines = [*_rows(head, reached), "", *_rows(("variant", "trained", "steps", "records", "TFLOP", "time"), trained)]
    if found.missing:
        lines += ["", "Missing:", *(f"- {run}: {why.splitlines()[0]}" for run, why in found.missing.items())]
    return "\n".join([f"# {found.grid}", "", *lines, "", *NOTES])


NOTES = (
    "Means over seeds, with Student's 95 % intervals; differences are taken seed by seed. Each run alone: its interval",
    "over the test records. TFLOP and time are of all training behind a variant, stages included, without validations.",
)


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else str(interval)


def _rows(head: Line, body: Sequence[Line]) -> list[str]:
    widths = [max(len(line[place]) for line in (head, *body)) for place in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *body]
    return [f"| {' | '.join(f'{cell:<{width}}' for cell, width in zip(line, widths, strict=True))} |" for line in lines]


def write(found: Table, folder: Path) -> tuple[Path, Path]:
    """`table.md` and `table.json` in the ablation's folder."""
    text, plain = folder / "table.md", folder / "table.json"
    text.write_text(as_markdown(found) + "\n", encoding="utf-8")
    plain.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    return text, plain
