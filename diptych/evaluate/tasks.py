"""Evaluation of the tasks whose records are judged one by one: what the model says of each, and the official measure.

Q records, B of a batch, C classes, R phrases. Measures are in percent; higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.answers import answer_vocabulary
from diptych.data.loader import EvaluationBatch
from diptych.data.record import AnyRecord, Box, Question, Referring
from diptych.data.tokenizer import Tokenizer
from diptych.metrics.accuracy import Estimate, accuracy, estimate
from diptych.metrics.grounding import HALF, box_accuracy, box_iou, central_box, largest_box
from diptych.metrics.nlvr2 import nlvr2_accuracy
from diptych.metrics.task_evaluation import MAIN, Decision, TaskResult
from diptych.metrics.vqa import FULL, Normalisation, VqaAccuracy, vqa_accuracy
from diptych.schema import (
    EntailmentConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    LanguageStageConfig,
    Nlvr2Config,
    TextAssignmentConfig,
    VisionStageConfig,
    VisualTokenizerTrainingConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.search.contract import evaluating
from diptych.task import Task
from diptych.tasks.entailment import CLASSES as ENTAILMENT
from diptych.tasks.grounding import find_box, phrase_maps
from diptych.tasks.masked_language_modelling import MaskedTexts
from diptych.tasks.nlvr2 import CLASSES as TRUTH
from diptych.tasks.nlvr2 import PLACES
from diptych.tasks.visual_tokenizer import perplexity, use_of
from diptych.tasks.vqa import Answer, Answerer
from diptych.types import Progress, to_device

Judge = Callable[[Any, Iterable[EvaluationBatch], Tokenizer, int], TaskResult]


def evaluate_task(
    task: Task, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int = 1000
) -> TaskResult:
    """Asks the task for each record, in evaluation mode, and judges by the official measure.

    Raises ValueError for no records, for a task that is not judged record by record, and naming the record of which
    the model says something that is not finite.
    """
    judge = JUDGES.get(type(task.config))
    if judge is None:
        raise ValueError(f"{type(task).__name__} is not judged record by record")
    with evaluating(task):
        return judge(task, _placed(task, asked), tokenizer, resamples)


def has_label(record: AnyRecord) -> bool:
    """Whether the record says what is right of it."""
    if isinstance(record, Question):
        return bool(record.answers)
    return not isinstance(record, Referring) or record.box is not None


def _placed(task: Task, asked: Iterable[EvaluationBatch]) -> Iterator[EvaluationBatch]:
    """The batches on the task's device, of which there must be one."""
    device, empty = next(task.parameters()).device, True
    for one in asked:
        empty = False
        yield replace(one, batch=to_device(one.batch, device))
    if empty:
        raise ValueError("nothing to measure: the evaluation holds no record")


def _finite(said: Float[Tensor, "B *_"], records: Sequence[AnyRecord]) -> Float[Tensor, "B *_"]:
    """What was said of each record; of no NaN is there a largest."""
    broken = (~said.isfinite()).flatten(1).any(1).nonzero()
    if len(broken):
        raise ValueError(
            f"{records[int(broken[0])].id}: what the model says of it is not finite: its weights are broken"
        )
    return said


# --------------------------------------------------------------------------- classes


