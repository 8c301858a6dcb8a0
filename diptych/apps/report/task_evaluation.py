"""Evaluations record by record, described in words and pictures for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych.apps.report.data import RIGHT, Confusion, EvaluatedExample, ExampleGroup, GivenAnswer, TaskEvaluation
from diptych.apps.report.html import LARGEST
from diptych.data.heatmap import heat_picture
from diptych.data.record import AnyRecord, Box, Picture, Question, Referring
from diptych.metrics.accuracy import Estimate
from diptych.metrics.task_evaluation import Decision, TaskResult
from diptych.schema import (
    EntailmentConfig,
    GroundingTrainingConfig,
    LanguageStageConfig,
    Nlvr2Config,
    TaskConfig,
    TextAssignmentConfig,
    VisionStageConfig,
    VisualTokenizerTrainingConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)

SHOWN = 24
"""Examples on a page."""
ANSWERS = 12
"""Answers listed among those given most often."""


@dataclass(frozen=True)
class Wording:
    """Readable names of a task and of its official measure, and how it is scored."""

    title: str
    measure: str
    how: str


_VQA = Wording(
    "Visual question answering",
    "VQA accuracy",
    "An answer scores by how many people gave it: three of ten make it right, as a mean over each nine of them, with "
    "answers normalised as for published numbers.",
)
WORDINGS: dict[type, Wording] = {
    EntailmentConfig: Wording(
        "Visual entailment", "Accuracy", "Does the picture entail the sentence, contradict it, or leave it open?"
    ),
    Nlvr2Config: Wording(
        "Visual reasoning (NLVR2)",
        "Accuracy",
        "Is the statement true of the two pictures? Consistency is the share of statements that are predicted rightly "
        "for all their pairs of pictures.",
    ),
    VqaDecoderConfig: _VQA,
    VqaClosedSetConfig: _VQA,
    GroundingTrainingConfig: Wording(
        "Visual grounding",
        "Box accuracy",
        "Where is what the phrase names? A box is right if it overlaps the right one by half or more (IoU). The model "
        "was trained without boxes.",
    ),
    VisionStageConfig: Wording(
        "Masked image modelling",
        "Visual-token accuracy",
        "Which code of the visual tokenizer belongs to each masked patch? Every picture has its own mask, always the "
        "same.",
    ),
    LanguageStageConfig: Wording(
        "Masked language modelling",
        "Masked-word accuracy",
        "Which word stands at each masked place? Every text has its own mask, always the same.",
    ),
    VisualTokenizerTrainingConfig: Wording(
        "Visual tokenizer",
        "Variance given back",
        "How much of what differs between and within the pictures comes back from their codes, one a patch?",
    ),
    TextAssignmentConfig: Wording(
        "Text assignment",
        "Accuracy",
        "Does the text belong to the first picture, the second, or neither? The other pictures are drawn from its "
        "batch, alike ones more often.",
    ),
}
"""By the type of a recipe's `task`."""
MEASURES = {
    "accuracy.intended": "VQA accuracy, people's answers normalised too",
    "accuracy.without_proposals": "Box accuracy, from the map alone",
    "consistency": "Consistency",
}
REFERENCES = {
    "commonest": "Always the commonest answer",
    "largest_proposal": "Always the largest proposal",
    "central_proposal": "Always the most central proposal",
    "any_proposal": "Any proposal, drawn evenly",
    "one_colour": "Its mean colour for each picture",
}
FIGURES = {
    "reconstruction_error": "Mean square error, in normalised colours",
    "code_perplexity": "Perplexity of the codes' use",
    "codes_used": "Codes used",
    "codes": "Codes in all",
    "perplexity": "Perplexity of a masked word",
}


def named_scores(task: TaskConfig, result: TaskResult) -> dict[str, Estimate]:
    """Gives the measures under readable names, the official one first."""
    official = WORDINGS[type(task)].measure
    return {
        official if name == "accuracy" else MEASURES.get(name) or f"{official}, {name.removeprefix('accuracy.')}": score
        for name, score in result.scores.items()
    }


def named_references(result: TaskResult) -> dict[str, Estimate]:
    """Gives the official measure of predictions that ignore the pictures, under readable names."""
    return {REFERENCES[name]: score for name, score in result.references.items()}


def named_figures(result: TaskResult) -> dict[str, float]:
    """Gives the numbers that are no percentages, under readable names."""
    return {FIGURES[name]: value for name, value in result.figures.items()}


def describe_evaluation(
    task: TaskConfig,
    split: str,
    result: TaskResult,
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
    wording, decisions = WORDINGS[type(task)], result.decisions

    def example(decision: Decision) -> EvaluatedExample:
        record = records[decision.record]
        if isinstance(record, Referring):
            return _box_example(decision, record, pictures(record)[0], heat)
        if isinstance(record, Picture):
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

    in_words = bool(decisions) and isinstance(records[decisions[0].record], Question)
    return TaskEvaluation(
        title=wording.title,
        how=wording.how,
        split=split,
        records=len(decisions),
        scores=named_scores(task, result),
        references=named_references(result),
        confusion=confusion(tuple(result.classes), decisions) if result.classes else None,
        answers=given_answers(decisions) if in_words else (),
        examples=tuple(
            ExampleGroup(title, tuple(map(example, chosen)), total) for title, chosen, total in groups(decisions)
        ),
        figures=named_figures(result),
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
