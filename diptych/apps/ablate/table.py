"""The table of an ablation: measures of the variants over seeds, differences between variants, and costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from diptych import __version__
from diptych.apps.ablate.grid import Grid, Part
from diptych.apps.ablate.runs import place, plan, task_place
from diptych.apps.compare.quality import quality, same_data
from diptych.apps.report.compared import Score
from diptych.apps.report.numbers import columns, duration, number
from diptych.logged import COMPUTE, read_compute
from diptych.metrics.intervals import Interval, holm, paired_p, seed_interval, seeds_for
from diptych.writing import write_text

Line = tuple[str, ...]
LEVEL = 0.05
"""Below this probability a difference is said to exceed the noise."""


@dataclass(frozen=True)
class Reached:
    """One measure of one variant, in percent."""

    task: str
    """Name of the task after the variant; empty for the variant's own run."""
    measure: str
    variant: str
    mean: float
    interval: Interval | None
    """95 % interval over seeds, by Student's t; None for one seed."""
    against: str | None
    """The variant that it is compared with; None for the first one."""
    difference: float | None
    """Mean difference to that variant over the seeds that both have."""
    difference_interval: Interval | None
    """95 % interval of the differences, taken seed by seed."""
    p: float | None
    """Probability of a difference as large by chance: Student's paired t-test, with Holm's correction within the
    table. None for fewer than two seeds, and for differences without spread, as of copied runs."""
    seeds_for_half: int | None
    """Seeds with which one uncorrected test would find an effect half as large, at the same spread, four times of
    five."""
    seeds: Mapping[int, Score]
    """Score of each run, with its 95 % interval over the test records."""
    chance: float | None

    @property
    def verdict(self) -> str:
        """Says whether the difference exceeds the noise between seeds."""
        if self.p is None:
            return ""
        return "beyond noise" if self.p < LEVEL else "within noise"


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a variant, of a stage before it or of a task after it, as means over seeds."""

    part: str
    steps: float
    records: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """The costs of a variant, of its stages before it and its tasks after it. A stage that variants share counts for
    each."""

    variant: str
    parts: tuple[TrainingCost, ...]

    tasks: Mapping[str, tuple[str, ...]]
    """The trainings behind the measures of a task, by its name; empty for the variant's own measures."""

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    def behind(self, task: str) -> tuple[TrainingCost, ...]:
        """Lists the trainings that the measures of a task, or of the variant itself, stand on."""
        return tuple(part for part in self.parts if part.part in self.tasks[task])


@dataclass(frozen=True)
class Table:
    """The result of an ablation."""

    grid: str
    version: str
    """Version of the library that summed up the runs."""
    data: Mapping[str, Any]
    """The data that the runs were measured on."""
    reached: tuple[Reached, ...]
    costs: tuple[Cost, ...]
    missing: Mapping[str, str]
    """Runs of the grid that are missing, with the reason."""

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
    names = {"the run itself": "", **{task.slug: task.name for task in grid.tasks}}
    for row in quality(folders):
        if row.task not in names:
            continue  # of a task that this grid leaves out
        scores: dict[str, dict[int, Score]] = {variant.name: {} for variant in grid.variants}
        for (variant, seed), score in zip(done, row.scores, strict=True):
            if score is not None:
                scores[variant.name][seed] = score
        reached += list(_reached(grid, names[row.task], row.measure, scores, row.chance))
    costs = tuple(
        Cost(variant.name, tuple(_training_costs(grid, variant, folder)), _behind(grid, variant))
        for variant in grid.variants
        if variant in [finished for finished, _ in done]
    )
    why = dict(missing or {})
    gone = {run.folder: why.get(run.folder, "not finished") for run in plan(grid, folder) if not run.done}
    named = {str(run.relative_to(folder)): reason for run, reason in gone.items()}
    return Table(grid.name, __version__, data, tuple(_corrected(reached)), costs, named)


