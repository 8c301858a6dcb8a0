"""The tasks that are judged record by record, in words and pictures: from what evaluation gives to a `Judgement`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych import catalog
from diptych.apps.report.data import RIGHT, Confusion, ExampleGroup, GivenAnswer, JudgedExample, Judgement
from diptych.apps.report.html import LARGEST
from diptych.data.heatmap import heat_picture
from diptych.data.record import AnyRecord, Box, Question, Referring
from diptych.facts import TaskReport
from diptych.metrics.accuracy import Estimate
from diptych.metrics.task_evaluation import Decision, TaskEvaluation
from diptych.schema import TaskConfig

SHOWN = 24
"""Examples on a page."""
ANSWERS = 12
"""Answers listed among those given most often."""


def report_of(task: TaskConfig) -> TaskReport:
    """How the task says that its evaluation is shown."""
    report = catalog.task_class(task).report
    assert report is not None, f"{type(task).__name__} is measured as retrieval"
    return report


def measure_names() -> dict[str, str]:
    """Names for people of all further measures, whatever the task."""
    return {key: name for _, report in catalog.reports() for key, name in report.measures.items()}


def named_scores(task: TaskConfig, result: TaskEvaluation) -> dict[str, Estimate]:
    """The measures under names for people, the official one first."""
    report = report_of(task)
    names = {"accuracy": report.measure} | dict(report.measures)
    return {
        names.get(name) or f"{report.measure}, {name.removeprefix('accuracy.')}": score
        for name, score in result.scores.items()
    }


def named_references(task: TaskConfig, result: TaskEvaluation) -> dict[str, Estimate]:
    """What the official measure is for whoever does not look, under names for people."""
    names = report_of(task).references
    return {names[name]: score for name, score in result.references.items()}


def named_figures(task: TaskConfig, result: TaskEvaluation) -> dict[str, float]:
    """What is no percentage, under names for people."""
    names = report_of(task).figures
    return {names[name]: value for name, value in result.figures.items()}


def judgement(
    task: TaskConfig,
    split: str,
    result: TaskEvaluation,
    records: Mapping[str, AnyRecord],
    pictures: Callable[[AnyRecord], Sequence[Image.Image]],
    heat: Callable[[AnyRecord, Image.Image], Float[Tensor, "h w"]],
    views: Callable[[AnyRecord], Sequence[tuple[str, Image.Image]]],
) -> Judgement:
    """All that the page says of a judged split.

    `records` by their id; `pictures` opens those of a record, `heat` maps its phrase on its picture, and `views` says
    what the model sees and makes of a picture alone. They are asked for the examples shown only.
    """
    report, decisions = report_of(task), result.decisions

    def example(decision: Decision) -> JudgedExample:
        record = records[decision.record]
        if report.examples == "boxes":
            assert isinstance(record, Referring)
            return _box_example(decision, record, pictures(record)[0], heat)
        if report.examples == "views":
            return JudgedExample(tuple(views(record)), "", "", None, "", decision.score)
        shown = [image for name in decision.pictures for image in pictures(records[name])] or pictures(record)
        names = ("first", "second") if decision.pictures else ("left", "right") if len(shown) > 1 else ("picture",)
        return JudgedExample(
            pictures=tuple(zip(names[: len(shown)], shown, strict=True)),
            text=decision.shown or record.texts[0],
            said=str(decision.said),
            probability=decision.probability,
            right=_people(record) if isinstance(record, Question) else str(decision.right),
            score=decision.score,
        )

    return Judgement(
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
    """Wrong and right decisions, half of `count` each or what there is, evenly spaced, with the number of all such.

    Not chosen by how well they do. Where nobody tells what is right, all are of one kind.
    """
    kinds: dict[str, list[Decision]] = {"Wrong": [], "Right": []}
    for one in decisions:
        if one.score is not None:
            kinds["Right" if one.score >= RIGHT else "Wrong"].append(one)
    kinds = {title: ones for title, ones in kinds.items() if ones} or {"Unlabelled": list(decisions)}
    found = []
    for place, (title, ones) in enumerate(sorted(kinds.items(), key=lambda kind: len(kind[1]))):
        number = min(len(ones), count // (len(kinds) - place))
        count -= number
        found.append((title, [ones[i * len(ones) // number] for i in range(number)], len(ones)))
    return sorted(found, key=lambda group: list(kinds).index(group[0]))


def confusion(names: tuple[str, ...], decisions: Sequence[Decision]) -> Confusion:
    """How often which of the classes was said of which."""
    counted = Counter((one.right, one.said) for one in decisions)
    return Confusion(names, tuple(tuple(counted[right, said] for said in names) for right in names))


def given_answers(decisions: Sequence[Decision], count: int = ANSWERS) -> tuple[GivenAnswer, ...]:
    """The answers given most often, with the mean score of the questions that got them."""
    scores: dict[str, list[float | None]] = {}
    for one in decisions:
        scores.setdefault(one.said, []).append(one.score)
    often = sorted(scores, key=lambda answer: -len(scores[answer]))[:count]
    return tuple(GivenAnswer(answer, len(scores[answer]), _mean(scores[answer])) for answer in often)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _people(record: Question, most: int = 4) -> str:
    """What people answered, the commonest first."""
    total = sum(weight for _, weight in record.targets)
    often = sorted(record.targets, key=lambda target: -target[1])[:most]
    return ", ".join(f"{answer} ({100 * weight / total:.0f}\N{NO-BREAK SPACE}%)" for answer, weight in often)


# --------------------------------------------------------------------------- boxes


def _box_example(
    decision: Decision,
    record: Referring,
    image: Image.Image,
    heat: Callable[[AnyRecord, Image.Image], Float[Tensor, "h w"]],
) -> JudgedExample:
    """The picture as it is, and the map on it with the box found in white and the right one in orange."""
    scale = LARGEST / max(image.size)
    large = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    expected = None if record.box is None else _scaled(record.box, scale)
    drawn = heat_picture(large, heat(record, image), _scaled(decision.said, scale), expected)
    return JudgedExample(
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
