"""Tables of the models, tasks, data sources and recipes that a user can name. Each line leads to the code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch

from diptych.data.record import AnyRecord, BadRecord, Picture, PlainText, Record, Source, TaskSource, check_kind
from diptych.data.skips import list_errors
from diptych.data.sources import albef as albef_lists
from diptych.data.sources import (
    coco,
    conceptual,
    files,
    folder,
    img2dataset,
    jsonl,
    karpathy,
    mix,
    pictures,
    recognise,
    refcoco,
    sbu,
    scene_tasks,
    scenes,
    shards,
    snli_ve,
    table,
    texts,
    visual_genome,
)
from diptych.data.sources import nlvr2 as nlvr2_files
from diptych.data.sources import vqa as vqa_files
from diptych.data.sources.files import FileSource, open_layout, without_pictures, without_texts
from diptych.data.sources.listing import SourceListing, each
from diptych.data.tokenizer import Tokenizer
from diptych.facts import Ability, TaskReport
from diptych.models.albef import Albef
from diptych.models.visual_tokenizer import VisualTokenizer
from diptych.models.vlmo import Vlmo
from diptych.places import allow
from diptych.recipes import albef as albef_recipes
from diptych.recipes import albef_base_tasks, albef_tasks, vlmo_base_tasks, vlmo_stages, vlmo_tasks
from diptych.recipes import vlmo as vlmo_recipes
from diptych.schema import (
    AddedTaskConfig,
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    EntailmentConfig,
    GroundingTrainingConfig,
    LanguageStageConfig,
    ModelConfig,
    Nlvr2Config,
    Recipe,
    Released,
    RetrievalConfig,
    SpecialIds,
    Split,
    TaskConfig,
    TextAssignmentConfig,
    VisionStageConfig,
    VisualTokenizerConfig,
    VisualTokenizerTrainingConfig,
    VlmoConfig,
    VlmoPretrainConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.seeds import seed_of
from diptych.serialize import ADDED, places_of
from diptych.task import Network, Task
from diptych.tasks import (
    albef_pretraining,
    entailment,
    grounding,
    masked_image_modelling,
    masked_language_modelling,
    nlvr2,
    retrieval,
    visual_tokenizer,
    vlmo_pretraining,
    vqa,
)

MODELS: dict[type, Callable[[Any], Network]] = {
    AlbefConfig: Albef,
    VlmoConfig: Vlmo,
    VisualTokenizerConfig: VisualTokenizer,
}
"""Maps the type of a recipe's `model` to the class of the model or other network."""

TASKS: dict[type, type[Task]] = {
    AlbefPretrainConfig: albef_pretraining.AlbefPretraining,
    VlmoPretrainConfig: vlmo_pretraining.VlmoPretraining,
    VisualTokenizerTrainingConfig: visual_tokenizer.VisualTokenizerTraining,
    VisionStageConfig: masked_image_modelling.VisionStage,
    LanguageStageConfig: masked_language_modelling.LanguageStage,
    RetrievalConfig: retrieval.Retrieval,
    EntailmentConfig: entailment.Entailment,
    VqaDecoderConfig: vqa.VqaDecoding,
    VqaClosedSetConfig: vqa.VqaClosedSet,
    TextAssignmentConfig: nlvr2.TextAssignment,
    Nlvr2Config: nlvr2.Nlvr2,
    GroundingTrainingConfig: grounding.Grounding,
}
"""Maps the type of a recipe's `task` to the class of the task, which is built from (model, config, special ids,
released) and states all other facts of the task. A task that is not the library's gets the first three arguments.
Abilities are listed in this order."""

LAYOUTS: dict[str, Callable[[str, DataConfig], SourceListing]] = {
    "folder": each(folder.read_folder),
    "jsonl": each(jsonl.read_jsonl),
    "table": each(table.read_table),
    "datasets": each(table.read_datasets),
    "pictures": each(pictures.read_pictures),
    "albef": each(albef_lists.read_albef),
    "karpathy": each(karpathy.read_karpathy),
    "coco_captions": each(coco.read_coco_captions),
    "visual_genome": each(visual_genome.read_visual_genome),
    "sbu": sbu.read_sbu,
    "conceptual": each(conceptual.read_conceptual),
    "img2dataset": each(img2dataset.read_img2dataset),
    "snli_ve": each(snli_ve.read_snli_ve),
    "vqa": vqa_files.read_vqa,
    "nlvr2": each(nlvr2_files.read_nlvr2),
    "refcoco": refcoco.read_refcoco,
}
"""Functions that read everything in a published layout from a path, or from several with commas between them. VQA v2,
SBU and RefCOCO consist of several files each, which belong together."""

