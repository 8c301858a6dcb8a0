"""Published VLMos, and the BEiT that their first stage may be replaced by."""

from __future__ import annotations

import json
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
from diptych.pretrained.family import Family, Options, State, numbers, shape, word_count
from diptych.pretrained.formats import Contents, Layout
from diptych.pretrained.vlmo_names import (
    ALIGNMENT,
    INDEX_TABLES,
    SHARED_TABLE,
    absent,
    as_beit,
    beit_rules,
    beit_stage_rules,
    published_rules,
)
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
"""By width, where heads are not 64 wide: base_plus."""
_TEXT_LENGTH = 196
"""Longest text of every released table of relative positions."""

LAYOUTS: dict[str, Layout] = {
    "vlmo_nlvr2": Layout(
        "VLMo, fine-tuned for NLVR2",
        {_CLASS: 1, "nlvr2_classifier.3.weight": 2},
        lambda config: [*published_rules(config, ["nlvr2_classifier"]), *absent(*_FUSED)],
        Nlvr2Config(alpha=0.0, head="gelu"),
        _BARE,
        able=("tell whether a statement is true of two pictures",),
    ),
    "vlmo_vqa": Layout(
        "VLMo, fine-tuned for VQA with a closed set of answers",
        {_CLASS: 1, "vqa_classifier.3.weight": None},
        lambda config: [*published_rules(config, ["vqa_classifier"]), *absent(*_FUSED)],
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
            *absent("vl_log_scale", "vl_image_proj", "vl_text_proj", "match_head", "word_head"),
        ],
        RetrievalConfig(keys="batch", queue_size=0, alpha=0.0, itm=0.0),
        _BARE,
        able=("embed images and texts, and rank them by similarity",),
    ),
    "vlmo_language": Layout(
        "VLMo, pre-trained on images and on texts (second stage)",
        {_CLASS: 1, "mlm_score.bias": None},
        lambda config: [*published_rules(config, []), *absent(*ALIGNMENT, "match_head")],
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
"""What a run of the first stage is published in. Read, it is a BEiT like others."""


class VlmoFamily(Family):
    """One transformer, three stages."""

    config = VlmoConfig
    layouts = LAYOUTS
    base = "vlmo_base"
    separator = True

    def recipe(self, layout: Layout, state: State) -> Recipe:
        """Of the file's size, if one is published."""
        size = shape(state, f"{_inner(state)}cls_token")[-1], _depth(state)
        made = [make() for name, make in catalog.RECIPES.items() if name.startswith("vlmo_")]
        same = [
            made for made in made if isinstance(made.model, VlmoConfig) and (made.model.width, made.model.depth) == size
        ]
        fallback = next((made for made in same if made.name in PUBLISHED), catalog.find_recipe(self.base))
        fitting = (made for made in same if type(made.task) is type(layout.task))
        return next(fitting, replace(fallback, task=layout.task))

    def sizes(
        self, state: State, layout: Layout, base: ModelConfig, options: Options, contents: Sequence[Contents]
    ) -> VlmoConfig:
        assert isinstance(base, VlmoConfig)
        model = sizes(state, base, options.heads[0] if options.heads else None, options.trained_image_size)
        if model.positions == "relative":
            _check_index_tables(state, model)
        reads_no_text = _TEXT not in state and _TABLE not in state
        return replace(model, max_positions=options.text_length or base.max_positions) if reads_no_text else model

    def resized(self, model: ModelConfig, options: Options) -> VlmoConfig:
        assert isinstance(model, VlmoConfig)
        return replace(
            model,
            image_size=options.image_size or model.image_size,
            max_positions=options.text_length or model.max_positions,
        )

    def filled(self, recipe: Recipe, state: State, options: Options) -> Recipe:
        """Texts are cut and pictures shown as in training; the closed set has the answers that are given."""
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

    def fit(
        self, ours: dict[str, Tensor], fresh: State, model: ModelConfig, wanted: ModelConfig
    ) -> tuple[dict[str, Tensor], str | None]:
        assert isinstance(model, VlmoConfig)
        assert isinstance(wanted, VlmoConfig)
        table, told = ours.get("model.positions.table"), []
        if table is not None and len(table) < entry_count(grid_side(model), model.max_positions):
            ours = ours | {"model.positions.table": with_text_rows(table, fresh["model.positions.table"], model)}
            told.append("relative positions of texts are not in the file: the recipe's, learnt in the second stage")
        old, new = grid_side(model), grid_side(wanted)
        if old != new:
            told.append(f"positions resized from {old} × {old} to {new} × {new} patches: {wanted.image_size} px")
        if model.max_positions != wanted.max_positions:
            told.append(f"positions of texts of {model.max_positions} tokens made to fit {wanted.max_positions}")
        return fit_state(ours, model, wanted), "; ".join(told) or None

    def lines(self, state: State, layout: Layout) -> list[str]:
        base = self.recipe(layout, state).model
        assert isinstance(base, VlmoConfig)
        # A width that no published model has does not tell its heads, which are not told here either.
        fits, patch = _fits(state), shape(state, f"{_inner(state)}patch_embed.proj.weight")[-1]
        model = sizes(state, base, heads=1, trained_image_size=min(fits) * patch if len(fits) > 1 else None)
        lines = _lines(model)[: 2 if word_count(state) is None else None]
        return lines if len(fits) < 2 else [lines[0], f"  unsaid   positions are for {_could(fits, patch)}"]

    def run_lines(self, recipe: Recipe, state: State) -> list[str]:
        assert isinstance(recipe.model, VlmoConfig)
        return _lines(recipe.model)

    def released_layout(self, recipe: Recipe) -> Layout | None:
        return BEIT_STAGE if recipe.task.learns_from == "pictures" else super().released_layout(recipe)

    def released(self, weights: State, recipe: Recipe) -> State:
        assert isinstance(recipe.model, VlmoConfig)
        return as_beit(weights, recipe.model) if recipe.task.learns_from == "pictures" else weights

    def completed(self, published: State, recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Relative positions: the index tables, without which the released code resizes nothing."""
        model = recipe.model
        assert isinstance(model, VlmoConfig)
        told = {} if recipe.data.normalise == "vlmo" else {"pixels": "seen as ALBEF's; released code shows -1 to 1"}
        if recipe.task.learns_from == "pictures":
            return dict(published), told
        if not model.text_norm:
            raise ValueError("the released code normalises text embeddings, which model.text_norm=false leaves out")
        if model.positions == "absolute":
            return dict(published), told
        side, length = grid_side(model), min(recipe.data.max_tokens, model.max_positions)
        added = {
            name: relative_index(*tokens, side, model.max_positions, "cpu")
            for name, tokens in _indexed(length, side).items()
        }
        added |= {_TEXT: torch.zeros(length, model.width), "text_embeddings.position_ids": torch.arange(length)[None]}
        return dict(published) | added, told | {_TEXT: "never read, and not kept: zeros stand there"}


PUBLISHED = ("vlmo_base", "vlmo_base_plus", "vlmo_large")
"""Recipes of the published sizes."""

# --------------------------------------------------------------------------- sizes


def sizes(state: State, base: VlmoConfig, heads: int | None, trained_image_size: int | None) -> VlmoConfig:
    """The model that published tensors are of, told by their shapes; `base` where they tell nothing.

    `heads`, where no relative positions tell how many there are; `trained_image_size`, where no index table tells what
    relative positions are for. Raises ValueError for shapes that no VLMo and no BEiT has.
    """
    inner, depth = _inner(state), _depth(state)
    width, _, _, patch = shape(state, f"{inner}patch_embed.proj.weight")
    hidden = shape(state, f"{inner}blocks.0.{'mlp_imag' if inner else 'mlp'}.fc1.weight")[0]
    scaled = f"{inner}blocks.0.gamma_1" in state
    config = replace(
        base, width=width, patch_size=patch, depth=depth, mlp_ratio=hidden / width, stem="patch", text_norm=True,
        experts="modality", attention="shared",
        fusion_start=min(numbers(state, r"transformer\.blocks\.(\d+)\.mlp_vl\."), default=depth),
        layer_scale=(base.layer_scale or VlmoConfig().layer_scale) if scaled else None,
    )  # fmt: skip
    if "token_type_embeddings.weight" in state:
        words = shape(state, "text_embeddings.word_embeddings.weight")[0]
        images = len(state["token_type_embeddings.weight"]) - 1
        config = replace(config, vocab_size=words, images_per_text=images)
    if f"{inner}pos_embed" in state:
        side = _square(len(state[f"{inner}pos_embed"][0]) - 1, "image positions")
        longest = len(state[_TEXT]) if _TEXT in state else config.max_positions
        heads = heads or _HEADS.get(width) or _even_heads(width)
        return replace(config, positions="absolute", heads=heads, image_size=side * patch, max_positions=longest)
    if _TABLE in state:
        side, longest = _grid(state, patch, trained_image_size)
        heads, rest = divmod(state[_TABLE].shape[1], depth)
    else:
        table = state.get(SHARED_TABLE)
        entries, heads = table.shape if table is not None else shape(state, f"blocks.0.attn.{_TABLE}")
        side, longest, rest = (_square(entries - 3, "patch offsets") + 1) // 2, config.max_positions, 0
    if rest:
        raise ValueError(f"{state[_TABLE].shape[1]} columns of relative positions are no heads of {depth} layers")
    return replace(config, positions="relative", heads=heads, image_size=side * patch, max_positions=longest)


def _inner(state: State) -> str:
    """What a VLMo's names of the transformer begin with, and a BEiT's do not."""
    return "transformer." if _CLASS in state else ""


def _depth(state: State) -> int:
    return len(numbers(state, rf"{re.escape(_inner(state))}blocks\.(\d+)\."))


def _square(number: int, what: str) -> int:
    root = math.isqrt(number)
    if root**2 != number:
        raise ValueError(f"{number} {what} are no square: not a VLMo's or BEiT's")
    return root


def _even_heads(width: int) -> int:
    if width % 64:
        raise ValueError(f"a width of {width} does not tell the number of heads: say it with --heads")
    return width // 64


def _fits(state: State) -> dict[int, int]:
    """By side, the longest text: what a table of relative positions may be for, as far as the file tells."""
    if _TABLE not in state:
        return {}
    entries = len(state[_TABLE])
    if INDEX_TABLES[0] in state:
        side = _square(len(state[INDEX_TABLES[0]]) - 1, "patches")
        return {side: max_text_of(entries, side)}
    least = len(state[_TEXT]) if _TEXT in state else 2
    spare = {side: entries - entry_count(side, 0) for side in range(1, math.isqrt(entries))}
    fits = {side: rest // 2 for side, rest in spare.items() if rest >= 2 * least and rest % 2 == 0}
    return {side: longest for side, longest in fits.items() if longest == _TEXT_LENGTH} or fits


def _could(fits: Mapping[int, int], patch: int) -> str:
    return ", or ".join(f"{side * patch} px and {longest} tokens" for side, longest in fits.items())


def _grid(state: State, patch: int, trained_image_size: int | None) -> tuple[int, int]:
    """Side and longest text of the table of relative positions, of which its length alone does not tell both."""
    entries, fits = len(state[_TABLE]), _fits(state)
    if trained_image_size and INDEX_TABLES[0] not in state:
        side = trained_image_size // patch
        return side, max_text_of(entries, side)
    if len(fits) == 1:
        return next(iter(fits.items()))
    raise ValueError(
        f"the file lacks the index tables that tell what its {entries} relative positions are for "
        f"({_could(fits, patch) or 'no size fits'}): say it with --trained-image-size"
    )


def _indexed(text_length: int, side: int) -> dict[str, tuple[int, int | None]]:
    """Text length and side of each index table."""
    return dict(zip(INDEX_TABLES, ((0, side), (text_length, None), (text_length, side)), strict=True))


def _check_index_tables(state: State, model: VlmoConfig) -> None:
    """Raises ValueError for a file whose relative positions lie otherwise than ours."""
    side = grid_side(model)
    length = len(state[INDEX_TABLES[1]]) if INDEX_TABLES[1] in state else 0
    known: Mapping[str, tuple[int, int | None]] = _indexed(length, side)
    for name, tensor in state.items():
        part = name if name in known else INDEX_TABLES[0]
        if name.endswith(part) and not tensor.is_meta:
            ours = relative_index(*known[part], side, model.max_positions, "cpu")
            if tensor.shape != ours.shape or not torch.equal(tensor.long(), ours):
                raise ValueError(f"{name} numbers relative positions otherwise than the released code does")


def _answers(file: Path | str | None, classes: int) -> tuple[str, ...]:
    if file is None:
        raise ValueError(
            f"the file does not say what its {classes} classes of answers are: name a JSON list of them by --answers"
        )
    answers = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{file} is no JSON list of answers")
    if len(answers) != classes:
        raise ValueError(f"{file} lists {len(answers)} answers, and the file has {classes} classes")
    return tuple(answers)


# --------------------------------------------------------------------------- in words


def _lines(model: VlmoConfig) -> list[str]:
    fused = model.depth - model.fusion_start
    tops = f", vision-language experts in the top {fused}" if fused else ", no vision-language experts"
    images = f", {model.images_per_text} images a text" if model.images_per_text > 1 else ""
    return [
        f"  layers   {model.depth} of width {model.width}{tops}, {model.positions} positions",
        f"  image    patch {model.patch_size}, for {model.image_size} px{images}",
        f"  text     {model.vocab_size} words, {model.max_positions} positions",
    ]
