"""The model card: what a stranger must know before using a model. It says what is stored, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from diptych import catalog
from diptych.predict import Predictor
from diptych.schema import DataConfig, Recipe
from diptych.serialize import KIND, to_dict

PAPERS = {"albef": ("ALBEF", "2107.07651"), "vlmo": ("VLMo", "2111.02358")}
NO_SCORES = ("unit", "examples", "labelled", "images", "texts", "split", "checkpoint", "task", "changed")
LONG = 80
"""Letters beyond which a field stands in recipe.json only."""


@dataclass(frozen=True)
class Measured:
    """The contents of eval.json."""

    found: Mapping[str, Any] | None
    blind: Mapping[str, Any] | None = None
    """Of the same recipe on blank pictures."""


def model_card(predictor: Predictor, measured: Measured, license: str) -> str:
    """README.md with the front matter that the Hub reads."""
    recipe = predictor.recipe
    parts = [
        f"---\n{_front(predictor, measured, license)}\n---",
        f"# {recipe.name}",
        _what(predictor),
        f"## How to use\n\n{_use(predictor)}",
        f"## Recipe\n\n{_recipe(recipe)}",
        f"## Data\n\n{_data(recipe)}",
        f"## Measured\n\n{_measured(measured)}",
        f"## Limits\n\n{_limits(predictor, measured)}",
    ]
    return "\n\n".join(parts) + "\n"


def _system(recipe: Recipe) -> tuple[str, str]:
    return PAPERS[type(recipe.model).__name__.removesuffix("Config").lower()]


def _purpose(recipe: Recipe) -> tuple[str, str | None]:
    task = catalog.task_class(recipe.task)
    return task.purpose or type(recipe.task).__name__.removesuffix("Config"), task.hub_tag


def _front(predictor: Predictor, measured: Measured, license: str) -> str:
    recipe = predictor.recipe
    name, paper = _system(recipe)
    purpose, tag = _purpose(recipe)
    results = [
        EvalResult(
            task_type=tag or "other", task_name=purpose, dataset_type=recipe.data.source,
            dataset_name=_source(recipe.data), dataset_split=str((measured.found or {}).get("split", "test")),
            metric_type=score.name, metric_name=f"{in_words(score.name)}, %", metric_value=score.value,
        )
        for score in scores(measured.found or {}) if score.interval
    ]  # fmt: skip
    data = ModelCardData(
        license=license,
        library_name="diptych",
        pipeline_tag=tag,
        tags=["diptych", name.lower(), "vision-language", f"arxiv:{paper}"],
        model_name=recipe.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _what(predictor: Predictor) -> str:
    recipe = predictor.recipe
    name, paper = _system(recipe)
    held = predictor.task if predictor.task is not None else predictor.model
    count = sum(parameter.numel() for parameter in held.parameters())
    head = ", head included" if predictor.task is not None else ""
    return (
        f"A model of pictures and texts: [{name}](https://arxiv.org/abs/{paper}), trained with diptych for "
        f"{_purpose(recipe)[0]}. {count / 1e6:.1f} million parameters{head}; pictures of {recipe.model.image_size} × "
        f"{recipe.model.image_size} pixels; {predictor.tokenizer.vocab_size} word pieces."
    )


def _use(predictor: Predictor) -> str:
    abilities = catalog.abilities()
    able = [name for name in abilities if predictor.missing(name) is None]
    lines = ["import diptych", "", 'model = diptych.load("this folder, or owner/name on the Hub")']
    lines += [abilities[name].example for name in able]
    unable = [ability.about for name, ability in abilities.items() if name not in able]
    rest = f"\n\nIt was not trained for {', '.join(unable)}; asked about them, it says so." if unable else ""
    return "```python\n" + "\n".join(lines) + f"\n```{rest}"


# --------------------------------------------------------------------------- recipe and data


def _recipe(recipe: Recipe) -> str:
    schedule = f"{recipe.run.steps:,} steps" if recipe.run.steps else f"{recipe.run.epochs} epochs"
    told = (
        f"Trained for {schedule} of {recipe.run.batch_size * recipe.optim.accumulate} samples, seed {recipe.run.seed}."
    )
    command = command_of(recipe)
    made = f"\n\n```\n{command}\n```" if command else "\n\nIts recipe is none of the library's."
    return f"{told}{made}\n\nEvery field stands in `recipe.json`; paths of the machine are cut to their last part."


def command_of(recipe: Recipe) -> str | None:
    """`diptych train NAME …` with every field that differs from that recipe; None where there is no such recipe."""
    if recipe.name not in catalog.RECIPES:
        return None
    usual = dict(_leaves(to_dict(catalog.RECIPES[recipe.name]())))
    own = dict(_leaves(to_dict(recipe)))
    if usual.get(f"model.{KIND}") != own.get(f"model.{KIND}") or usual.get(f"task.{KIND}") != own.get(f"task.{KIND}"):
        return None
    changes = {name: _typed(value) for name, value in own.items() if value != usual.get(name)}
    shown = [f"{name}={value}" for name, value in changes.items() if len(value) <= LONG]
    return " ".join(["diptych train", recipe.name, *shown])


def _leaves(plain: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _typed(value: Any) -> str:
    """As a user would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and not any(isinstance(one, Mapping) for one in value):
        return ",".join(map(_typed, value))
    text = value if isinstance(value, str) else json.dumps(value)
    if text.startswith(("/", "~")):
        text = text.rpartition("/")[2]
    return f"'{text}'" if any(letter in text for letter in " '\"[]{}") else text


