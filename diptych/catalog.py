"""The only tables of names: whatever a user can name is one line here, and the line leads to the code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, overload

from torch import nn

from diptych.data.record import AnyRecord, Record, Source, Split, TaskSource, check_kind
from diptych.data.sources import albef as albef_lists
from diptych.data.sources import (
    conceptual,
    folder,
    img2dataset,
    jsonl,
    karpathy,
    refcoco,
    sbu,
    scene_tasks,
    scenes,
    snli_ve,
    visual_genome,
)
from diptych.data.sources import nlvr2 as nlvr2_files
from diptych.data.sources import vqa as vqa_files
from diptych.data.sources.files import Found, open_layout
from diptych.models import albef as albef_model
from diptych.recipes import albef as albef_recipes
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    EntailmentConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.task import Task
from diptych.tasks import entailment, nlvr2, retrieval, vqa

MODELS: dict[type, Callable[[Any], nn.Module]] = {
    AlbefConfig: albef_model.Albef,
}
"""What builds a model, by the type of a recipe's `model`."""

TASKS: dict[type, Callable[..., Task]] = {
    AlbefPretrainConfig: albef_model.AlbefPretraining,
    RetrievalConfig: retrieval.Retrieval,
    EntailmentConfig: entailment.Entailment,
    Nlvr2Config: nlvr2.Nlvr2,
    TextAssignmentConfig: nlvr2.TextAssignment,
    VqaDecoderConfig: vqa.VqaDecoding,
    VqaClosedSetConfig: vqa.VqaClosedSet,
}
"""What builds a task from (model, config, special ids), by the type of a recipe's `task`."""

LAYOUTS: dict[str, Callable[[str, DataConfig], Found]] = {
    "folder": folder.read_folder,
    "jsonl": jsonl.read_jsonl,
    "albef": albef_lists.read_albef,
    "karpathy": karpathy.read_karpathy,
    "visual_genome": visual_genome.read_visual_genome,
    "sbu": sbu.read_sbu,
    "conceptual": conceptual.read_conceptual,
    "img2dataset": img2dataset.read_img2dataset,
    "snli_ve": snli_ve.read_snli_ve,
    "vqa": vqa_files.read_vqa,
    "nlvr2": nlvr2_files.read_nlvr2,
    "refcoco": refcoco.read_refcoco,
}
"""What reads all that a published layout says, from a path."""

SOURCES: dict[str, Callable[[DataConfig, Split], Source]] = {
    "scenes": scenes.open_scenes,
    **{name: partial(open_layout, read) for name, read in LAYOUTS.items()},
}

RECIPES: dict[str, Callable[[], Recipe]] = {
    "albef_tiny": albef_recipes.albef_tiny,
    "albef_small": albef_recipes.albef_small,
    "albef_base": albef_recipes.albef_base,
}


def find_recipe(name: str) -> Recipe:
    """Raises ValueError listing the known recipes."""
    if name not in RECIPES:
        raise ValueError(_unknown("recipe", name, RECIPES))
    return RECIPES[name]()


@overload
def open_source(config: DataConfig, split: Split) -> Source: ...
@overload
def open_source(config: DataConfig, split: Split, kind: type[AnyRecord]) -> TaskSource[Any]: ...
def open_source(config: DataConfig, split: Split, kind: type = Record) -> Any:
    """The split of the source that `data.source` names, which must hold records of that kind. Raises ValueError."""
    if config.source not in SOURCES:
        raise ValueError(_unknown("data.source", config.source, SOURCES))
    if config.source == "scenes" and kind is not Record:
        return scene_tasks.open_scene_task(config, split, kind)
    source = SOURCES[config.source](config, split)
    check_kind(source, kind, f"data.source={config.source}")
    return source


def find_layout(name: str) -> Callable[[str, DataConfig], Found]:
    """Raises ValueError listing the known layouts."""
    if name not in LAYOUTS:
        raise ValueError(_unknown("layout", name, LAYOUTS))
    return LAYOUTS[name]


def _unknown(what: str, name: str, table: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, table, n=1)
    return (
        f"no {what} '{name}'." + (f" Did you mean '{nearest[0]}'?" if nearest else "") + f" Known: {', '.join(table)}"
    )
