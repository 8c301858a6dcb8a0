"""The only tables of names: whatever a user can name is one line here, and the line leads to the code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, overload

import torch

from diptych.data.record import (
    AnyRecord,
    Entailment,
    PairStatement,
    Picture,
    PlainText,
    Question,
    Record,
    Referring,
    Source,
    TaskSource,
    check_kind,
)
from diptych.data.sources import albef as albef_lists
from diptych.data.sources import (
    conceptual,
    files,
    folder,
    img2dataset,
    jsonl,
    karpathy,
    mix,
    pictures,
    refcoco,
    sbu,
    scene_tasks,
    scenes,
    shards,
    snli_ve,
    texts,
    visual_genome,
)
from diptych.data.sources import nlvr2 as nlvr2_files
from diptych.data.sources import vqa as vqa_files
from diptych.data.sources.files import FileSource, open_layout, without_pictures, without_texts
from diptych.data.sources.listing import SourceListing, each
from diptych.data.tokenizer import Tokenizer
from diptych.models.albef import Albef
from diptych.models.visual_tokenizer import VisualTokenizer
from diptych.models.vlmo import Vlmo
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
from diptych.task import Network, Task
from diptych.tasks import (
    albef_pretraining,
    entailment,
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
"""What builds a model or another network, by the type of a recipe's `model`."""

TASKS: dict[type, Callable[..., Task]] = {
    AlbefPretrainConfig: albef_pretraining.AlbefPretraining,
    VlmoPretrainConfig: vlmo_pretraining.VlmoPretraining,
    RetrievalConfig: retrieval.Retrieval,
    GroundingTrainingConfig: retrieval.Retrieval,
    EntailmentConfig: entailment.Entailment,
    Nlvr2Config: nlvr2.Nlvr2,
    TextAssignmentConfig: nlvr2.TextAssignment,
    VisualTokenizerTrainingConfig: visual_tokenizer.VisualTokenizerTraining,
    VisionStageConfig: masked_image_modelling.VisionStage,
    LanguageStageConfig: masked_language_modelling.LanguageStage,
    VqaDecoderConfig: vqa.VqaDecoding,
    VqaClosedSetConfig: vqa.VqaClosedSet,
}
"""What builds a task from (model, config, special ids, released), by the type of a recipe's `task`; one that is not the
library's gets the first three."""

RECORDS: dict[type, type[AnyRecord]] = {
    GroundingTrainingConfig: Referring,
    EntailmentConfig: Entailment,
    Nlvr2Config: PairStatement,
    VisualTokenizerTrainingConfig: Picture,
    VisionStageConfig: Picture,
    LanguageStageConfig: PlainText,
    VqaDecoderConfig: Question,
    VqaClosedSetConfig: Question,
}
"""What a task trains on, by the type of a recipe's `task`; the others take pictures with captions."""

LAYOUTS: dict[str, Callable[[str, DataConfig], SourceListing]] = {
    "folder": each(folder.read_folder),
    "jsonl": each(jsonl.read_jsonl),
    "pictures": each(pictures.read_pictures),
    "albef": each(albef_lists.read_albef),
    "karpathy": each(karpathy.read_karpathy),
    "visual_genome": each(visual_genome.read_visual_genome),
    "sbu": sbu.read_sbu,
    "conceptual": each(conceptual.read_conceptual),
    "img2dataset": each(img2dataset.read_img2dataset),
    "snli_ve": each(snli_ve.read_snli_ve),
    "vqa": vqa_files.read_vqa,
    "nlvr2": each(nlvr2_files.read_nlvr2),
    "refcoco": refcoco.read_refcoco,
}
"""What reads all that a published layout says, from a path or several with commas between them. VQA v2, SBU and RefCOCO
are in several files, which belong together."""

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
"""What goes through a source whose records are too many to be held, split by split."""

BARE = ("folder", "jsonl", "img2dataset")
"""Layouts whose pictures need no texts: a task that wants pictures alone has them read as `pictures`."""

RECIPES: dict[str, Callable[[], Recipe]] = {
    "albef_tiny": albef_recipes.albef_tiny,
    "albef_small": albef_recipes.albef_small,
    "albef_base": albef_recipes.albef_base,
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
    """The model that a recipe describes, with as many words as the tokenizer has; its weights are fresh."""
    model = MODELS[type(config)](config.with_words(tokenizer.vocab_size, tokenizer.pad_id))
    model.keep_padding = released.keep_padding
    return model


def build_task(recipe: Recipe, tokenizer: Tokenizer) -> Task:
    """The recipe's task, with as many words as the tokenizer has; weights drawn from the run's seed."""
    torch.manual_seed(seed_of(recipe.run.seed, "weights"))
    model = build_model(recipe.model, tokenizer, recipe.released)
    released = () if isinstance(recipe.task, AddedTaskConfig) else (recipe.released,)
    return TASKS[type(recipe.task)](model, recipe.task, special_ids(tokenizer), *released)


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """What a task must know of the words."""
    return SpecialIds(
        tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id,
        tokenizer.continuing_ids,
    )  # fmt: skip


def record_kind(task: TaskConfig) -> type[AnyRecord]:
    """What records a task trains on and is measured by."""
    return RECORDS.get(type(task), Record)


def read_splits(config: DataConfig) -> dict[Split, SourceListing]:
    """All that `data.source` leads to, by split, with what is wrong with it. Raises ValueError."""
    if config.source in LAZY:
        return LAZY[config.source](config)
    return files.read_splits(find_layout(config.source), config)


def find_layout(name: str) -> Callable[[str, DataConfig], SourceListing]:
    """Raises ValueError listing the known layouts."""
    if name not in LAYOUTS:
        raise ValueError(_unknown("layout", name, {**LAYOUTS, **LAZY}))
    return LAYOUTS[name]


def _unknown(what: str, name: str, table: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, table, n=1)
    return (
        f"no {what} '{name}'." + (f" Did you mean '{nearest[0]}'?" if nearest else "") + f" Known: {', '.join(table)}"
    )