def _judge_entailment(task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    decisions: list[Decision] = []
    pictures: list[str] = []
    for one in asked:
        decisions += _classified(one.records, task.predict(one.batch), ENTAILMENT, [each.label for each in one.records])
        pictures += [each.image_id for each in one.records]
    return _class_accuracy(decisions, ENTAILMENT, pictures, resamples)


def _judge_nlvr2(task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    decisions: list[Decision] = []
    statements: list[str] = []
    for one in asked:
        labels = [TRUTH[int(each.label)] for each in one.records]
        decisions += _classified(one.records, task.predict(one.batch), TRUTH, labels)
        statements += [each.group for each in one.records]
    found = _class_accuracy(decisions, TRUTH, statements, resamples)
    both = nlvr2_accuracy(torch.tensor([bool(one.score) for one in decisions]), statements, resamples)
    return replace(found, scores={MAIN: both.accuracy, "consistency": both.consistency})


def _judge_assignment(task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """Which of two pictures a text belongs to, where the others are drawn from its batch as in training.

    So the measure depends on the size of the batches, and one of fewer than three pictures (a last one) is left out.
    """
    decisions: list[Decision] = []
    for number, one in enumerate(asked):
        if len(set(one.batch.image_ids.tolist())) < 3:
            continue
        probability, made = task.predict(one.batch, Progress(number, 0.0))
        found = _classified(one.records, probability, PLACES, [PLACES[label] for label in made.labels.tolist()])
        decisions += [
            replace(decision, pictures=tuple(one.records[place].id for place in places))
            for decision, places in zip(found, made.images.tolist(), strict=True)
        ]
    if not decisions:
        raise ValueError(
            "text assignment draws a text's other pictures from its batch, and no batch had three:"
            " raise evaluation.batch_size, or give more records"
        )
    return _class_accuracy(decisions, PLACES, None, resamples)


def _classified(
    records: Sequence[AnyRecord], probability: Float[Tensor, "B C"], names: Sequence[str], labels: Sequence[str]
) -> list[Decision]:
    best = _finite(probability, records).max(dim=1)
    said = zip(records, best.indices.tolist(), best.values.tolist(), labels, strict=True)
    return [
        Decision(record.id, names[place], share, label, float(names[place] == label))
        for record, place, share, label in said
    ]


def _class_accuracy(
    decisions: Sequence[Decision], names: Sequence[str], groups: Sequence[str] | None, resamples: int
) -> TaskResult:
    said, right = (
        torch.tensor([names.index(name) for name in each], dtype=torch.long)
        for each in ([one.said for one in decisions], [one.right for one in decisions])
    )
    measured = accuracy(said, right, names, groups, resamples)
    commonest = right.bincount().argmax()
    always = estimate((right == commonest).double().numpy(), groups, resamples)
    return TaskResult({MAIN: measured.overall}, {"commonest": always}, measured.classes, tuple(decisions))


# --------------------------------------------------------------------------- pictures alone


def _judge_hidden_patches(
    task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int
) -> TaskResult:
    """Whether the likeliest code of each hidden patch is the one that the visual tokenizer gives it."""
    decisions: list[Decision] = []
    hits, owners, codes = [], [], []
    for one in asked:
        made = task.predict(one.batch)
        said = _finite(made.logits, [one.records[row] for row in made.masked.nonzero()[:, 0].tolist()]).argmax(1)
        counts = made.masked.sum(1).tolist()
        for record, guessed, right in zip(one.records, said.split(counts), made.codes.split(counts), strict=True):
            found = guessed == right
            hits.append(found)
            codes.append(right)
            owners += [record.image_id] * len(right)
            score = found.double().mean().item()
            decisions.append(Decision(record.id, guessed.tolist(), None, right.tolist(), score))
    right = torch.cat(codes).cpu()
    always = right == right.bincount().argmax()
    values = {name: each.double().cpu().numpy() for name, each in (("hits", torch.cat(hits)), ("always", always))}
    return TaskResult(
        {MAIN: estimate(values["hits"], owners, resamples)},
        {"commonest": estimate(values["always"], owners, resamples)},
        decisions=tuple(decisions),
    )


def _judge_hidden_words(
    task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int
) -> TaskResult:
    """Whether the likeliest word at each hidden place is the one that stands there, and how uncertain the model is."""
    decisions: list[Decision] = []
    owners: list[str] = []
    right, hits, surprise = [], [], []
    for one in asked:
        masked, logits = task.predict(one.batch, len(decisions))
        owner = masked.rows.pair.tolist()
        chances = _finite(logits, [one.records[row] for row in owner]).log_softmax(1)
        best = chances.max(dim=1)
        right.append(masked.words.cpu())
        hits.append((best.indices == masked.words).cpu())
        surprise.append(-chances.gather(1, masked.words[:, None])[:, 0].double().cpu())
        owners += [one.records[row].id for row in owner]
        decisions += _guessed(one, masked, best.indices, best.values.exp(), tokenizer)
    words = torch.cat(right)
    if not len(words):
        raise ValueError("nothing to measure: no text of the split has a word that can be hidden")
    values = {"hits": torch.cat(hits), "always": words == words.bincount().argmax()}
    found, always = (estimate(each.double().numpy(), owners, resamples) for each in values.values())
    perplexity_of_words = torch.cat(surprise).mean().exp().item()
    return TaskResult(
        {MAIN: found}, {"commonest": always}, decisions=tuple(decisions), figures={"perplexity": perplexity_of_words}
    )


def _guessed(
    one: EvaluationBatch,
    masked: MaskedTexts,
    said: Int[Tensor, "R"],
    probability: Float[Tensor, "R"],
    tokenizer: Tokenizer,
) -> Iterator[Decision]:
    """Of each text: what was said of its hidden words, with the mean probability, and the share that is right."""
    ids = one.batch.texts.input_ids.clone()
    ids[masked.rows.pair, masked.rows.position] = tokenizer.mask_id
    for row, record in enumerate(one.records):
        here = masked.rows.pair == row
        guessed, right = said[here].tolist(), masked.words[here].tolist()
        score = sum(a == b for a, b in zip(guessed, right, strict=True)) / len(right) if right else None
        sure = probability[here].mean().item() if right else None
        texts = (" ".join(map(tokenizer.token, some)) for some in (guessed, right))
        yield Decision(record.id, next(texts), sure, next(texts), score, shown=tokenizer.decode(ids[row].tolist()))


def _judge_repainted(task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """The share of the pictures' variance that their codes give back, and how evenly the codes are used."""
    errors, flat, sums, squares, codes = [], [], [], [], []
    records: list[AnyRecord] = []
    for one in asked:
        made, pixels = task.predict(one.batch), one.batch.pixels.double()
        errors.append(_finite(made.error[:, None], one.records)[:, 0].double())
        sums.append(pixels.mean((2, 3)))
        squares.append(pixels.square().mean((2, 3)))
        flat.append((squares[-1] - sums[-1].square()).mean(1))
        codes.append(made.codes)
        records += one.records
    mean = torch.cat(sums).mean(0)
    variance = (torch.cat(squares).mean(0) - mean.square()).mean().clamp(min=torch.finfo(torch.double).tiny)
    given_back, of_one_colour = ((1 - torch.cat(each) / variance).cpu().numpy() for each in (errors, flat))
    use = use_of(torch.cat(codes), task.model.config.codes)
    said = zip(records, torch.cat(codes).tolist(), given_back.tolist(), strict=True)
    return TaskResult(
        {MAIN: estimate(given_back, None, resamples)},
        {"one_colour": estimate(of_one_colour, None, resamples)},
        decisions=tuple(Decision(record.id, grid, None, None, max(0.0, share)) for record, grid, share in said),
        figures={
            "reconstruction_error": torch.cat(errors).mean().item(),
            "code_perplexity": perplexity(use).item(),
            "codes_used": float((use > 0).sum()),
            "codes": float(len(use)),
        },
    )


# --------------------------------------------------------------------------- answers


def _judge_answers(task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """VQA accuracy as published numbers were computed, and as intended (metrics/vqa.py)."""
    answerer = Answerer(task, tokenizer)
    records: list[Question] = []
    given: list[Answer] = []
    for one in asked:
        best = [answers[0] for answers in answerer.best(one.batch)]
        _finite(torch.tensor([[answer.probability] for answer in best]), one.records)
        given += best
        records += one.records
    known = [place for place, record in enumerate(records) if has_label(record)]
    people = [_people(records[place]) for place in known]
    groups = [records[place].image_id for place in known]

    def measure(said: Sequence[str], normalisation: Normalisation) -> VqaAccuracy:
        return vqa_accuracy(said, people, normalisation, groups=groups, resamples=resamples)

    scores: dict[str, Estimate] = {}
    references: dict[str, Estimate] = {}
    each: dict[int, float] = {}
    if known:
        said = [given[place].text for place in known]
        released = measure(said, "released")
        scores = {MAIN: released.overall, "accuracy.intended": measure(said, "intended").overall}
        each = dict(zip(known, (released.questions / 100).tolist(), strict=True))
        (commonest,) = answer_vocabulary((records[place] for place in known), 1)
        references = {"commonest": measure([commonest] * len(known), "released").overall}
    decisions = [
        Decision(record.id, best.text, best.probability, list(record.answers) or None, each.get(place))
        for place, (record, best) in enumerate(zip(records, given, strict=True))
    ]
    return TaskResult(scores, references, decisions=tuple(decisions))


def _people(record: Question, people: int = 10) -> Sequence[str]:
    """What each person answered. Weights, and people too few for VQA accuracy, become shares of ten people.

    By largest remainders, so that all ten answered something.
    """
    if not record.weights and (len(record.answers) == 1 or len(record.answers) > FULL):
        return record.answers
    total = sum(weight for _, weight in record.targets)
    shares = {answer: people * weight / total for answer, weight in record.targets}
    counts = {answer: int(share) for answer, share in shares.items()}
    by_rest = sorted(shares, key=lambda answer: counts[answer] - shares[answer])
    for answer in by_rest[: people - sum(counts.values())]:
        counts[answer] += 1
    return [answer for answer, count in counts.items() for _ in range(count)]


# --------------------------------------------------------------------------- boxes


@dataclass(frozen=True)
class _Located:
    """A phrase with the boxes found for it, in pixels of its picture."""

    record: Referring
    size: tuple[int, int]
    """Width and height of the picture."""
    box: Box
    """The best proposal, or where there are none that of the map."""
    of_map: Box


def _judge_boxes(task: Any, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """Box accuracy by proposals, where there are any, over all and by split; and by the map alone."""
    config: GroundingConfig = task.config.boxes
    whole_pixels = task.released.iou_in_whole_pixels
    located = [found for one in asked for found in _locate(task, one, config)]
    known = [one for one in located if has_label(one.record)]
    overlaps = iter(_overlaps([one.box for one in known], known, whole_pixels).tolist())
    decisions = tuple(
        Decision(one.record.id, list(one.box), None, one.record.box and list(one.record.box), score)
        for one in located
        for score in [next(overlaps) if has_label(one.record) else None]
    )
    if not known:
        return TaskResult({}, decisions=decisions)
    references = _references(known, whole_pixels, resamples) if all(one.record.proposals for one in known) else {}
    return TaskResult(_box_scores(known, whole_pixels, resamples), references, decisions=decisions)


def _locate(task: Any, asked: EvaluationBatch, config: GroundingConfig) -> Iterator[_Located]:
    """A picture is encoded once for all of its phrases in the batch."""
    first = {record.image_id: row for row, record in reversed(list(enumerate(asked.records)))}
    rows = {identity: number for number, identity in enumerate(first)}
    pixels = asked.batch.pixels[list(first.values())]
    owner = torch.tensor([rows[record.image_id] for record in asked.records], device=pixels.device)
    averages_padding = task.released.heat_map_averages_padding
    maps = phrase_maps(task.model, pixels, asked.batch.texts, config, owner, averages_padding).phrase
    maps = _finite(maps, asked.records)
    for record, heat, size in zip(asked.records, maps, asked.sizes, strict=True):
        of_map = find_box(heat, size, (), config)
        box = find_box(heat, size, record.proposals, config) if record.proposals else of_map
        yield _Located(record, size, box, of_map)


def _box_scores(known: Sequence[_Located], whole_pixels: bool, resamples: int) -> dict[str, Estimate]:
    pictures, parts = [one.record.image_id for one in known], [one.record.part for one in known]
    iou = _overlaps([one.box for one in known], known, whole_pixels)
    by_part = box_accuracy(iou, parts, pictures, resamples)
    of_map = _overlaps([one.of_map for one in known], known, whole_pixels)
    return {
        MAIN: estimate(_hits(iou), pictures, resamples),
        **{f"accuracy.{part}": score for part, score in by_part.items() if part},
        "accuracy.without_proposals": estimate(_hits(of_map), pictures, resamples),
    }


def _references(known: Sequence[_Located], whole_pixels: bool, resamples: int) -> dict[str, Estimate]:
    """What the proposals give to whoever does not look: the largest, the most central, and any of them by chance."""
    largest, central, by_chance = [], [], []
    for one in known:
        proposals = one.record.proposals
        boxes = np.array(proposals, np.float64)
        largest.append(proposals[largest_box(boxes)])
        central.append(proposals[central_box(boxes, one.size)])
        by_chance.append(_hits(_overlaps(proposals, [one] * len(proposals), whole_pixels)).mean())
    hits = {
        "largest_proposal": _hits(_overlaps(largest, known, whole_pixels)),
        "central_proposal": _hits(_overlaps(central, known, whole_pixels)),
        "any_proposal": np.array(by_chance),
    }
    pictures = [one.record.image_id for one in known]
    return {name: estimate(values, pictures, resamples) for name, values in hits.items()}


def _overlaps(boxes: Sequence[Box], known: Sequence[_Located], whole_pixels: bool) -> Float[np.ndarray, "R"]:
    """IoU of a box for each phrase with the right one."""
    found, right = (np.array(some, np.float64).reshape(-1, 4) for some in (boxes, [one.record.box for one in known]))
    return box_iou(found, right, whole_pixels)


def _hits(iou: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    return (iou >= HALF).astype(np.float64)


JUDGES: dict[type, Judge] = {
    EntailmentConfig: _judge_entailment,
    Nlvr2Config: _judge_nlvr2,
    TextAssignmentConfig: _judge_assignment,
    VqaDecoderConfig: _judge_answers,
    VqaClosedSetConfig: _judge_answers,
    GroundingTrainingConfig: _judge_boxes,
    VisionStageConfig: _judge_hidden_patches,
    LanguageStageConfig: _judge_hidden_words,
    VisualTokenizerTrainingConfig: _judge_repainted,
}
"""By the type of a recipe's `task`. What is not here is measured as retrieval."""
