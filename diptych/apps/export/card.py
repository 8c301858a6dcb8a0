"""Writes the model card from what is stored with a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from diptych import catalog
from diptych.predict import Predictor
from diptych.schema import DataConfig, Recipe
from diptych.serialize import KIND, leaves, to_dict

PAPERS = {"albef": ("ALBEF", "2107.07651"), "vlmo": ("VLMo", "2111.02358")}
NO_SCORES = ("unit", "examples", "labelled", "images", "texts", "split", "checkpoint", "task", "changed")
LONG = 80
"""Longest value of a field that the command shows. Longer ones are in recipe.json only."""


@dataclass(frozen=True)
class Evaluation:
    """The contents of eval.json, if there is one."""

    results: Mapping[str, Any] | None
    blind: Mapping[str, Any] | None = None
    """Results of the same recipe trained on blank pictures."""


def model_card(predictor: Predictor, evaluation: Evaluation, license: str) -> str:
    """Returns README.md with the front matter that the Hub reads."""
    recipe = predictor.recipe
    parts = [
        f"---\n{_front_matter(predictor, evaluation, license)}\n---",
        f"# {recipe.name}",
        _introduction(predictor),
        f"## How to use\n\n{_use(predictor)}",
        f"## Recipe\n\n{_recipe(recipe)}",
        f"## Data\n\n{_data(recipe)}",
        f"## Measured\n\n{_evaluation(evaluation)}",
        f"## Limits\n\n{_limits(predictor, evaluation)}",
    ]
    return "\n\n".join(parts) + "\n"


def _system(recipe: Recipe) -> tuple[str, str]:
    return PAPERS[type(recipe.model).__name__.removesuffix("Config").lower()]


def _purpose(recipe: Recipe) -> tuple[str, str | None]:
    task = catalog.task_class(recipe.task)
    return task.purpose or type(recipe.task).__name__.removesuffix("Config"), task.hub_tag


def _front_matter(predictor: Predictor, evaluation: Evaluation, license: str) -> str:
    recipe = predictor.recipe
    name, paper = _system(recipe)
    purpose, tag = _purpose(recipe)
    results = [
        EvalResult(
            task_type=tag or "other", task_name=purpose, dataset_type=recipe.data.source,
            dataset_name=_source(recipe.data), dataset_split=str((evaluation.results or {}).get("split", "test")),
            metric_type=score.name, metric_name=f"{in_words(score.name)}, %", metric_value=score.value,
        )
        for score in scores(evaluation.results or {}) if score.interval
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


def _introduction(predictor: Predictor) -> str:
    recipe = predictor.recipe
    name, paper = _system(recipe)
    module = predictor.task if predictor.task is not None else predictor.model
    count = sum(parameter.numel() for parameter in module.parameters())
    head = ", head included" if predictor.task is not None else ""
    return (
        f"A vision-language model: [{name}](https://arxiv.org/abs/{paper}), trained with diptych for "
        f"{_purpose(recipe)[0]}. {count / 1e6:.1f} million parameters{head}; pictures of {recipe.model.image_size} × "
        f"{recipe.model.image_size} pixels; {predictor.tokenizer.vocab_size} word pieces."
    )


def _use(predictor: Predictor) -> str:
    abilities = catalog.abilities()
    able = [name for name in abilities if predictor.missing(name) is None]
    lines = ["import diptych", "", 'model = diptych.load("this folder, or owner/name on the Hub")']
    lines += [abilities[name].example for name in able]
    unable = [ability.about for name, ability in abilities.items() if name not in able]
    rest = f"\n\nIt was not trained for {', '.join(unable)}: calls for these raise an error." if unable else ""
    return "```python\n" + "\n".join(lines) + f"\n```{rest}"


# --------------------------------------------------------------------------- recipe and data


def _recipe(recipe: Recipe) -> str:
    schedule = f"{recipe.run.steps:,} steps" if recipe.run.steps else f"{recipe.run.epochs} epochs"
    training = (
        f"Trained for {schedule} of {recipe.run.batch_size * recipe.optim.accumulate} samples, seed {recipe.run.seed}."
    )
    command = command_of(recipe)
    how_to = f"```\n{command}\n```" if command else "Its recipe is not one of the library's."
    return f"{training}\n\n{how_to}\n\nEvery field is in `recipe.json`; paths are cut to their last part."


def command_of(recipe: Recipe) -> str | None:
    """Returns `diptych train NAME …` with every field that differs from that recipe; None for an unknown recipe."""
    if recipe.name not in catalog.RECIPES:
        return None
    default = dict(leaves(to_dict(catalog.RECIPES[recipe.name]())))
    fields = dict(leaves(to_dict(recipe)))
    if any(default.get(name) != fields.get(name) for name in (f"model.{KIND}", f"task.{KIND}")):
        return None
    changes = {name: _typed(value) for name, value in fields.items() if value != default.get(name)}
    words = [f"{name}={value}" for name, value in changes.items() if len(value) <= LONG]
    return " ".join(["diptych train", recipe.name, *words])


def _typed(value: Any) -> str:
    """Formats a value as a user would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and not any(isinstance(entry, Mapping) for entry in value):
        return ",".join(map(_typed, value))
    text = value if isinstance(value, str) else json.dumps(value)
    if text.startswith(("/", "~")):
        text = text.rpartition("/")[2]
    return f"'{text}'" if any(character in text for character in " '\"[]{}") else text


