"""The runs of each system's demonstration, as values. The recipes define what the runs train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskRun:
    """A run of the demonstration of all tasks."""

    name: str
    """Name of its folder in `tasks`, and the end of its recipe's name."""
    start: str = ""
    """Name of the task run that it starts from; empty for the pre-trained model."""
    blind: bool = False
    """Whether the same recipe is also trained on blank pictures."""


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
    """A system at the size of the demonstration."""

    name: str
    """Name of the system, as in `diptych demo --model`."""
    recipe: str
    """Recipe of the run on pairs. Its name followed by that of a task is the task's recipe."""
    folder: Path
    stages: tuple[str, ...] = ()
    """Recipes of the runs that can come before it, in their order, each on other scenes. A recipe that names the run of
    another one (`runs/RECIPE`) starts from the demonstration's run of it."""
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
    """A system and the folder of its runs."""

    system: System
    folder: Path
    """Folder of the run on pairs, which holds those of the other runs."""
    staged: bool = False
    """Whether the run on pairs starts from the system's stages instead of random weights."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Lists the recipes of the runs before the one on pairs."""
        return self.system.stages if self.staged else ()

    def stage_folder(self, recipe: str) -> Path:
        return self.folder / "stages" / recipe

    def task_folder(self, run: TaskRun) -> Path:
        return self.folder / "tasks" / run.name

    def task_start(self, run: TaskRun) -> Path:
        """Names the run that a task starts from."""
        return self.folder / "tasks" / run.start if run.start else self.folder
