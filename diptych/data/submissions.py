"""Writes predictions as evaluation servers take them, after checks. No torch here.

A server refuses an incomplete file, or counts missing predictions as wrong, and allows few attempts. So every function
needs the expected ids, those of the split's published file, and every doubt is an error:

    with open("v2_OpenEnded_mscoco_test2015_questions.json") as file:
        expected = [question["question_id"] for question in json.load(file)["questions"]]
    write_vqa("results.json", answers, expected)

A file is written whole or not at all; an older one of that name stays until then.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diptych.data.record import ENTAILMENT_LABELS
from diptych.writing import write_text

NAMED = 5
"""The number of offending ids of a kind that a message names."""
NLVR2_LABELS = ("True", "False")

Id = TypeVar("Id", int, str)


def write_vqa(path: str | Path, answers: Iterable[tuple[int | str, str]], expected: Iterable[int | str]) -> None:
    """Writes a JSON list of `{"question_id": …, "answer": …}` in the order of `expected` for the VQA evaluation server.

    Ids may be texts of digits. Raises ValueError for ids that are not whole numbers, missing, unknown or repeated, for
    empty answers, and for a file that cannot be written.
    """
    predictions = [(_question_id(number), answer) for number, answer in answers]
    checked = _checked(predictions, [_question_id(number) for number in expected], _is_answer, "a non-empty text")
    _write(Path(path), json.dumps([{"question_id": number, "answer": answer} for number, answer in checked]) + "\n")


def write_nlvr2(path: str | Path, labels: Iterable[tuple[str, str | bool]], expected: Iterable[str]) -> None:
    """Writes CSV lines `identifier,True` or `identifier,False` in the order of `expected`, as NLVR2 takes them.

    Raises ValueError for identifiers that are missing, unknown or repeated, for other labels, and for a file that
    cannot be written.
    """
    predictions = [(identifier, str(label)) for identifier, label in labels]
    checked = _checked(predictions, list(expected), NLVR2_LABELS.__contains__, " or ".join(NLVR2_LABELS))
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(checked)
    _write(Path(path), lines.getvalue())


def write_snli_ve(path: str | Path, labels: Iterable[tuple[str, str]], expected: Iterable[str]) -> None:
    """Writes JSON lines `{"pairID": …, "label": …}` with the published ids and labels for SNLI-VE, which has no server.

    Raises ValueError for ids that are missing, unknown or repeated, for other labels, and for a file that cannot be
    written.
    """
    checked = _checked(list(labels), list(expected), ENTAILMENT_LABELS.__contains__, ", ".join(ENTAILMENT_LABELS))
    _write(Path(path), "".join(json.dumps({"pairID": pair, "label": label}) + "\n" for pair, label in checked))


def _question_id(number: int | str) -> int:
    if isinstance(number, bool) or not str(number).isdecimal():
        raise ValueError(f"question id {number!r} is not a whole number, as those of VQA are")
    return int(number)


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, str) and bool(answer.strip())


def _checked(
    predictions: Sequence[tuple[Id, str]], expected: Sequence[Id], valid: Callable[[Any], bool], allowed: str
) -> list[tuple[Id, str]]:
    """Returns the predictions in the order of `expected`. Raises one ValueError for everything that is wrong."""
    if not expected:
        raise ValueError("no ids are expected: give those of the split that is to be submitted")
    wanted, times, by_id = dict.fromkeys(expected), Counter(id_ for id_, _ in predictions), dict(predictions)
    faults: dict[str, Sequence[object]] = {
        f"without a prediction, of {len(wanted)} expected ids": [id_ for id_ in wanted if id_ not in times],
        "predicted more than once": [id_ for id_, count in times.items() if count > 1],
        "not among the expected ids": [id_ for id_ in times if id_ not in wanted],
        f"whose prediction is not {allowed}": [f"{id_} ({text!r})" for id_, text in predictions if not valid(text)],
    }
    lines: list[str] = [f"  {len(ids)} {fault}: {_first(ids)}" for fault, ids in faults.items() if ids]
    if lines:
        raise ValueError("\n".join(["nothing was written, since the predictions are not fit to be submitted:", *lines]))
    return [(id_, by_id[id_]) for id_ in wanted]


def _first(ids: Sequence[object]) -> str:
    more = [f"and {len(ids) - NAMED} more"] if len(ids) > NAMED else []
    return ", ".join([*(str(id_) for id_ in ids[:NAMED]), *more])


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise ValueError(str(error)) from error
