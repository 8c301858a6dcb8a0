"""What is known of a task stands with the task: nothing outside `diptych/tasks` asks which task it deals with."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import pytest

import diptych
from diptych import catalog, schema, tasks
from diptych.data.record import AnyRecord
from diptych.schema import AddedTaskConfig, TaskConfig
from diptych.task import Task

ROOT = Path(diptych.__file__).parent
CONFIGS = {config.__name__ for config in get_args(TaskConfig)}
CLASSES = {task.__name__ for task in catalog.TASKS.values()}
GROUPS = {
    name
    for name, value in [*vars(schema).items(), *vars(tasks).items()]
    if get_origin(value) in (Union, UnionType) and set(get_args(value)) & set(catalog.TASKS)
}
"""Names that stand for several configurations, such as `TaskConfig`."""
ONE_TABLE = "catalog.py"
"""The one line for each task: configuration → class."""
OUTSIDE = [file for file in sorted(ROOT.rglob("*.py")) if "tasks" not in file.relative_to(ROOT).parts[:-1]]


def named(node: ast.AST) -> set[str]:
    """Every name that an expression mentions, those of attributes too."""
    return {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node)
            if isinstance(part, ast.Name | ast.Attribute)}  # fmt: skip


def questions(source: str) -> Iterator[int]:
    """Lines that ask `isinstance`, `issubclass` or `type(…) is` of a task or of its configuration."""
    kinds = CONFIGS | GROUPS | {"Task"} | (CLASSES if "diptych.tasks" in source else set())  # records share names
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and named(node.func) & {"isinstance", "issubclass"} and len(node.args) == 2:
            if named(node.args[1]) & kinds:
                yield node.lineno
        elif isinstance(node, ast.Compare) and named(node) & {"type"} and named(node) & kinds:
            yield node.lineno
        elif isinstance(node, ast.match_case) and named(node.pattern) & kinds:
            yield node.pattern.lineno


def tables(source: str) -> Iterator[int]:
    """Lines where a dictionary has several tasks or configurations, or their names, as its keys."""
    kinds = CONFIGS | CLASSES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            keys = [key for key in node.keys if key is not None]
            spelled = {key.value for key in keys if isinstance(key, ast.Constant)}
            if len({name for key in keys for name in named(key)} & kinds | spelled & kinds) > 1:
                yield node.lineno


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_else_asks_which_task_it_is(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert not list(questions(source)), f"{file}: let the task state the fact (diptych/task.py)"
    if file.relative_to(ROOT).as_posix() != ONE_TABLE:
        assert not list(tables(source)), f"{file}: a table by task type; let each task state its own entry"


def test_the_walk_sees_each_kind_of_question() -> None:
    asked = (
        "isinstance(task, EntailmentConfig)",
        "isinstance(task, schema.Nlvr2Config | VqaDecoderConfig)",
        "isinstance(recipe.task, TaskConfig)",
        "from diptych.tasks.retrieval import Retrieval\nissubclass(kind, (Retrieval, Model))",
        "type(task) is VisionStageConfig",
        "match task:\n    case AlbefPretrainConfig():\n        pass",
    )
    assert [source for source in asked if not list(questions(source))] == []
    assert not list(questions("isinstance(model, AlbefConfig | Model)\ntype(layout.task) is type(recipe.task)"))
    assert list(tables("{EntailmentConfig: 1, Nlvr2Config: 2}"))
    assert list(tables('{"EntailmentConfig": 1, "Nlvr2Config": 2}'))
    assert not list(tables("{EntailmentConfig: 1, other: 2}"))


def test_every_task_states_what_others_need_of_it() -> None:
    assert set(catalog.TASKS) == set(get_args(TaskConfig)) - {AddedTaskConfig}
    for task in catalog.TASKS.values():
        assert task.record in get_args(AnyRecord), task
        assert not inspect.isabstract(task)
        assert task.measured_as_retrieval == (task.evaluate is Task.evaluate), task
        assert task.measured_as_retrieval == (task.report is None), task
        own = [ability for ability in task.abilities if ability.calls is None]
        assert bool(own) == (task.responder is not Task.responder), task
        assert not own or task.headed, f"{task}: who asks its head must have it loaded"
        for ability in own:
            assert ability.record is not None
            assert ability.description


def test_a_name_means_one_ability() -> None:
    stated = [ability for task in catalog.TASKS.values() for ability in task.abilities]
    assert {ability.name: ability for ability in stated} == catalog.abilities()
    assert len(set(stated)) == len(catalog.abilities())
