"""Files of predictions as evaluation servers take them, checked before they are written. No torch here.

A server refuses an incomplete file, or counts what is missing as wrong, and allows few attempts. So the ids that are
expected must be given, those of the split's published file, and every doubt is an error:

    with open("v2_OpenEnded_mscoco_test2015_questions.json") as file:
        expected = [question["question_id"] for question in json.load(file)["questions"]]
    write_vqa("results.json", answers, expected)

A file is either whole or not there; an older one of that name stays until then.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diptych.data.record import ENTAILMENT_LABELS

NAMED = 5
"""Offenders of a kind that a message names."""
NLVR2_LABELS = ("True", "False")

Id = TypeVar("Id", int, str)


def write_vqa(path: str | Path, answers: Iterable[tuple[int | str, str]], expected: Iterable[int | str]) -> None:
    """For the VQA evaluation server: a JSON list of `{"question_id": …, "answer": …}` in the order of `expected`.

    Ids may be texts of digits. Raises ValueError for ids that are not whole numbers, missing, unknown or repeated,
    for empty answers, and where the file cannot be written.
    """
    given = [(_question_id(number), answer) for number, answer in answers]
    checked = _checked(given, [_question_id(number) for number in expected], _is_answer, "a non-empty text")
    _write(Path(path), json.dumps([{"question_id": number, "answer": answer} for number, answer in checked]) + "\n")


def write_nlvr2(path: str | Path, labels: Iterable[tuple[str, str | bool]], expected: Iterable[str]) -> None:
    """For NLVR2's evaluation: CSV lines `identifier,True` or `identifier,False` without a heading, as `expected` goes.

    Raises ValueError for identifiers that are missing, unknown or repeated, for other labels, and where the file
    cannot be written.
    """
    given = [(identifier, str(label)) for identifier, label in labels]
    checked = _checked(given, list(expected), NLVR2_LABELS.__contains__, " or ".join(NLVR2_LABELS))
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(checked)
    _write(Path(path), lines.getvalue())


def write_snli_ve(path: str | Path, labels: Iterable[tuple[str, str]], expected: Iterable[str]) -> None:
    """For SNLI-VE, which has no server: JSON lines `{"pairID": …, "label": …}` with the published ids and labels.

    Raises ValueError for ids that are missing, unknown or repeated, for other labels, and where the file cannot be
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
    given: Sequence[tuple[Id, str]], expected: Sequence[Id], valid: Callable[[Any], bool], allowed: str
) -> list[tuple[Id, str]]:
    """What is given in the order of `expected`. Raises one ValueError for all that is wrong."""
    if not expected:
        raise ValueError("no ids are expected: give those of the split that is to be submitted")
    wanted, times, found = dict.fromkeys(expected), Counter(one for one, _ in given), dict(given)
    faults: dict[str, Sequence[object]] = {
        f"without a prediction, of {len(wanted)} expected ids": [one for one in wanted if one not in times],
        "predicted more than once": [one for one, count in times.items() if count > 1],
        "not among the expected ids": [one for one in times if one not in wanted],
        f"whose prediction is not {allowed}": [f"{one} ({what!r})" for one, what in given if not valid(what)],
    }
    lines: list[str] = [f"  {len(ones)} {fault}: {_first(ones)}" for fault, ones in faults.items() if ones]
    if lines:
        raise ValueError("\n".join(["nothing was written, since the predictions are not fit to be submitted:", *lines]))
    return [(one, found[one]) for one in wanted]


def _first(ones: Sequence[object]) -> str:
    more = [f"and {len(ones) - NAMED} more"] if len(ones) > NAMED else []
    return ", ".join([*(str(one) for one in ones[:NAMED]), *more])


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise ValueError(f"{path} could not be written ({error})") from error
