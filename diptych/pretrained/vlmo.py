"""Layouts and sizes of published VLMos, and of a BEiT, from which VLMo's second stage may start."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych import catalog
from diptych.models.vlmo_weights import fit_state, grid_side, with_text_rows
from diptych.nn.relative import entry_count, max_text_of, relative_index
from diptych.pretrained.family import (
    Family,
    Options,
    State,
    heads_of_64,
    numbers,
    resized_positions,
    shape,
    square_side,
    word_count,
)
from diptych.pretrained.formats import Contents, Layout, unused
from diptych.pretrained.vlmo_names import (
    ALIGNMENT,
    INDEX_TABLES,
    SHARED_TABLE,
    as_beit,
    beit_rules,
    beit_stage_rules,
    published_rules,
)
from diptych.reading import expand_home, parse_json, read_bounded
from diptych.schema import (
    LanguageStageConfig,
    ModelConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    VisionStageConfig,
    VlmoConfig,
    VlmoPretrainConfig,
    VqaClosedSetConfig,
)

_TABLE = "relative_position_bias_table"
_TEXT = "text_embeddings.position_embeddings.weight"
_CLASS = "transformer.cls_token"
_BARE = ((r"^module\.", ""),)
_FUSED = (*ALIGNMENT, "match_head", "word_head")
_HEADS = {544: 16}
"""Heads by width, for the published size whose heads are not 64 wide: base_plus."""
_TEXT_LENGTH = 196
"""The longest text of every released table of relative positions."""

LAYOUTS: dict[str, Layout] = {
    "vlmo_nlvr2": Layout(
        "VLMo, fine-tuned for NLVR2",
        {_CLASS: 1, "nlvr2_classifier.3.weight": 2},
        lambda config: [*published_rules(config, ["nlvr2_classifier"]), *unused(*_FUSED)],
        Nlvr2Config(alpha=0.0, head="gelu"),
        _BARE,
        able=("tell whether a statement is true of two pictures",),
    ),
    "vlmo_vqa": Layout(
        "VLMo, fine-tuned for VQA with a closed set of answers",
        {_CLASS: 1, "vqa_classifier.3.weight": None},
        lambda config: [*published_rules(config, ["vqa_classifier"]), *unused(*_FUSED)],
        VqaClosedSetConfig(),
        _BARE,
        able=("choose a question's answer from its closed set",),
    ),
    "vlmo": Layout(
        "VLMo, pre-trained on pairs (third stage)",
        {_CLASS: 1, "itm_score.fc.weight": 2, "itc_vl_text_proj.fc.weight": None},
        lambda config: published_rules(config, []),
        VlmoPretrainConfig(),
        _BARE,
        able=("embed images and texts", "match and rank them", "predict masked words", "start any fine-tuning"),
    ),
    "vlmo_retrieval": Layout(
        "VLMo, fine-tuned for retrieval (COCO or Flickr30k: the same tensors)",
        {_CLASS: 1, "itc_text_proj.fc.weight": None},
        lambda config: [
            *published_rules(config, []),
            *unused("vl_log_scale", "vl_image_proj", "vl_text_proj", "match_head", "word_head"),
        ],
        RetrievalConfig(keys="batch", queue_size=0, alpha=0.0, itm=0.0),
        _BARE,
        able=("embed images and texts, and rank them by similarity",),
    ),
    "vlmo_language": Layout(
        "VLMo, pre-trained on images and on texts (second stage)",
        {_CLASS: 1, "mlm_score.bias": None},
        lambda config: [*published_rules(config, []), *unused(*ALIGNMENT, "match_head")],
        LanguageStageConfig(),
        _BARE,
        able=("start the third stage",),
    ),
    "beit": Layout(
        "a BEiT, as released or in the timm layout",
        {"cls_token": 1, "blocks.0.attn.q_bias": None},
        beit_rules,
        LanguageStageConfig(),
        _BARE,
        able=("start VLMo's second stage",),
    ),
}

BEIT_STAGE = Layout(
    "a BEiT, pre-trained", {}, beit_stage_rules, VisionStageConfig(), able=("start VLMo's second stage",)
)
"""The layout in which a run of the first stage is exported. Such a file is read as any other BEiT."""


class VlmoFamily(Family):
    """VLMo, one transformer that is trained in three stages, and BEiT."""

    config = VlmoConfig
    layouts = LAYOUTS
    base = "vlmo_base"
    separator = True

    def recipe(self, layout: Layout, state: State) -> Recipe:
        """Returns the published recipe of the file's size and task, or else the base recipe with this task."""
        size = shape(state, f"{_prefix(state)}cls_token")[-1], _depth(state)
        recipes = [make() for name, make in catalog.RECIPES.items() if name.startswith("vlmo_")]
        of_size = [
            recipe
            for recipe in recipes
            if isinstance(recipe.model, VlmoConfig) and (recipe.model.width, recipe.model.depth) == size
        ]
        fallback = next((recipe for recipe in of_size if recipe.name in PUBLISHED), catalog.find_recipe(self.base))
        fitting = (recipe for recipe in of_size if type(recipe.task) is type(layout.task))
        return next(fitting, replace(fallback, task=layout.task))

    def file_model(
        self, state: State, layout: Layout, base: ModelConfig, options: Options, contents: Sequence[Contents]
    ) -> VlmoConfig:
        assert isinstance(base, VlmoConfig)
        heads = options.heads[0] if options.heads else None
        model = config_from_shapes(state, base, heads, options.trained_image_size)
        if model.positions == "relative":
            _check_index_tables(state, model)
        reads_no_text = _TEXT not in state and _TABLE not in state
        return replace(model, max_positions=options.text_length or base.max_positions) if reads_no_text else model

    def wanted_model(self, model: ModelConfig, options: Options) -> VlmoConfig:
        assert isinstance(model, VlmoConfig)
        return replace(
            model,
            image_size=options.image_size or model.image_size,
            max_positions=options.text_length or model.max_positions,
        )

    def fill_recipe(self, recipe: Recipe, state: State, options: Options) -> Recipe:
        """Cuts texts and normalises pixels as in training, and names the answers of the closed set."""
        assert isinstance(recipe.model, VlmoConfig)
        longest = options.text_length or (len(state[_TEXT]) if _TEXT in state else recipe.data.max_tokens)
        longest = min(longest, recipe.model.max_positions)
        data = replace(recipe.data, max_tokens=longest, max_tokens_evaluation=longest, normalise="vlmo")
        recipe = replace(recipe, data=data)
        task: Any = recipe.task
        if "vqa_classifier.3.weight" not in state:
            return recipe
        classes = len(state["vqa_classifier.3.weight"])
        answers = _answers(options.answers, classes)
        return replace(recipe, task=replace(task, answers=answers, answer_count=classes))

    def fit_weights(
        self, ours: dict[str, Tensor], fresh: State, model: ModelConfig, wanted: ModelConfig
    ) -> tuple[dict[str, Tensor], str | None]:
        assert isinstance(model, VlmoConfig)
        assert isinstance(wanted, VlmoConfig)
        table, notes = ours.get("model.positions.table"), []
        if table is not None and len(table) < entry_count(grid_side(model), model.max_positions):
            ours = ours | {"model.positions.table": with_text_rows(table, fresh["model.positions.table"], model)}
            notes.append("relative positions of texts are not in the file: the recipe's, learnt in the second stage")
        if grid_side(model) != grid_side(wanted):
            notes.append(resized_positions(grid_side(model), grid_side(wanted), wanted.image_size))
        if model.max_positions != wanted.max_positions:
            notes.append(f"positions of texts of {model.max_positions} tokens made to fit {wanted.max_positions}")
        return fit_state(ours, model, wanted), "; ".join(notes) or None

    def describe_file(self, state: State, layout: Layout) -> list[str]:
        base = self.recipe(layout, state).model
        assert isinstance(base, VlmoConfig)
        # Shapes do not always tell the number of heads, and no line mentions it: any number will do.
        grids, patch = _possible_grids(state), shape(state, f"{_prefix(state)}patch_embed.proj.weight")[-1]
        trained_image_size = min(grids) * patch if len(grids) > 1 else None
        model = config_from_shapes(state, base, heads=1, trained_image_size=trained_image_size)
        lines = _lines(model)[: 2 if word_count(state) is None else None]
        return lines if len(grids) < 2 else [lines[0], f"  unsaid   positions are for {_in_words(grids, patch)}"]

    def describe_run(self, recipe: Recipe, state: State) -> list[str]:
        assert isinstance(recipe.model, VlmoConfig)
        return _lines(recipe.model)

    def released_layout(self, recipe: Recipe) -> Layout | None:
        return BEIT_STAGE if recipe.task.learns_from == "pictures" else super().released_layout(recipe)

    def as_released(self, weights: State, recipe: Recipe) -> State:
        assert isinstance(recipe.model, VlmoConfig)
        return as_beit(weights, recipe.model) if recipe.task.learns_from == "pictures" else weights

    def complete(self, published: State, recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Adds the index tables of relative positions, without which the released code cannot resize them."""
        model = recipe.model
        assert isinstance(model, VlmoConfig)
        reasons = {}
        if recipe.data.normalise != "vlmo":
            reasons["pixels"] = "normalised as ALBEF's; released code scales them to -1 to 1"
        if recipe.task.learns_from == "pictures":
            return dict(published), reasons
        if not model.text_norm:
            raise ValueError("the released code normalises text embeddings, which model.text_norm=false leaves out")
        if model.positions == "absolute":
            return dict(published), reasons
        side, length = grid_side(model), min(recipe.data.max_tokens, model.max_positions)
        tables = {
            name: relative_index(*tokens, side, model.max_positions, "cpu")
            for name, tokens in _index_tables(length, side).items()
        }
        tables |= {_TEXT: torch.zeros(length, model.width), "text_embeddings.position_ids": torch.arange(length)[None]}
        return dict(published) | tables, reasons | {_TEXT: "never read, and not stored here: filled with zeros"}


PUBLISHED = ("vlmo_base", "vlmo_base_plus", "vlmo_large")
"""The recipes of the published sizes."""

# --------------------------------------------------------------------------- sizes


def config_from_shapes(state: State, base: VlmoConfig, heads: int | None, trained_image_size: int | None) -> VlmoConfig:
    """Reads a model's configuration off the shapes of published tensors, and takes `base` where these do not tell it.

    `heads` is used where no table of relative positions tells it, and `trained_image_size` where such a table comes
    without its index tables. Raises ValueError for shapes that no VLMo and no BEiT has.
    """
    prefix, depth = _prefix(state), _depth(state)
    width, _, _, patch = shape(state, f"{prefix}patch_embed.proj.weight")
    mlp_width = shape(state, f"{prefix}blocks.0.{'mlp_imag' if prefix else 'mlp'}.fc1.weight")[0]
    scaled = f"{prefix}blocks.0.gamma_1" in state
    config = replace(
        base, width=width, patch_size=patch, depth=depth, mlp_ratio=mlp_width / width, stem="patch", text_norm=True,
        experts="modality", attention="shared",
        fusion_start=min(numbers(state, r"transformer\.blocks\.(\d+)\.mlp_vl\."), default=depth),
        layer_scale=(base.layer_scale or VlmoConfig().layer_scale) if scaled else None,
    )  # fmt: skip
    if "token_type_embeddings.weight" in state:
        words = shape(state, "text_embeddings.word_embeddings.weight")[0]
        images = len(state["token_type_embeddings.weight"]) - 1
        config = replace(config, vocab_size=words, images_per_text=images)
    if f"{prefix}pos_embed" in state:
        side = square_side(len(state[f"{prefix}pos_embed"][0]) - 1, "image positions beside one class token")
        longest = len(state[_TEXT]) if _TEXT in state else config.max_positions
        heads = heads or _HEADS.get(width) or heads_of_64(width, "transformer")
        return replace(config, positions="absolute", heads=heads, image_size=side * patch, max_positions=longest)
    if _TABLE in state:
        side, longest = _grid_of_table(state, patch, trained_image_size)
        heads, rest = divmod(state[_TABLE].shape[1], depth)
    else:
        table = state.get(SHARED_TABLE)
        entries, heads = table.shape if table is not None else shape(state, f"blocks.0.attn.{_TABLE}")
        side, longest, rest = (square_side(entries - 3, "patch offsets") + 1) // 2, config.max_positions, 0
    if rest:
        raise ValueError(f"{state[_TABLE].shape[1]} columns of relative positions are no whole heads of {depth} layers")
    return replace(config, positions="relative", heads=heads, image_size=side * patch, max_positions=longest)


def _prefix(state: State) -> str:
    """Returns what the names of the transformer begin with: in a VLMo's file `transformer.`, in a BEiT's nothing."""
    return "transformer." if _CLASS in state else ""


def _depth(state: State) -> int:
    return len(numbers(state, rf"{re.escape(_prefix(state))}blocks\.(\d+)\."))


def _possible_grids(state: State) -> dict[int, int]:
    """Returns the grids that a file's table of relative positions may be for: side of the image → longest text.

    The table's length alone does not tell both. An index table tells the side; otherwise several sides may fit.
    """
    if _TABLE not in state:
        return {}
    entries = len(state[_TABLE])
    if INDEX_TABLES[0] in state:
        side = square_side(len(state[INDEX_TABLES[0]]) - 1, "patches")
        return {side: max_text_of(entries, side)}
    shortest = len(state[_TEXT]) if _TEXT in state else 2
    text_entries = {side: entries - entry_count(side, 0) for side in range(1, math.isqrt(entries))}
    grids = {side: rest // 2 for side, rest in text_entries.items() if rest >= 2 * shortest and rest % 2 == 0}
    return {side: longest for side, longest in grids.items() if longest == _TEXT_LENGTH} or grids


def _in_words(grids: Mapping[int, int], patch: int) -> str:
    return ", or ".join(f"{side * patch} px and {longest} tokens" for side, longest in grids.items())


def _grid_of_table(state: State, patch: int, trained_image_size: int | None) -> tuple[int, int]:
    """Returns the side of the image and the longest text that a table of relative positions is for.

    Raises ValueError where several fit and `trained_image_size` does not choose.
    """
    entries, grids = len(state[_TABLE]), _possible_grids(state)
    if trained_image_size and INDEX_TABLES[0] not in state:
        side = trained_image_size // patch
        return side, max_text_of(entries, side)
    if len(grids) == 1:
        return next(iter(grids.items()))
    raise ValueError(
        f"the file lacks the index tables that tell what its {entries} relative positions are for "
        f"({_in_words(grids, patch) or 'no size fits'}): say it with --trained-image-size"
    )


def _index_tables(text_length: int, side: int) -> dict[str, tuple[int, int | None]]:
    """Returns the text length and the side of the image that each index table is for."""
    return dict(zip(INDEX_TABLES, ((0, side), (text_length, None), (text_length, side)), strict=True))


def _check_index_tables(state: State, model: VlmoConfig) -> None:
    """Raises ValueError for a file whose relative positions are numbered differently from ours."""
    side = grid_side(model)
    length = len(state[INDEX_TABLES[1]]) if INDEX_TABLES[1] in state else 0
    tables = _index_tables(length, side)
    for name, tensor in state.items():
        part = name if name in tables else INDEX_TABLES[0]
        if name.endswith(part) and not tensor.is_meta:
            ours = relative_index(*tables[part], side, model.max_positions, "cpu")
            if tensor.shape != ours.shape or not torch.equal(tensor.long(), ours):
                raise ValueError(f"{name} numbers relative positions otherwise than the released code does")


def _answers(file: Path | str | None, classes: int) -> tuple[str, ...]:
    """Reads the answers of a file's classes. Raises ValueError where there are none, or not as many as classes."""
    if file is None:
        raise ValueError(
            f"the file does not say what its {classes} classes of answers are: name a JSON list of them by --answers"
        )
    answers = parse_json(read_bounded(expand_home(file)))
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{file} is no JSON list of answers")
    if len(answers) != classes:
        raise ValueError(f"{file} lists {len(answers)} answers, and the file has {classes} classes")
    return tuple(answers)


# --------------------------------------------------------------------------- in words


def _lines(model: VlmoConfig) -> list[str]:
    fused = model.depth - model.fusion_start
    experts = f", vision-language experts in the top {fused}" if fused else ", no vision-language experts"
    images = f", {model.images_per_text} images a text" if model.images_per_text > 1 else ""
    return [
        f"  layers   {model.depth} of width {model.width}{experts}, {model.positions} positions",
        f"  image    patch {model.patch_size}, for {model.image_size} px{images}",
        f"  text     {model.vocab_size} words, {model.max_positions} positions",
    ]