def _source(data: DataConfig) -> str:
    if data.source == "scenes":
        return "synthetic scenes of emojis" if data.scenes.sprites == "openmoji" else "synthetic scenes of shapes"
    return f"{data.source} ({(data.path or '').rpartition('/')[2] or 'no path stored'})"


def _data(recipe: Recipe) -> str:
    data = recipe.data
    lines = [f"- Source: {_source(data)}."]
    if data.source == "scenes":
        lines.append(f"- {data.scenes.count:,} training scenes of {data.scenes.size} pixels, each with a true caption.")
        if data.scenes.sprites == "openmoji":
            lines.append("- All emojis by [OpenMoji](https://openmoji.org/), CC BY-SA 4.0.")
    if data.blank_images:
        lines.append("- **All pictures were blank**: this model never saw a real one.")
    if recipe.init_from:
        lines.append(f"- Started from other weights: {recipe.init_from.rpartition('/')[2]}.")
    return "\n".join(lines)


# --------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Score:
    """One number of eval.json."""

    name: str
    value: float
    interval: Sequence[float] | None
    """95 % interval, by bootstrap over the split."""
    chance: float | None


def scores(results: Mapping[str, Any]) -> list[Score]:
    """Returns the measured scores, without chance levels, references and counts."""
    other = ("chance.", "references.", "nouns_only.", "classes.", "changed", "calibration.min_match")
    return [
        Score(name, value, results.get(f"{name}.interval") or results.get(f"{name.partition('.')[0]}.interval"),
              results.get(f"chance.{name.removeprefix('contrastive.')}"))
        for name, value in results.items()
        if isinstance(value, int | float) and name not in NO_SCORES and not name.startswith(other)
        and not name.endswith((".candidates", ".interval"))
    ]  # fmt: skip


def in_words(name: str) -> str:
    """Returns the name of a measure in words.

    >>> in_words("contrastive.image_to_text.recall@1")
    'picture → text recall@1, by similarity alone'
    """
    suffix = ", by similarity alone" if name.startswith("contrastive.") else ""
    for part, words in (
        ("contrastive.", ""),
        ("image_to_text.", "picture → text "),
        ("text_to_image.", "text → picture "),
        ("rerank_gain.", "gain by re-ranking, points of "),
        ("calibration.", "search by "),
        (".error", ": calibration error"),
        (".kept", ": right hits that the minimum match keeps"),
        (".nothing", ": searches without a right hit that show nothing"),
    ):
        name = name.replace(part, words)
    return name.replace("_", " ") + suffix


def _evaluation(evaluation: Evaluation) -> str:
    if evaluation.results is None:
        return "Not measured: there was no `eval.json` of this checkpoint. `diptych evaluate` measures it."
    results = evaluation.results
    blind = {score.name: score for score in scores(evaluation.blind or {})}
    size = f"{results['images']:,} pictures, {results['texts']:,} texts" if "images" in results else (
        f"{results.get('labelled', 0):,} examples"
    )  # fmt: skip
    head = ["measure", "value", "95 % interval", "chance", *(["on blank pictures"] if blind else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for score in scores(results):
        cells = [in_words(score.name), _number(score.value), _interval(score.interval), _number(score.chance)]
        if blind:
            blank = blind.get(score.name)
            cells.append(f"{_number(blank.value)} ({_interval(blank.interval)})" if blank else "")
        lines.append(f"| {' | '.join(cells)} |")
    for name, value in results.items():
        if name.startswith("references.") and not name.endswith(".interval"):
            cells = [f"without looking: {name.removeprefix('references.').replace('_', ' ')}", _number(value)]
            cells += [_interval(results.get(f"{name}.interval")), *[""] * (len(head) - 3)]
            lines.append(f"| {' | '.join(cells)} |")
    note = f"On the {results.get('split', 'test')} split, {size}; percent unless the name says otherwise."
    if blind:
        note += " Blank pictures: the same recipe, trained with blank pictures only."
    return f"{note}\n\n" + "\n".join(lines) + "\n\nAll figures are in `eval.json`."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""


def _limits(predictor: Predictor, evaluation: Evaluation) -> str:
    recipe, lines = predictor.recipe, []
    if recipe.data.source == "scenes":
        lines.append(
            "It was trained on synthetic scenes only: it knows neither photographs nor words outside their captions."
        )
    if recipe.tokenizer.vocabulary is None:
        lines.append("Its vocabulary comes from its training texts: other words become `[UNK]`.")
    lines += [
        f"Texts are cut to {recipe.data.max_tokens_evaluation} tokens, and pictures are resized to a square.",
        "It may have learnt the biases and errors of its training data; it has not been tested for them.",
        "It has the weights of model and head only, without momentum encoder, queue and optimiser. Training can start "
        "from it (`init_from`), but its own run cannot be resumed.",
    ]
    if evaluation.results is not None and evaluation.blind is None:
        lines.append(
            "One run with one seed: the intervals cover the sampling of the split, not the variance of training."
        )
    if predictor.untrained:
        lines.append(
            f"Parts without trained weights: {', '.join(f'`{part}`' for part in sorted(predictor.untrained))}."
        )
    return "\n".join(f"- {line}" for line in lines)
