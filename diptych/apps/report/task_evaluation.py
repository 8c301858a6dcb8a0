"""Evaluations record by record, described in words and pictures for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych import catalog
from diptych.apps.report.data import RIGHT, Confusion, EvaluatedExample, ExampleGroup, GivenAnswer, TaskEvaluation
from diptych.apps.report.html import LARGEST
from diptych.data.heatmap import heat_picture
from diptych.data.record import AnyRecord, Box, Question, Referring
from diptych.facts import TaskReport
from diptych.metrics.accuracy import Estimate
from diptych.metrics.task_evaluation import Decision
from diptych.metrics.task_evaluation import TaskEvaluation as MeasuredTask
from diptych.schema import TaskConfig

SHOWN = 24
"""Examples on a page."""
ANSWERS = 12
"""Answers listed among those given most often."""


def report_of(task: TaskConfig) -> TaskReport:
    """Returns what the task's class says about showing its evaluation."""
    report = catalog.task_class(task).report
    assert report is not None, f"{type(task).__name__} is measured as retrieval"
    return report


def measure_names() -> dict[str, str]:
    """Gives the readable names of all further measures, whatever the task."""
    return {key: name for _, report in catalog.reports() for key, name in report.measures.items()}


def named_scores(task: TaskConfig, result: MeasuredTask) -> dict[str, Estimate]:
    """Gives the measures under readable names, the official one first."""
    report = report_of(task)
    names = {"accuracy": report.measure} | dict(report.measures)
    return {
        names.get(name) or f"{report.measure}, {name.removeprefix('accuracy.')}": score
        for name, score in result.scores.items()
    }


def named_references(task: TaskConfig, result: MeasuredTask) -> dict[str, Estimate]:
    """Gives the official measure of predictions that ignore the pictures, under readable names."""
    names = report_of(task).references
    return {names[name]: score for name, score in result.references.items()}


def named_figures(task: TaskConfig, result: MeasuredTask) -> dict[str, float]:
    """Gives the numbers that are no percentages, under readable names."""
    names = report_of(task).figures
    return {names[name]: value for name, value in result.figures.items()}


def describe_evaluation(
    task: TaskConfig,
    split: str,
    result: MeasuredTask,
    records: Mapping[str, AnyRecord],
    pictures: Callable[[AnyRecord], Sequence[Image.Image]],
    heat: Callable[[AnyRecord, Image.Image], Float[Tensor, "h w"]],
    views: Callable[[AnyRecord], Sequence[tuple[str, Image.Image]]],
) -> TaskEvaluation:
    """Describes the evaluation of a split for the report.

    `records` are by their id. `pictures` opens those of a record, `heat` computes the map of a phrase on its picture,
    and `views` gives the input and the output of a model of pictures alone. All three are called for the examples
    shown only.
    """
    report, decisions = report_of(task), result.decisions

    def example(decision: Decision) -> EvaluatedExample:
        record = records[decision.record]
        if report.examples == "boxes":
            assert isinstance(record, Referring)
            return _box_example(decision, record, pictures(record)[0], heat)
        if report.examples == "views":
            return EvaluatedExample(tuple(views(record)), "", "", None, "", decision.score)
        images = [image for name in decision.pictures for image in pictures(records[name])] or pictures(record)
        names = ("first", "second") if decision.pictures else ("left", "right") if len(images) > 1 else ("picture",)
        return EvaluatedExample(
            pictures=tuple(zip(names[: len(images)], images, strict=True)),
            text=decision.shown or record.texts[0],
            said=str(decision.said),
            probability=decision.probability,
            right=_people(record) if isinstance(record, Question) else str(decision.right),
            score=decision.score,
        )

    return TaskEvaluation(
        title=report.title,
        how=report.how,
        split=split,
        records=len(decisions),
        scores=named_scores(task, result),
        references=named_references(task, result),
        confusion=confusion(tuple(result.classes), decisions) if result.classes else None,
        answers=given_answers(decisions) if report.lists_answers else (),
        examples=tuple(
            ExampleGroup(title, tuple(map(example, chosen)), total) for title, chosen, total in groups(decisions)
        ),
        figures=named_figures(task, result),
    )


def groups(decisions: Sequence[Decision], count: int = SHOWN) -> list[tuple[str, list[Decision], int]]:
    """Chooses wrong and right decisions, half of `count` each or as many as there are, evenly spaced.

    Each group comes with its title and with the number of all decisions of its kind. Decisions without labels are one
    group. No example is chosen by how well the model does.
    """
    kinds: dict[str, list[Decision]] = {"Wrong": [], "Right": []}
    for decision in decisions:
        if decision.score is not None:
            kinds["Right" if decision.score >= RIGHT else "Wrong"].append(decision)
    kinds = {title: members for title, members in kinds.items() if members} or {"Unlabelled": list(decisions)}
    chosen = []
    for place, (title, members) in enumerate(sorted(kinds.items(), key=lambda kind: len(kind[1]))):
        number = min(len(members), count // (len(kinds) - place))
        count -= number
        chosen.append((title, [members[i * len(members) // number] for i in range(number)], len(members)))
    return sorted(chosen, key=lambda group: list(kinds).index(group[0]))


def confusion(names: tuple[str, ...], decisions: Sequence[Decision]) -> Confusion:
    """Counts how often each class was predicted for records of each class."""
    counts = Counter((decision.right, decision.said) for decision in decisions)
    return Confusion(names, tuple(tuple(counts[right, said] for said in names) for right in names))


def given_answers(decisions: Sequence[Decision], count: int = ANSWERS) -> tuple[GivenAnswer, ...]:
    """Lists the answers given most often, with the mean score of the questions that got them."""
    scores: dict[str, list[float | None]] = {}
    for decision in decisions:
        scores.setdefault(decision.said, []).append(decision.score)
    often = sorted(scores, key=lambda answer: -len(scores[answer]))[:count]
    return tuple(GivenAnswer(answer, len(scores[answer]), _mean(scores[answer])) for answer in often)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _people(record: Question, most: int = 4) -> str:
    """Lists people's answers, the commonest first, with their shares."""
    total = sum(weight for _, weight in record.targets)
    often = sorted(record.targets, key=lambda target: -target[1])[:most]
    return ", ".join(f"{answer} ({100 * weight / total:.0f}\N{NO-BREAK SPACE}%)" for answer, weight in often)


# --------------------------------------------------------------------------- boxes


def _box_example(
    decision: Decision,
    record: Referring,
    image: Image.Image,
    heat: Callable[[AnyRecord, Image.Image], Float[Tensor, "h w"]],
) -> EvaluatedExample:
    """Shows a picture as it is, and with its map, the predicted box in white and the right one in orange."""
    scale = LARGEST / max(image.size)
    large = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    expected = None if record.box is None else _scaled(record.box, scale)
    drawn = heat_picture(large, heat(record, image), _scaled(decision.said, scale), expected)
    return EvaluatedExample(
        pictures=(("picture", image), ("map and boxes", drawn)),
        text=record.phrase,
        said="",
        probability=None,
        right="",
        score=decision.score,
    )


def _scaled(box: Sequence[float], scale: float) -> Box:
    x, y, width, height = (scale * side for side in box)
    return x, y, width, height