def _reached(
    grid: Grid, task: str, measure: str, scores: Mapping[str, Mapping[int, Score]], chance: float | None
) -> Iterator[Reached]:
    for variant, seeds in scores.items():
        if not seeds:
            continue
        values = [score.value for score in seeds.values()]
        partner = grid.partner(variant)
        theirs = scores[partner] if partner else {}
        paired = [score.value - theirs[seed].value for seed, score in seeds.items() if seed in theirs]
        yield Reached(
            task, measure, variant, fmean(values), seed_interval(values), partner, fmean(paired) if paired else None,
            seed_interval(paired), paired_p(paired), seeds_for(paired, share=0.5), seeds, chance,
        )  # fmt: skip


def _corrected(reached: Sequence[Reached]) -> Iterator[Reached]:
    """Corrects the probabilities of all differences of a table, which are tested at once."""
    corrected = iter(holm([row.p for row in reached if row.p is not None]))
    for row in reached:
        yield row if row.p is None else replace(row, p=next(corrected))


def _behind(grid: Grid, variant: Part) -> dict[str, tuple[str, ...]]:
    own = tuple(part.name for part in grid.chain(variant))
    return {"": own, **{task.name: (*own, *grid.task_chain(task)) for task in grid.tasks}}


def _training_costs(grid: Grid, variant: Part, folder: Path) -> Iterator[TrainingCost]:
    for part in grid.chain(variant):
        yield from _training_cost(part, [place(folder, part, seed) for seed in grid.seeds])
    for task in grid.tasks:
        yield from _training_cost(task, [task_place(folder, variant, task, seed) for seed in grid.seeds])


def _training_cost(part: Part, folders: Sequence[Path]) -> Iterator[TrainingCost]:
    """Yields the mean cost of the finished runs of a part; nothing if none has finished."""
    runs = [cost for run in folders if (cost := read_compute(run))]
    if runs:
        means = {key: fmean(run[key] for run in runs) for key in ("steps", "records", "flops", "seconds")}
        yield TrainingCost(part.name, **means)


# --------------------------------------------------------------------------- output


def as_markdown(table: Table) -> str:
    """Formats the measures with the whole computation beside them, and the trainings behind each variant."""
    costs = {cost.variant: cost for cost in table.costs}
    reached = [
        (
            f"{row.task}: {row.measure}" if row.task else row.measure,
            row.variant, f"{row.mean:.1f}", _interval(row.interval),
            "" if row.difference is None else f"{row.difference:+.1f}", _interval(row.difference_interval),
            row.verdict and f"{row.verdict} (p {row.p:.3f})", str(row.seeds_for_half or ""),
            "; ".join(f"{seed}: {score.value:.1f} ({score.interval})" for seed, score in row.seeds.items()),
            number(sum(part.flops for part in costs[row.variant].behind(row.task)) / 1e12),
            duration(sum(part.seconds for part in costs[row.variant].behind(row.task))),
        )
        for row in table.reached
    ]  # fmt: skip
    partners = list(dict.fromkeys(row.against for row in table.reached if row.against))
    difference = f"minus {partners[0]}" if len(partners) == 1 else "minus the one above"
    head = (
        "measure, %", "variant", "mean", "95 % over seeds", difference, "95 %", "after Holm's correction",
        "seeds for half of it", "each run", "TFLOP", "time",
    )  # fmt: skip
    trained = [
        (cost.variant, part.part, f"{part.steps:,.0f}", f"{part.records:,.0f}", number(part.flops / 1e12),
         duration(part.seconds))
        for cost in table.costs
        for part in cost.parts
    ]  # fmt: skip
    lines = [*_rows(head, reached), "", *_rows(("variant", "trained", "steps", "records", "TFLOP", "time"), trained)]
    if table.missing:
        lines += ["", "Missing:", *(f"- {run}: {why.strip().splitlines()[-1]}" for run, why in table.missing.items())]
    return "\n".join([f"# {table.grid}", "", *lines, "", *NOTES])


NOTES = (
    "Means are over seeds, with Student's 95 % intervals; differences are taken seed by seed. Each run has an interval",
    "over the test records. A difference is beyond noise if Student's paired t-test, with Holm's correction for all",
    "differences of this table, gives a p below 0.05. `seeds for half of it` is the number of seeds with which one",
    "uncorrected test would find an effect half as large, at the spread seen here, with a probability of 80 %. TFLOP",
    "and time count all training behind a measure, stages and tasks included, without validations.",
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
