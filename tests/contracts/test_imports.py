"""Imports point down the floors only, and never sideways."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import diptych

ROOT = Path(diptych.__file__).parent

APPS = (
    ("app", "serve"), ("ablate", "demo"), ("audit", "compare", "doctor", "plan"), ("report",),
    ("adapters", "index", "export", "connections", "web"),
)  # fmt: skip
"""The outer ring, `diptych/apps`: applications of trained models."""
CORE = (
    ("run",),
    ("pretrained",),
    ("train",),
    ("evaluate",),
    ("predict",),
    ("search",),
    ("catalog",),
    ("recipes",),
    ("tasks",),
    ("models",),
    ("task",),
    ("facts",),
    ("losses", "metrics"),
    ("data",),
    ("synthetic",),
    ("checkpoints",),
    ("nn",),
    ("types",),
    (
        "schema",
        "serialize",
        "seeds",
        "device",
        "cache",
        "launched",
        "logged",
        "console",
        "writing",
        "places",
        "printable",
        "reading",
        "timing",
    ),
)
"""The inner ring: what the papers are about. It imports nothing of the outer one, which stands above it."""
FLOORS = (("__main__",), ("cli",), *(tuple(f"apps.{room}" for room in floor) for floor in APPS), *CORE)
"""Rooms of one floor do not import each other, but for the bottom floor, which is of small helpers."""
ALONE = ("models", "tasks")
"""Rooms whose files, or packages, do not import each other."""
SHARED = (
    "models.albef_weights", "models.vlmo_weights", "tasks.distilled", "tasks.phrases", "tasks.pretraining",
    "tasks.retrieval",
)  # fmt: skip
"""But for these, which several files of their room share (grounding is retrieval, evaluated by boxes)."""
MAY_IMPORT_CATALOG = {
    "cli", "apps.app", "apps.serve", "apps.ablate", "apps.demo", "apps.compare", "apps.plan", "apps.report",
    "apps.export", "run", "pretrained", "predict",
}  # fmt: skip
WEB_ROOMS = ("apps.app", "apps.connections", "apps.serve")
WEB = {"fastapi", "flask", "gradio", "starlette", "streamlit", "uvicorn"}
WITHOUT_TORCH = (
    "schema", "serialize", "seeds", "launched", "places", "printable", "reading", "data.record", "apps.doctor",
    "cli.main", "cli.doctor", "apps.plan.cards", "apps.plan.communication",
)  # fmt: skip

LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
BOTTOM = len(FLOORS) - 1


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports(source: str) -> list[str]:
    """Every imported dotted name, wherever in the file it stands; `from a import b` gives `a.b`."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the whole name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own_imports(source: str) -> list[str]:
    """Modules of this package that a source imports, without the package's name."""
    inside = [name.removeprefix("diptych.") for name in imports(source) if name.startswith("diptych.")]
    return [name if name in MODULES else name.rpartition(".")[0] for name in inside if not name.startswith("__")]


def room_of(module: str) -> str:
    """The room of a module; the applications are rooms of their own."""
    first, _, rest = module.partition(".")
    return f"apps.{rest.partition('.')[0]}" if first == "apps" and rest else first


def offence(importer: str, imported: str) -> str | None:
    """What is wrong with one module importing another, or None."""
    room, other = room_of(importer), room_of(imported)
    if room == other:
        apart = importer.split(".")[:2] != imported.split(".")[:2]
        return "files of this room stand alone" if room in ALONE and apart and imported not in SHARED else None
    if other not in LEVEL or room not in LEVEL:
        return "no such room: add it to its floor"
    if LEVEL[other] < LEVEL[room]:
        return "imports up"
    if LEVEL[other] == LEVEL[room] != BOTTOM:
        return "imports sideways"
    if other == "catalog" and room not in MAY_IMPORT_CATALOG:
        return "may not know the catalog"
    return None


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_down_only(name: str) -> None:
    found = {imported: offence(name, imported) for imported in own_imports(MODULES[name].read_text()) if imported}
    assert not {imported: why for imported, why in found.items() if why}


@pytest.mark.parametrize(
    ("importer", "source", "why"),
    [
        ("losses.matching", "from diptych.models.albef import Albef", "imports up"),
        ("losses.matching", "def f():\n    from diptych import catalog", "imports up"),
        ("losses.matching", "import diptych.metrics.recall", "imports sideways"),
        ("models.vlmo", "from diptych.models import albef", "files of this room stand alone"),
        ("tasks.vlmo_pretraining", "from diptych.models.vlmo import Vlmo", None),
        ("run", "from diptych.apps.report import collect", "imports up"),
        ("apps.plan.predict", "from diptych.apps.doctor import run", "imports sideways"),
        ("kitchen", "from diptych.nn import queue", "no such room: add it to its floor"),
        ("train.loop", "from diptych.data.loader import Loaded", None),
        ("cli.train", "from diptych.catalog import RECIPES", None),
    ],
)
def test_the_walk_sees_each_kind_of_offence(importer: str, source: str, why: str | None) -> None:
    assert [offence(importer, name) for name in own_imports(source)] == [why]


def import_circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns the modules of one circle, with the first one again at the end; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, too: a circle that is resolved late is still one."""
    assert not import_circle({name: own_imports(file.read_text()) for name, file in MODULES.items()})


def test_a_circle_of_imports_is_found() -> None:
    graph = {"store": ["items", "folder"], "folder": ["store"], "items": []}
    assert set(import_circle(graph)) == {"store", "folder"}
    assert not import_circle({"store": ["items"], "folder": ["store", "items"]})


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) not in WEB_ROOMS])
def test_web_dependencies_stay_in_the_web_rooms(name: str) -> None:
    assert not WEB & {imported.partition(".")[0] for imported in imports(MODULES[name].read_text())}


def test_what_help_touches_does_not_lead_to_torch() -> None:
    waiting, seen = list(WITHOUT_TORCH), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        source = MODULES[name].read_text()
        assert not {"torch", "numpy", "jaxtyping"} & {found.partition(".")[0] for found in imports(source)}, name
        waiting += [imported for imported in own_imports(source) if imported]
    assert "schema" in seen
