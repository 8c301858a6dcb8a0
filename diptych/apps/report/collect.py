"""The part of a report that a run's folder holds: the curves of metrics.jsonl and the facts of recipe.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.apps.report.data import Chart, Examples, ReportData, Series, TaskEvaluation
from diptych.apps.report.numbers import duration, number
from diptych.apps.report.stages import earlier_stages
from diptych.logged import read_metrics
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe


@dataclass(frozen=True)
class ChartSpec:
    """Measures of metrics.jsonl that share a chart, with their readable names."""

    title: str
    unit: str
    names: Mapping[str, str]
    note: str = ""
    scale: float = 1.0


CHARTS = (
    ChartSpec(
        "Losses",
        "nats",
        {
            "losses.itc": "contrastive (ITC)",
            "losses.itm": "matching (ITM)",
            "losses.mlm": "words (MLM)",
            "losses.phrases": "phrases (ITC)",
            "losses.phrases_itm": "phrases (ITM)",
            "losses.masked_image": "visual tokens (masked image modelling)",
        },
        "Each without its weight. Before training, ITC is about log N and MLM about the log of the vocabulary's size.",
    ),
    ChartSpec(
        "Loss",
        "nats",
        {
            "losses.entailment": "entailment",
            "losses.nlvr2": "truth of statements",
            "losses.text_assignment": "text assignment",
        },
        "Cross-entropy of the classes. Even chances give the log of their number: 1.10 for three, 0.69 for two.",
    ),
    ChartSpec(
        "Loss of the answers",
        "nats a question",
        {"losses.answer": "answers"},
        "A decoder's loss is summed over the words of an answer, by its weight; that of a closed set over all answers.",
    ),
    ChartSpec(
        "Mutual information, lower bounds",
        "nats",
        {
            "measures.mi_bound": "picture and text",
            "measures.mi_bound_teacher": "picture and the momentum encoder's text",
            "measures.mi_bound_words": "word and its context",
        },
        "What the objectives maximise (ALBEF §4). The first, log N less the hard-label ITC loss, cannot pass log N.",
    ),
    ChartSpec(
        "Validation recall",
        "%",
        {
            "validation.text_to_image.recall@10": "text → image @10",
            "validation.image_to_text.recall@10": "image → text @10",
            "validation.text_to_image.recall@1": "text → image @1",
            "validation.image_to_text.recall@1": "image → text @1",
            "validation.mean_recall": "mean of @1, @5 and @10",
        },
        "By similarity alone, on pictures that are not trained on.",
    ),
    ChartSpec(
        "Validation",
        "%",
        {
            "validation.accuracy": "official measure",
            "validation.consistency": "consistency",
            "validation.accuracy.intended": "people's answers normalised too",
            "validation.accuracy.without_proposals": "from the map alone",
        },
        "On records that are not trained on; the checkpoint with the highest official measure is the best one.",
    ),
    ChartSpec(
        "Accuracy in training",
        "%",
        {
            "measures.accuracy": "right classes",
            "measures.word_accuracy": "right next words of an answer",
            "measures.answer_score": "score of the likeliest answer",
        },
        "On the training batches. Far above validation, the run learns its records by heart.",
        100.0,
    ),
    ChartSpec(
        "Accuracy of matching and of masked words",
        "%",
        {"measures.itm_accuracy": "matching (ITM)", "measures.mlm_accuracy": "masked words (MLM)"},
        "Two of three pairs do not match, so always saying no gives 66.7 % of ITM.",
        100.0,
    ),
    ChartSpec(
        "Visual tokens",
        "%",
        {"measures.code_accuracy": "guessed", "measures.commonest_code": "the commonest of the batch, always"},
        "Share of the masked patches. The first curve must rise above the second, or nothing is learnt.",
        100.0,
    ),
    ChartSpec(
        "Codes in use",
        "perplexity",
        {"measures.code_perplexity": "of the codes of a batch"},
        "So many codes, evenly used, would be as uncertain. 1 is a collapse: every patch is the same code.",
    ),
    ChartSpec(
        "Masked words",
        "perplexity",
        {"measures.perplexity": "of a masked word"},
        "So many words, equally likely, would be as uncertain.",
    ),
    ChartSpec(
        "Hardness of the negatives",
        "cosine",
        {
            "measures.positive_similarity": "right pairs",
            "measures.negative_similarity": "negatives drawn",
            "measures.other_similarity": "all pairs that do not belong together",
        },
        "The closer the first two, the harder it is to tell the negatives from the right pairs. Where the last is as "
        "high as the first, all features are the same.",
    ),
    ChartSpec(
        "The momentum encoder",
        "0 to 1",
        {
            "measures.teacher_label_probability": "probability of the label",
            "measures.alpha": "weight of the pseudo-targets (ramp of α)",
        },
        "The probability that the momentum encoder gives the label among all candidates, and the weight α of its "
        "pseudo-targets (ALBEF §3.3).",
    ),
    ChartSpec(
        "False negatives",
        "% of the pairs",
        {"measures.false_negatives": "another caption of the same picture among the candidates"},
        "They are ignored by the contrastive loss, unless the recipe keeps them (released.keep_false_negatives).",
        100.0,
    ),
    ChartSpec("Temperature", "τ", {"measures.temperature": "learnt τ"}, "Similarities are divided by it."),
    ChartSpec("Learning rate", "", {"lr": "rate"}),
    ChartSpec("Norm of the gradient", "", {"gradient_norm": "norm"}, "Before clipping."),
    ChartSpec("Speed", "pairs/s", {"pairs_per_second": "pairs per second"}),
    ChartSpec("Waiting for data", "% of the time", {"waiting": "for the next batch"}, scale=100.0),
)
GUESSERS = {"validation.mean_recall": "mean of a random order", "validation.accuracy": "a guesser that never looks"}
"""What `validation.chance` is, beside the measure that it belongs to."""
UNCHARTED = ("step", "epoch", "pairs", "seconds", "loss")
"""Numbers without a chart of their own: the axes and the total. Nor have the recalls that CHARTS leaves out."""


def collect(
    folder: Path,
    *,
    evaluation: Mapping[str, Any] | None = None,
    ceiling: Mapping[str, float] | None = None,
    examples: Examples | None = None,
    task_evaluation: TaskEvaluation | None = None,
) -> ReportData:
    """Collects the content of a report from a run's folder and the measures given.

    The named arguments are fields of ReportData. Raises ValueError for a folder without metrics.jsonl.
    """
    recipe = to_dict(stored_recipe(folder)) if (folder / "recipe.json").is_file() else {}
    lines = read_metrics(folder / "metrics.jsonl")
    return ReportData(
        title=f"{recipe.get('name', 'run')} in {folder.name}",
        facts=facts(recipe, lines),
        charts=charts(lines, recipe),
        evaluation=evaluation,
        ceiling=ceiling or {},
        recipe=recipe,
        examples=examples or Examples(),
        task_evaluation=task_evaluation,
        stages=earlier_stages(folder) if recipe else (),
    )


# --------------------------------------------------------------------------- curves


def charts(lines: Sequence[Mapping[str, float]], recipe: Mapping[str, Any]) -> tuple[Chart, ...]:
    """Draws the curves of CHARTS, then each other loss and measure in a chart of its own."""
    if not recipe.get("task", {}).get("alpha", True):  # without pseudo-targets the ramp of α means nothing
        lines = [{name: value for name, value in line.items() if name != "measures.alpha"} for line in lines]
    known = {name for spec in CHARTS for name in spec.names}
    others = dict.fromkeys(name for line in lines for name in line if name not in known)
    extra = [
        ChartSpec(name, "", {name: name})
        for name in others
        if name not in UNCHARTED and not name.startswith("validation.")
    ]
    drawn = [_chart(spec, lines, recipe) for spec in (*CHARTS, *extra)]
    return tuple(chart for chart in drawn if chart.series)


def _chart(spec: ChartSpec, lines: Sequence[Mapping[str, float]], recipe: Mapping[str, Any]) -> Chart:
    series = []
    for name, title in spec.names.items():
        points = [(line["step"], spec.scale * line[name]) for line in lines if name in line]
        if points:
            steps, values = zip(*points, strict=True)
            series.append(Series(title, steps, values))
    references: tuple[tuple[str, float], ...] = ()
    if "measures.mi_bound" in spec.names and (candidates := _candidates(recipe)):
        references = ((f"log N = {math.log(candidates):.2f}", math.log(candidates)),)
    for name, guesser in GUESSERS.items():
        chances = [line["validation.chance"] for line in lines if name in line and "validation.chance" in line]
        if name in spec.names and chances:
            references = ((f"{guesser} = {chances[-1]:.1f}", chances[-1]),)
    return Chart(spec.title, spec.unit, tuple(series), spec.note, references)


def _candidates(recipe: Mapping[str, Any]) -> int | None:
    """Counts the candidates N of the bound: a batch, and a full queue where the task has one."""
    queue, batch = recipe.get("task", {}).get("queue_size", 0), recipe.get("run", {}).get("batch_size")
    return queue + batch if batch else None


# --------------------------------------------------------------------------- summary


def facts(recipe: Mapping[str, Any], lines: Sequence[Mapping[str, float]]) -> tuple[tuple[str, str], ...]:
    """Sums a run up in names and values."""
    named: list[tuple[str, str]] = []
    if recipe:
        data, model = recipe["data"], recipe["model"]
        named.append(("Recipe", recipe["name"]))
        named.append(("Data", f"{data['source']} {data['path'] or ''}".strip()))
        if data.get("blank_images"):
            named.append(("Pictures", "all blank: a model that does not see"))
        if recipe.get("init_from"):
            named.append(("Started from", recipe["init_from"]))
        image_size = model.get("vision", model)["image_size"]  # ALBEF's is that of its image encoder
        named.append(("Picture side", f"{image_size} pixels"))
        named.append(("Batch", f"{recipe['run']['batch_size']} pairs"))
    if lines:
        last = lines[-1]
        named.append(("Steps", f"{last['step']:,.0f}"))
        if "pairs" in last:
            named.append(("Pairs seen", f"{last['pairs']:,.0f}"))
        if "epoch" in last:
            named.append(("Epochs", number(last["epoch"])))
        if "seconds" in last:
            named.append(("Time", duration(last["seconds"])))
    return tuple(named)
