"""What the demonstration of each system runs. Values only: the recipes say what they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskRun:
    """One run of the demonstration of all tasks."""

    name: str
    """Its folder below `tasks`, and the end of its recipe's name."""
    start: str = ""
    """The run that it starts from; empty: the pre-trained model."""
    blind: bool = False
    """Whether the same recipe is trained on blank pictures too."""


TASKS = (
    TaskRun("retrieval"),
    TaskRun("grounding"),
    TaskRun("entailment", blind=True),
    TaskRun("vqa", blind=True),
    TaskRun("vqa_closed", blind=True),
    TaskRun("assignment", start="entailment"),
    TaskRun("nlvr2", start="assignment", blind=True),
)


@dataclass(frozen=True)
class System:
    """One of the two systems, at the size of the demonstration."""

    name: str
    """As `diptych demo --model` takes it."""
    recipe: str
    """Of the run on pairs; a task's is this and the task's name."""
    folder: Path
    stages: tuple[str, ...] = ()
    """Recipes of the runs before it, in their order, on scenes of their own. Where a recipe names the run of another
    one of them (`runs/RECIPE`), it starts from the demonstration's."""
    tasks: tuple[TaskRun, ...] = TASKS

    def task_recipe(self, run: TaskRun) -> str:
        return f"{self.recipe}_{run.name}"


ALBEF = System("albef", "albef_tiny", Path("runs/demo"))
VLMO = System(
    "vlmo",
    "vlmo_tiny",
    Path("runs/demo-vlmo"),
    stages=("visual_tokenizer_tiny", "vlmo_tiny_vision", "vlmo_tiny_language"),
)
SYSTEMS: Mapping[str, System] = {system.name: system for system in (ALBEF, VLMO)}


@dataclass(frozen=True)
class Demonstration:
    """A system and where its runs go."""

    system: System
    folder: Path
    """The run on pairs; the others are below it."""

    def stage_folder(self, recipe: str) -> Path:
        return self.folder / "stages" / recipe

    def task_folder(self, run: TaskRun) -> Path:
        return self.folder / "tasks" / run.name

    def task_start(self, run: TaskRun) -> Path:
        """The run that a task starts from."""
        return self.folder / "tasks" / run.start if run.start else self.folder
