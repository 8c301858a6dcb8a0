"""Evaluation of the tasks whose records are judged one by one: what the model says of each, and the official measure.

Q records. Measures are in percent; higher is better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from diptych.data.loader import Asked
from diptych.data.record import ENTAILMENT_LABELS, Box, Entailment, PairStatement, Question, Referring
from diptych.data.tokenizer import Tokenizer
from diptych.metrics.accuracy import ClassCounts, Estimate, accuracy, estimate
from diptych.metrics.grounding import box_iou, central_box, largest_box
from diptych.metrics.nlvr2 import nlvr2_accuracy
from diptych.metrics.vqa import vqa_accuracy
from diptych.schema import (
    EntailmentConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.task import Task
from diptych.tasks.entailment import CLASSES as ENTAILMENT
from diptych.tasks.grounding import evaluate_boxes, find_box, phrase_maps
from diptych.tasks.nlvr2 import CLASSES as TRUTH
from diptych.tasks.vqa import Answerer
from diptych.types import Progress, to_device

MAIN = "accuracy"
"""The measure that decides which checkpoint is best."""


@dataclass(frozen=True)
class Decision:
    """What a model said of one record."""

    record: str
    said: Any
    """A class, an answer, a box: as a submission file or a person would have it."""
    probability: float | None
    """As the model gave it to what it said; a box has none."""
    right: Any
    """What should have been said: a class, people's answers, a box; None where nobody tells."""
    score: float | None
    """How right it was, in 0..1: 0 or 1, an answer's VQA accuracy, a box's overlap (IoU)."""


@dataclass(frozen=True)
class TaskResult:
    """A split, judged. `scores["accuracy"]` is the task's official measure; without labels there are none."""

    scores: Mapping[str, Estimate]
    references: Mapping[str, Estimate] = field(default_factory=dict)
    """The same measure for whoever does not look: always the commonest answer, the largest box."""
    classes: Mapping[str, ClassCounts] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Flat names, as for retrieval: `accuracy`, `accuracy.interval`, `references.commonest` …"""
        found: dict[str, Any] = {"unit": "percent", "examples": len(self.decisions)}
        for prefix, scores in (("", self.scores), ("references.", self.references)):
            for name, score in scores.items():
                found[f"{prefix}{name}"] = round(score.value, 6)
                found[f"{prefix}{name}.interval"] = [round(end, 6) for end in score.interval]
        for name, counts in self.classes.items():
            found[f"classes.{name}"] = vars(counts)
        return found


Judge = Callable[[Task, Iterable[Asked], Tokenizer, int], TaskResult]


@torch.no_grad()
def evaluate_task(task: Task, asked: Iterable[Asked], tokenizer: Tokenizer, resamples: int = 1000) -> TaskResult:
    """Asks the task for each record and judges by the official measure.

    The task is in evaluation mode meanwhile. Raises ValueError for no records, and for a task that is not judged record
    by record.
    """
    judge = next((judge for kind, judge in JUDGES.items() if isinstance(task.config, kind)), None)
    if judge is None:
        raise ValueError(f"{type(task).__name__} is not judged record by record")
    training = task.training
    task.eval()
    try:
        return judge(task, asked, tokenizer, resamples)
    finally:
        task.train(training)


def _placed(task: Task, asked: Iterable[Asked]) -> Iterable[Asked]:
    """The batches on the task's device."""
    device = next(task.parameters()).device
    return (replace(one, batch=to_device(one.batch, device)) for one in asked)


