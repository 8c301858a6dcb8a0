"""The table of an ablation: measures of the variants over seeds, differences to the first variant, and costs."""

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
from diptych.apps.report.numbers import columns, duration, number
from diptych.apps.report.stages import COMPUTE
from diptych.metrics.intervals import Interval, seed_interval
from diptych.writing import write_text

Line = tuple[str, ...]


@dataclass(frozen=True)
class Reached:
    """One measure of one variant, in percent."""

    measure: str
    variant: str
    mean: float
    interval: Interval | None
    """95 % interval over seeds, by Student's t; None for one seed."""
    difference: float | None
    """Mean difference to the first variant over the seeds that both have; None for the first one."""
    difference_interval: Interval | None
    """95 % interval of the differences, taken seed by seed."""
    seeds: Mapping[int, Score]
    """Score of each run, with its 95 % interval over the test records."""
    chance: float | None


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a variant or of a stage before it, as means over seeds."""

    part: str
    steps: float
    records: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """The costs of a variant and of its stages, itself last. A stage that variants share counts for each."""

    variant: str
    parts: tuple[TrainingCost, ...]

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
    """The data that the runs were measured on."""
    reached: tuple[Reached, ...]
    costs: tuple[Cost, ...]
    missing: Mapping[str, str]
    """Runs that are missing, with the reason."""

    def to_json(self) -> dict[str, Any]:
        totals = [{"flops": cost.flops, "seconds": cost.seconds} for cost in self.costs]
        return asdict(self) | {"costs": [asdict(cost) | each for cost, each in zip(self.costs, totals, strict=True)]}


def table(grid: Grid, folder: Path, missing: Mapping[Path, str] | None = None) -> Table:
    """Sums up the finished runs. Raises ValueError for none, or for runs that were measured on different data."""
    done = [
        (variant, seed)
        for variant in grid.variants
        for seed in grid.seeds
        if (place(folder, variant, seed) / COMPUTE).is_file()
    ]
    if not done:
        raise ValueError(f"{folder}: no run of a variant has ended, so there is nothing to sum up yet")
    folders = [place(folder, variant, seed) for variant, seed in done]
    data = same_data(folders)
    reached = []
    for row in quality(folders):
        scores: dict[str, dict[int, Score]] = {variant.name: {} for variant in grid.variants}
        for (variant, seed), score in zip(done, row.scores, strict=True):
            if score is not None:
                scores[variant.name][seed] = score
        reached += list(_reached(row.measure, scores, row.chance))
    costs = tuple(
        Cost(variant.name, tuple(_training_cost(grid, part, folder) for part in grid.chain(variant)))
        for variant in grid.variants
        if variant in [finished for finished, _ in done]
    )
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


def _training_cost(grid: Grid, part: Part, folder: Path) -> TrainingCost:
    files = [place(folder, part, seed) / COMPUTE for seed in grid.seeds]
    runs = [json.loads(file.read_text()) for file in files if file.is_file()]
    means = {key: fmean(run[key] for run in runs) for key in ("steps", "records", "flops", "seconds")}
    return TrainingCost(part.name, **means)


# --------------------------------------------------------------------------- output


def as_markdown(table: Table) -> str:
    """Formats the measures with the whole computation beside them, and the trainings behind each variant."""
    costs = {cost.variant: cost for cost in table.costs}
    reached = [
        (
            row.measure, row.variant, f"{row.mean:.1f}", _interval(row.interval),
            "" if row.difference is None else f"{row.difference:+.1f}", _interval(row.difference_interval),
            "; ".join(f"{score.value:.1f} ({score.interval})" for score in row.seeds.values()),
            number(costs[row.variant].flops / 1e12), duration(costs[row.variant].seconds),
        )
        for row in table.reached
    ]  # fmt: skip
    first = table.reached[0].variant if table.reached else ""
    head = ("measure, %", "variant", "mean", "95 % over seeds", f"less {first}", "95 %", "each run", "TFLOP", "time")
    trained = [
        (cost.variant, part.part, f"{part.steps:,.0f}", f"{part.records:,.0f}", number(part.flops / 1e12),
         duration(part.seconds))
        for cost in table.costs
        for part in cost.parts
    ]  # fmt: skip
    lines = [*_rows(head, reached), "", *_rows(("variant", "trained", "steps", "records", "TFLOP", "time"), trained)]
    if table.missing:
        lines += ["", "Missing:", *(f"- {run}: {why.splitlines()[0]}" for run, why in table.missing.items())]
    return "\n".join([f"# {table.grid}", "", *lines, "", *NOTES])


NOTES = (
    "Means are over seeds, with Student's 95 % intervals; differences are taken seed by seed. Each run has an interval",
    "over the test records. TFLOP and time count all training behind a variant, stages included, without validations.",
)


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else str(interval)


def _rows(head: Line, body: Sequence[Line]) -> list[str]:
    title, *lines = columns([head, *body], between=" | ")
    rule = " | ".join("-" * len(cell) for cell in title.split(" | "))
    return [f"| {line} |" for line in (title, rule, *lines)]


def write(table: Table, folder: Path) -> tuple[Path, Path]:
    """Writes `table.md` and `table.json` into the ablation's folder."""
    text, plain = folder / "table.md", folder / "table.json"
    write_text(text, as_markdown(table) + "\n")
    write_text(plain, json.dumps(table.to_json(), indent=1, ensure_ascii=False))
    return text, plain