SOURCES: dict[str, Callable[[DataConfig, Split], Any]] = {
    "scenes": scenes.open_scenes,
    "texts": texts.open_texts,
    "shards": shards.open_shards,
    "mix": lambda config, split: mix.open_mix(config, split, open_source),
    **{name: partial(open_layout, read) for name, read in LAYOUTS.items()},
}

LAZY: dict[str, Callable[[DataConfig], dict[Split, SourceListing]]] = {
    "texts": texts.read_splits,
    "shards": shards.read_splits,
}
"""Functions that walk through a source with too many records to be held in memory, split by split."""

AUTO = "auto"
"""The value of `data.source` that has the layout recognised by looking at the files."""

BARE = ("folder", "jsonl", "img2dataset")
"""Layouts whose pictures need no texts. A task on pictures alone has them read as `pictures`."""

RECIPES: dict[str, Callable[[], Recipe]] = {
    "albef_tiny": albef_recipes.albef_tiny,
    "albef_small": albef_recipes.albef_small,
    "albef_base": albef_recipes.albef_base,
    "albef_tower": albef_recipes.albef_tower,
    "albef_tower_whole": albef_recipes.albef_tower_whole,
    "albef_tiny_retrieval": albef_tasks.albef_tiny_retrieval,
    "albef_tiny_grounding": albef_tasks.albef_tiny_grounding,
    "albef_tiny_entailment": albef_tasks.albef_tiny_entailment,
    "albef_tiny_vqa": albef_tasks.albef_tiny_vqa,
    "albef_tiny_vqa_closed": albef_tasks.albef_tiny_vqa_closed,
    "albef_tiny_assignment": albef_tasks.albef_tiny_assignment,
    "albef_tiny_nlvr2": albef_tasks.albef_tiny_nlvr2,
    "albef_base_retrieval_coco": albef_base_tasks.albef_base_retrieval_coco,
    "albef_base_retrieval_flickr": albef_base_tasks.albef_base_retrieval_flickr,
    "albef_base_entailment": albef_base_tasks.albef_base_entailment,
    "albef_base_vqa": albef_base_tasks.albef_base_vqa,
    "albef_base_vqa_closed": albef_base_tasks.albef_base_vqa_closed,
    "albef_base_assignment": albef_base_tasks.albef_base_assignment,
    "albef_base_nlvr2": albef_base_tasks.albef_base_nlvr2,
    "albef_base_grounding": albef_base_tasks.albef_base_grounding,
    "vlmo_tiny": vlmo_recipes.vlmo_tiny,
    "vlmo_small": vlmo_recipes.vlmo_small,
    "vlmo_base": vlmo_recipes.vlmo_base,
    "vlmo_base_plus": vlmo_recipes.vlmo_base_plus,
    "vlmo_large": vlmo_recipes.vlmo_large,
    "visual_tokenizer_tiny": vlmo_stages.visual_tokenizer_tiny,
    "visual_tokenizer_base": vlmo_stages.visual_tokenizer_base,
    "vlmo_tiny_vision": vlmo_stages.vlmo_tiny_vision,
    "vlmo_base_vision": vlmo_stages.vlmo_base_vision,
    "vlmo_base_plus_vision": vlmo_stages.vlmo_base_plus_vision,
    "vlmo_large_vision": vlmo_stages.vlmo_large_vision,
    "vlmo_tiny_language": vlmo_stages.vlmo_tiny_language,
    "vlmo_base_language": vlmo_stages.vlmo_base_language,
    "vlmo_base_plus_language": vlmo_stages.vlmo_base_plus_language,
    "vlmo_large_language": vlmo_stages.vlmo_large_language,
    "vlmo_tiny_retrieval": vlmo_tasks.vlmo_tiny_retrieval,
    "vlmo_tiny_grounding": vlmo_tasks.vlmo_tiny_grounding,
    "vlmo_tiny_entailment": vlmo_tasks.vlmo_tiny_entailment,
    "vlmo_tiny_vqa": vlmo_tasks.vlmo_tiny_vqa,
    "vlmo_tiny_vqa_closed": vlmo_tasks.vlmo_tiny_vqa_closed,
    "vlmo_tiny_assignment": vlmo_tasks.vlmo_tiny_assignment,
    "vlmo_tiny_nlvr2": vlmo_tasks.vlmo_tiny_nlvr2,
    "vlmo_base_retrieval_coco": vlmo_base_tasks.vlmo_base_retrieval_coco,
    "vlmo_base_retrieval_flickr": vlmo_base_tasks.vlmo_base_retrieval_flickr,
    "vlmo_base_plus_retrieval_coco": vlmo_base_tasks.vlmo_base_plus_retrieval_coco,
    "vlmo_base_plus_retrieval_flickr": vlmo_base_tasks.vlmo_base_plus_retrieval_flickr,
    "vlmo_large_retrieval_coco": vlmo_base_tasks.vlmo_large_retrieval_coco,
    "vlmo_large_retrieval_flickr": vlmo_base_tasks.vlmo_large_retrieval_flickr,
    "vlmo_base_vqa_closed": vlmo_base_tasks.vlmo_base_vqa_closed,
    "vlmo_base_plus_vqa_closed": vlmo_base_tasks.vlmo_base_plus_vqa_closed,
    "vlmo_large_vqa_closed": vlmo_base_tasks.vlmo_large_vqa_closed,
    "vlmo_base_vqa": vlmo_base_tasks.vlmo_base_vqa,
    "vlmo_base_nlvr2": vlmo_base_tasks.vlmo_base_nlvr2,
    "vlmo_base_plus_nlvr2": vlmo_base_tasks.vlmo_base_plus_nlvr2,
    "vlmo_large_nlvr2": vlmo_base_tasks.vlmo_large_nlvr2,
    "vlmo_base_entailment": vlmo_base_tasks.vlmo_base_entailment,
    "vlmo_base_grounding": vlmo_base_tasks.vlmo_base_grounding,
}