def _judge_entailment(task: Any, asked: Iterable[Asked], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    records: list[Entailment] = []
    decisions: list[Decision] = []
    for one in _placed(task, asked):
        for record, probability in zip(one.records, task.predict(one.batch), strict=True):
            said = int(probability.argmax())
            right = float(ENTAILMENT[said] == record.label)
            decisions.append(Decision(record.id, ENTAILMENT[said], float(probability[said]), record.label, right))
            records.append(record)
    return _classified(
        decisions, ENTAILMENT_LABELS, [record.label for record in records], [one.image_id for one in records], resamples
    )


def _judge_nlvr2(task: Any, asked: Iterable[Asked], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    records: list[PairStatement] = []
    decisions: list[Decision] = []
    for one in _placed(task, asked):
        for record, probability in zip(one.records, task.predict(one.batch), strict=True):
            said = int(probability.argmax())
            right = float(said == record.label)
            decisions.append(
                Decision(record.id, TRUTH[said], float(probability[said]), TRUTH[int(record.label)], right)
            )
            records.append(record)
    groups = [record.group for record in records]
    found = _classified(decisions, TRUTH, [TRUTH[int(record.label)] for record in records], groups, resamples)
    both = nlvr2_accuracy(torch.tensor([bool(one.score) for one in decisions]), groups, resamples)
    return replace(found, scores={"accuracy": both.accuracy, "consistency": both.consistency})


def _classified(
    decisions: list[Decision], names: Sequence[str], labels: Sequence[str], groups: Sequence[str], resamples: int
) -> TaskResult:
    said = torch.tensor([names.index(one.said) for one in decisions], dtype=torch.long)
    right = torch.tensor([names.index(label) for label in labels], dtype=torch.long)
    measured = accuracy(said, right, names, groups, resamples)
    commonest = Counter(labels).most_common(1)[0][0]
    always = estimate(np.array([float(label == commonest) for label in labels]), groups, resamples)
    return TaskResult({"accuracy": measured.overall}, {"commonest": always}, measured.classes, tuple(decisions))


def _judge_answers(task: Any, asked: Iterable[Asked], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """VQA accuracy as published numbers were computed, and as intended (metrics/vqa.py)."""
    answerer = Answerer(task, tokenizer)
    records: list[Question] = []
    given = []
    for one in _placed(task, asked):
        given += [best[0] for best in answerer.best(one.batch, k=1)]
        records += one.records
    known = [place for place, record in enumerate(records) if record.answers]
    scores: dict[str, Estimate] = {}
    references: dict[str, Estimate] = {}
    each: dict[int, float] = {}
    if known:
        people = [list(_people(records[place])) for place in known]
        said = [given[place].text for place in known]
        groups = [records[place].image_id for place in known]
        measured = vqa_accuracy(said, people, "released", groups=groups, resamples=resamples)
        intended = vqa_accuracy(said, people, "intended", groups=groups, resamples=resamples)
        scores = {"accuracy": measured.overall, "accuracy.intended": intended.overall}
        each = dict(zip(known, (measured.questions / 100).tolist(), strict=True))
        commonest = Counter(answer for answers in people for answer in answers).most_common(1)[0][0]
        always = vqa_accuracy([commonest] * len(known), people, "released", groups=groups, resamples=resamples)
        references = {"commonest": always.overall}
    decisions = [
        Decision(record.id, best.text, best.probability, list(record.answers) or None, each.get(place))
        for place, (record, best) in enumerate(zip(records, given, strict=True))
    ]
    return TaskResult(scores, references, decisions=tuple(decisions))


def _people(record: Question, people: int = 10) -> Sequence[str]:
    """What each person answered; weighted answers are given by ten people in these shares."""
    if not record.weights:
        return record.answers if len(record.answers) in (1, people) else _shared(record, people)
    return _shared(record, people)


def _shared(record: Question, people: int) -> list[str]:
    """Largest remainders: shares of ten people, all of whom answered something."""
    total = sum(weight for _, weight in record.targets)
    shares = [(answer, people * weight / total) for answer, weight in record.targets]
    counts = {answer: int(share) for answer, share in shares}
    by_rest = sorted(shares, key=lambda item: int(item[1]) - item[1])
    for answer, _ in by_rest[: people - sum(counts.values())]:
        counts[answer] += 1
    return [answer for answer, count in counts.items() for _ in range(count)]


def _judge_boxes(task: Any, asked: Iterable[Asked], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """Box accuracy by proposals, where there are any, by split and over all; and by the map alone."""
    config: GroundingConfig = task.config.boxes
    records: list[Referring] = []
    sizes: list[tuple[int, int]] = []
    boxes: list[tuple[Box, Box]] = []
    for one in _placed(task, asked):
        maps = phrase_maps(task.model, one.batch.pixels, one.batch.texts, config).phrase
        for record, heat, size in zip(one.records, maps, one.sizes, strict=True):
            free = find_box(heat, size, (), config)
            boxes.append((find_box(heat, size, record.proposals, config) if record.proposals else free, free))
        records += one.records
        sizes += one.sizes
    known = [record for record in records if record.box is not None]
    if len(known) < len(records):
        decisions = [
            Decision(record.id, list(box), None, None, None) for record, (box, _) in zip(records, boxes, strict=True)
        ]
        return TaskResult({}, decisions=tuple(decisions))
    right = np.array([record.box for record in records], np.float64)
    groups = [record.image_id for record in records]

    def hits(chosen: Sequence[Box]) -> Estimate:
        overlap = _overlap(chosen, right, config)
        return estimate((overlap >= 0.5).astype(np.float64), groups, resamples)

    chosen = [box for box, _ in boxes]
    scores = {"accuracy": hits(chosen)}
    parts = evaluate_boxes(chosen, records, config, resamples)
    if set(parts) != {""}:
        scores |= {f"accuracy.{name}": Estimate(one.value, one.interval, one.phrases) for name, one in parts.items()}
    scores["accuracy.without_proposals"] = hits([free for _, free in boxes])
    references = {}
    if all(record.proposals for record in records):
        offered = [np.array(record.proposals, np.float64) for record in records]
        references["largest_proposal"] = hits(
            [record.proposals[largest_box(some)] for record, some in zip(records, offered, strict=True)]
        )
        references["central_proposal"] = hits(
            [
                record.proposals[central_box(some, size)]
                for record, some, size in zip(records, offered, sizes, strict=True)
            ]
        )
        drawn = np.array(
            [
                (_overlap(record.proposals, np.repeat(box[None], len(record.proposals), 0), config) >= 0.5).mean()
                for record, box in zip(records, right, strict=True)
            ]
        )
        references["any_proposal"] = estimate(drawn, groups, resamples)
    decisions = [
        Decision(record.id, list(box), None, list(record.box or ()), float(overlap))
        for record, box, overlap in zip(records, chosen, _overlap(chosen, right, config), strict=True)
    ]
    return TaskResult(scores, references, decisions=tuple(decisions))


def _overlap(chosen: Sequence[Box], right: Float[np.ndarray, "Q 4"], config: GroundingConfig) -> Float[np.ndarray, "Q"]:
    return box_iou(np.array(chosen, np.float64), right, config.iou)


def _judge_assignment(task: Any, asked: Iterable[Asked], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """The share of texts assigned rightly; the pictures beside a text's own are drawn from its batch."""
    values: list[float] = []
    decisions: list[Decision] = []
    for number, one in enumerate(_placed(task, asked)):
        if len(set(one.batch.image_ids.tolist())) < 3:  # a last batch too small to draw from
            continue
        images = task.model.image_state(one.batch.pixels)
        made = task.draw(images, one.batch, Progress(number, 0.0))
        probability = task.predict(one.batch, made)
        right = (probability.argmax(1) == made.labels).float().tolist()
        values += right
        names = ("first", "second", "neither")
        decisions += [
            Decision(record.id, names[int(row.argmax())], float(row.max()), names[int(label)], score)
            for record, row, label, score in zip(one.records, probability, made.labels, right, strict=True)
        ]
    found = estimate(np.array(values), None, resamples)
    return TaskResult({"accuracy": found}, decisions=tuple(decisions))


JUDGES: dict[type, Judge] = {
    EntailmentConfig: _judge_entailment,
    Nlvr2Config: _judge_nlvr2,
    VqaDecoderConfig: _judge_answers,
    VqaClosedSetConfig: _judge_answers,
    GroundingTrainingConfig: _judge_boxes,
    TextAssignmentConfig: _judge_assignment,
}
"""By the type of a recipe's `task`."""