def _source(data: DataConfig) -> str:
    if data.source == "scenes":
        return "made scenes of emojis" if data.scenes.sprites == "openmoji" else "made scenes of shapes"
    return f"{data.source} ({(data.path or '').rpartition('/')[2] or 'no path stored'})"


def _data(recipe: Recipe) -> str:
    data = recipe.data
    lines = [f"- Source: {_source(data)}."]
    if data.source == "scenes":
        lines.append(
            f"- {data.scenes.count:,} training scenes of {data.scenes.size} pixels, composed with true captions."
        )
        if data.scenes.sprites == "openmoji":
            lines.append("- All emojis by [OpenMoji](https://openmoji.org/), CC BY-SA 4.0.")
    if data.blank_images:
        lines.append("- **All pictures were blank**: this model never saw one.")
    if recipe.init_from:
        lines.append(f"- Started from other weights: {recipe.init_from.rpartition('/')[2]}.")
    return "\n".join(lines)


# --------------------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class Score:
    """A number of eval.json."""

    name: str
    value: float
    interval: Sequence[float] | None
    """95 %, by bootstrap over the split."""
    chance: float | None


def scores(found: Mapping[str, Any]) -> list[Score]:
    """What was measured; figures of guessing, bounds and counts apart."""
    apart = ("chance.", "references.", "nouns_only.", "classes.", "changed")
    return [
        Score(name, value, found.get(f"{name}.interval") or found.get(f"{name.partition('.')[0]}.interval"),
              found.get(f"chance.{name.removeprefix('contrastive.')}"))
        for name, value in found.items()
        if isinstance(value, int | float) and name not in NO_SCORES and not name.startswith(apart)
        and not name.endswith((".candidates", ".interval"))
    ]  # fmt: skip


def in_words(name: str) -> str:
    """A measure's name for people.

    >>> in_words("contrastive.image_to_text.recall@1")
    'picture → text recall@1, by similarity alone'
    """
    alone = ", by similarity alone" if name.startswith("contrastive.") else ""
    for found, said in (
        ("contrastive.", ""),
        ("image_to_text.", "picture → text "),
        ("text_to_image.", "text → picture "),
        ("rerank_gain.", "gain by re-ranking, points of "),
    ):
        name = name.replace(found, said)
    return name.replace("_", " ") + alone


def _measured(measured: Measured) -> str:
    if measured.found is None:
        return "Not measured: no `eval.json` of this checkpoint was beside it. `diptych evaluate` measures it."
    found = measured.found
    blind = {score.name: score for score in scores(measured.blind or {})}
    counted = f"{found['images']:,} pictures, {found['texts']:,} texts" if "images" in found else (
        f"{found.get('labelled', 0):,} examples"
    )  # fmt: skip
    head = ["measure", "value", "95 % interval", "chance", *(["on blank pictures"] if blind else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for score in scores(found):
        cells = [in_words(score.name), _number(score.value), _interval(score.interval), _number(score.chance)]
        if blind:
            beside = blind.get(score.name)
            cells.append(f"{_number(beside.value)} ({_interval(beside.interval)})" if beside else "")
        lines.append(f"| {' | '.join(cells)} |")
    for name, value in found.items():
        if name.startswith("references.") and not name.endswith(".interval"):
            cells = [f"without looking: {name.removeprefix('references.').replace('_', ' ')}", _number(value)]
            cells += [_interval(found.get(f"{name}.interval")), *[""] * (len(head) - 3)]
            lines.append(f"| {' | '.join(cells)} |")
    where = f"On the {found.get('split', 'test')} split, {counted}; percent unless the name says otherwise."
    blank = " Blank pictures: the same recipe trained without seeing any." if blind else ""
    return f"{where}{blank}\n\n" + "\n".join(lines) + "\n\nAll figures stand in `eval.json`."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""


def _limits(predictor: Predictor, measured: Measured) -> str:
    recipe, lines = predictor.recipe, []
    if recipe.data.source == "scenes":
        lines.append(
            "It has seen made scenes only, and knows nothing of photographs or of words that they do not need."
        )
    if recipe.tokenizer.vocabulary is None:
        lines.append("Its words were learnt from its training texts: it cannot read others (they become `[UNK]`).")
    lines += [
        f"Texts are cut to {recipe.data.max_tokens_evaluation} tokens, and pictures squeezed to a square.",
        "What its training data get wrong about people and things, it may have learnt; nobody has tested it for that.",
        "Weights of model and head only: momentum teacher, queue and optimiser are not here. Training can start from "
        "it (`init_from`), but its own run cannot go on.",
    ]
    if measured.found is not None and measured.blind is None:
        lines.append("One run, one seed: the intervals are those of the split, not of training.")
    if predictor.untrained:
        lines.append(f"Parts without trained weights: {', '.join(f'`{one}`' for one in sorted(predictor.untrained))}.")
    return "\n".join(f"- {line}" for line in lines)