def find_recipe(name: str) -> Recipe:
    """Returns the recipe of that name. Raises ValueError listing the known recipes."""
    if name not in RECIPES:
        raise ValueError(_unknown("recipe", name, RECIPES))
    return RECIPES[name]()


@overload
def open_source(config: DataConfig, split: Split) -> Source: ...
@overload
def open_source(config: DataConfig, split: Split, kind: type[AnyRecord]) -> TaskSource[Any]: ...
def open_source(config: DataConfig, split: Split, kind: type = Record) -> Any:
    """Opens a split of the source that `data.source` names. Raises ValueError unless it holds records of that kind.

    Places that a stored recipe names are asked about first (`diptych.places`).
    """
    if config.source != "scenes":  # which reads nothing
        allow(places_of(config, "data"))
    config = _known(config, bare=kind is Picture)
    try:
        return _open_source(config, split, kind)
    except BadRecord:
        raise
    except ValueError as error:
        raise _advised(str(error), recognise.advice(config)) from error


def _open_source(config: DataConfig, split: Split, kind: type) -> Any:
    if config.source == "scenes" and kind is not Record:
        return scene_tasks.open_scene_task(config, split, kind)
    if config.source == "mix":
        return mix.open_mix(config, split, lambda part, which: open_source(part, which, kind))
    if config.source == "shards" and kind is Picture:
        return shards.open_shards(config, split, kind)
    if kind is Picture and config.source in LAYOUTS:
        layout = LAYOUTS["pictures" if config.source in BARE else config.source]
        return without_texts(open_layout(layout, config, split))
    source = SOURCES[config.source](config, split)
    if kind is PlainText and isinstance(source, FileSource) and not isinstance(source.record(0), PlainText):
        return without_pictures(source)
    check_kind(source, kind, f"data.source={config.source}")
    return source


def build_model(config: ModelConfig, tokenizer: Tokenizer, released: Released = Released()) -> Network:
    """Builds the model that a recipe describes, with fresh weights and as many words as the tokenizer has."""
    model = MODELS[type(config)](config.with_words(tokenizer.vocab_size, tokenizer.pad_id))
    model.keep_padding = released.keep_padding
    return model


