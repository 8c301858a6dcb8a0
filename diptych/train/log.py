"""Reports a run while it trains: `metrics.jsonl` always, a bar or plain lines, and trackers on request.

Every line of `metrics.jsonl` has `step`, `epoch`, and `pairs` and `seconds`, both counted from the start of the run.
A training line adds `lr` and means since the line before: `pairs_per_second`, `waiting` (the share of the time, 0..1,
that the loop waited for its next batch), `gradient_norm`, `loss`, `losses: {name: …}` (each without its weight) and
`measures: {name: …}`. A validation line adds `validation: {name: …}`, where `chance` is what a
guesser would get of the measure that decides which checkpoint is best.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from diptych.reading import parse_json
from diptych.schema import Recipe
from diptych.train.state import Plan, RunState
from diptych.train.trackers import Trackers
from diptych.types import Losses, Term
from diptych.writing import WriteError, whole_file

CHANCE = "chance"
"""The name of what a guesser would get of the measure that decides which checkpoint is best."""
PLAIN_SECONDS = 15.0
"""The least time between two printed lines where no terminal can show a bar."""
DRAW_SECONDS = 0.2
"""The least time between two drawings of the bar."""


@dataclass(frozen=True)
class StepReport:
    """The numbers of one optimiser step."""

    lr: float
    gradient_norm: Tensor
    losses: Losses
    """The losses of the global batch, detached from the graph."""
    pairs: int
    """Samples in the global batch."""
    seconds: float
    """The time of the step, with the wait for its batch."""
    waiting: float = 0.0
    """The part of `seconds` until the batch was there."""
    stopped: signal.Signals | None = None
    """The signal that asks the run to stop after this step."""


class Window:
    """Adds up the reports since the last line. The sums stay on the device, because reading them out is slow."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Term] = {}
        self.pairs = 0
        self.seconds = 0.0
        self.waiting = 0.0

    def add(self, report: StepReport) -> None:
        once = torch.ones(())
        self._add("", "gradient_norm", Term(report.gradient_norm, once))
        self._add("", "loss", Term(report.losses.total, once))
        for name, (_, term) in report.losses.terms.items():
            self._add("losses", name, term)
        for name, term in report.losses.measures.items():
            self._add("measures", name, term)
        self.pairs += report.pairs
        self.seconds += report.seconds
        self.waiting += report.waiting

    def _add(self, group: str, name: str, term: Term) -> None:
        previous = self.sums.get((group, name))
        self.sums[group, name] = previous.plus(term) if previous else term

    def line(self) -> dict[str, Any]:
        """Returns the means, as a training line of `metrics.jsonl` has them."""
        seconds = max(self.seconds, 1e-9)
        values: dict[str, Any] = {"pairs_per_second": self.pairs / seconds, "waiting": self.waiting / seconds}
        groups: dict[str, dict[str, float]] = {"losses": {}, "measures": {}}
        for (group, name), term in self.sums.items():
            groups.get(group, values)[name] = float(term.mean)
        return {**values, **groups}


class RunLog:
    """Writes a run's metrics and shows its progress.

    Lines of steps that a killed process took after its last checkpoint are removed: the run takes these steps again.
    """

    def __init__(self, folder: Path, plan: Plan, state: RunState, recipe: Recipe) -> None:
        self.path = folder / "metrics.jsonl"
        _drop_after(self.path, state.step)
        self.file = self.path.open("ab", buffering=0)  # a refused line is not written again when the file is closed
        self.plan = plan
        self.every = recipe.run.log_every
        self.window = Window()
        self.display = Display(state.step, plan.steps)
        self.trackers = Trackers(folder, recipe, state.step, self.say)

    def __enter__(self) -> RunLog:
        self.display.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.bar.stop()
        self.file.close()
        self.trackers.close(failed=kind is not None)

    def step(self, report: StepReport, state: RunState) -> None:
        """Adds a step's report to the next line, and writes the line every `run.log_every` steps."""
        self.window.add(report)
        self.display.advance(state.step)
        if state.step % self.every == 0:
            line = self._write(state, {"lr": report.lr, **self.window.line()})
            self.window = Window()
            self.display.show(state.step, line)

    def validation(self, measures: Mapping[str, float], maximised: str, state: RunState) -> None:
        """Writes a validation's line, and prints the measure that decides which checkpoint is kept."""
        self._write(state, {"validation": dict(measures)})
        best = ", the best so far" if state.improved else ""
        guess = f" (guessing gets {measures[CHANCE]:.4g})" if CHANCE in measures else ""
        self.say(f"step {state.step}: {maximised} {measures[maximised]:.4g}{guess}{best}")

    def say(self, text: str) -> None:
        self.display.say(text)

    def _write(self, state: RunState, content: Mapping[str, Any]) -> dict[str, Any]:
        position = {"step": state.step, "epoch": self.plan.epoch(state.step)}
        line = {**position, "pairs": state.pairs, "seconds": round(state.seconds, 3), **content}
        remaining = f"{json.dumps(line)}\n".encode()
        try:
            while remaining:
                remaining = remaining[self.file.write(remaining) :]
        except OSError as error:
            raise WriteError(self.path, error.strerror or str(error)) from error
        self.trackers.log(content, state.step)
        return line


class SilentLog:
    """Reports nothing: the log of every process but the first."""

    def __enter__(self) -> SilentLog:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, report: StepReport, state: RunState) -> None:
        pass

    def validation(self, measures: Mapping[str, float], maximised: str, state: RunState) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Display:
    """Shows progress: a bar on a terminal, and a line now and then elsewhere."""

    def __init__(self, step: int, steps: int) -> None:
        # Here, because a step can be taken, and timed, where rich is not installed.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
        )
        # The bar is drawn by the loop: a thread of rich's would be forked together with the loader's workers.
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, auto_refresh=False)
        self.task = self.bar.add_task("", total=steps, completed=step)
        self.first, self.steps = step, steps
        self.began = time.monotonic()
        self.last_line = self.last_drawn = float("-inf")

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)
        now = time.monotonic()
        if now - self.last_drawn >= DRAW_SECONDS or step == self.steps:
            self.last_drawn = now
            self.bar.refresh()

    def show(self, step: int, line: Mapping[str, Any]) -> None:
        losses = " ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
        text = f"loss {line['loss']:.3f} ({losses})  {line['pairs_per_second']:.0f} pairs/s"
        self.bar.update(self.task, description=text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line >= PLAIN_SECONDS:
            self.last_line = now
            left = (now - self.began) / (step - self.first) * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {text}  {left / 60:.1f} min left")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _drop_after(path: Path, step: int) -> None:
    """Removes the lines of steps that a resumed run will take again, and a line that a kill cut short."""
    if not path.exists():
        return
    *lines, _ = path.read_bytes().split(b"\n")
    kept = next((number for number, line in enumerate(lines) if _step_of(line) > step), len(lines))
    with whole_file(path) as unfinished:
        unfinished.write_bytes(b"".join(line + b"\n" for line in lines[:kept]))


def _step_of(line: bytes) -> float:
    """Returns the step of a line. A damaged line stays where it is, as of step 0: a log ends no training."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0.0
