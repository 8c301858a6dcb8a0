"""Says whether labels and answers leave a model anything to learn. This file imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from diptych.data.record import ENTAILMENT_LABELS, AnyRecord, Entailment, PairStatement, Question

CLASSES: dict[type, tuple[str, ...]] = {Entailment: ENTAILMENT_LABELS, PairStatement: ("false", "true")}
"""The labels of the tasks that have a fixed set of them."""


def labels_of(record: AnyRecord) -> list[str]:
    """Returns the label of a record, or a question's likeliest answer; none where there is none.

    >>> labels_of(Question("", "", "?", ("red", "blue", "blue"), ""))
    ['blue']
    """
    if isinstance(record, Entailment):
        return [record.label]
    if isinstance(record, PairStatement):
        return [str(record.label).lower()]
    if not isinstance(record, Question) or not record.targets:
        return []
    return [max(record.targets, key=lambda target: target[1])[0]]


def only_label(kind: type, labels: Mapping[str, int]) -> str:
    """Says that all records of a task with fixed labels have the same one, so that nothing can be learnt, or nothing.

    >>> only_label(PairStatement, {"true": 4}), only_label(PairStatement, {"true": 4, "false": 1})
    ('all 4 records are labelled true: nothing can be learnt from them', '')
    """
    if kind not in CLASSES or len(labels) != 1:
        return ""
    ((label, count),) = labels.items()
    records = "the only record is" if count == 1 else f"all {count:,} records are"
    return f"{records} labelled {label}: nothing can be learnt from {'it' if count == 1 else 'them'}"


def notes_on_labels(kind: type, labels: Mapping[str, int]) -> Iterator[str]:
    """Yields what the labels of training records leave out, although a model can be trained on them.

    >>> list(notes_on_labels(Question, {"unanswerable": 40}))
    ["the likeliest answer to all 40 questions is 'unanswerable': nothing else can be learnt from them"]
    """
    absent = [label for label in CLASSES.get(kind, ()) if not labels.get(label)]
    if absent and len(labels) > 1:
        yield f"no record is labelled {' or '.join(absent)}, so that the model will hardly ever say so"
    if kind is Question and len(labels) == 1 and (count := sum(labels.values())) > 1:
        yield (
            f"the likeliest answer to all {count:,} questions is {next(iter(labels))!r}: nothing else can be learnt"
            " from them"
        )


def warnings_of(records: Iterable[AnyRecord]) -> Iterator[str]:
    """Yields what is wrong with the labels of training records as a whole."""
    labels: Counter[str] = Counter()
    kind: type = object
    for record in records:
        kind = type(record)
        labels.update(labels_of(record))
    if only := only_label(kind, labels):
        yield only
    yield from notes_on_labels(kind, labels)