def build_task(recipe: Recipe, tokenizer: Tokenizer) -> Task:
    """Builds the recipe's task, with as many words as the tokenizer has and weights drawn from the run's seed."""
    torch.manual_seed(seed_of(recipe.run.seed, "weights"))
    model = build_model(recipe.model, tokenizer, recipe.released)
    released = (recipe.released,) if recipe.task.takes_released else ()
    return task_class(recipe.task)(model, recipe.task, special_ids(tokenizer), *released)


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Collects the ids that a task needs to know of the vocabulary."""
    return SpecialIds(
        tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id,
        tokenizer.continuing_ids,
    )  # fmt: skip


def task_class(config: TaskConfig) -> type[Task]:
    """Returns the class of a configured task, which states the task's facts."""
    return TASKS[type(config)]


def add_task(config: type[AddedTaskConfig], task: type[Task]) -> None:
    """Makes a task known that is not the library's, for training, evaluation, prediction, serving and reports.

    Stored recipes with this configuration can be read from now on (examples/captioning.py).
    """
    TASKS[config] = task
    ADDED[config.__name__] = config


def abilities() -> dict[str, Ability]:
    """Collects everything that can be asked of trained models, by name."""
    return {ability.name: ability for task in TASKS.values() for ability in task.abilities}


def find_ability(name: str) -> Ability:
    """Returns an ability by its name. Raises ValueError for an unknown one, with the nearest."""
    table = abilities()
    if name not in table:
        raise ValueError(_unknown("ability", name, table))
    return table[name]


def reports() -> Iterator[tuple[str, TaskReport]]:
    """Yields the configuration's name and the report of every task that is evaluated record by record."""
    return ((config.__name__, task.report) for config, task in TASKS.items() if task.report is not None)


def record_kind(task: TaskConfig) -> type[AnyRecord]:
    """Returns the record type that a task trains on and is evaluated by."""
    return task_class(task).record


def read_splits(config: DataConfig) -> dict[Split, SourceListing]:
    """Reads everything that `data.source` leads to, by split, with its faults.

    Raises ValueError, which says what the files are if they have another layout.
    """
    allow(places_of(config, "data"))
    if config.source == AUTO:
        config = replace(config, source=recognise.recognised(config))
    find = LAZY[config.source] if config.source in LAZY else partial(files.read_splits, find_layout(config.source))
    try:
        listings = find(config)
    except ValueError as error:
        raise _advised(str(error), recognise.advice(config)) from error
    if not any(listing.records for listing in listings.values()) and (advice := recognise.advice(config)):
        lost = [error for listing in listings.values() for error in listing.skipped]
        raise _advised(f"{config.path} holds no usable record:\n{list_errors(lost, most=3)}", advice)
    return listings


def _advised(message: str, advice: str) -> ValueError:
    """Returns an error that says what the files are, if they have another layout, before it lists their faults."""
    if not advice or advice in message:
        return ValueError(message)
    summary, *faults = message.split("\n", maxsplit=1)
    reason = summary.partition(": ")[2]
    said = [] if reason and reason in advice else [summary]
    return ValueError("\n".join([*said, advice, *faults]))


def _known(config: DataConfig, bare: bool = False) -> DataConfig:
    """Returns the configuration with the name of a known source. Raises ValueError."""
    if config.source == AUTO:
        return replace(config, source=recognise.recognised(config, bare))
    if config.source not in SOURCES:
        raise ValueError(_unknown("data.source", config.source, {**SOURCES, AUTO: None}))
    return config


def find_layout(name: str) -> Callable[[str, DataConfig], SourceListing]:
    """Returns the function that reads a layout. Raises ValueError listing the known layouts."""
    if name not in LAYOUTS:
        raise ValueError(_unknown("layout", name, {**LAYOUTS, **LAZY, AUTO: None}))
    return LAYOUTS[name]


def _unknown(kind: str, name: str, table: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, table, n=1)
    return (
        f"no {kind} '{name}'." + (f" Did you mean '{nearest[0]}'?" if nearest else "") + f" Known: {', '.join(table)}"
    )
