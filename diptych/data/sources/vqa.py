"""Reads VQA v2 as its site publishes it: files of questions, and files of annotations with ten answers per question.

`v2_OpenEnded_mscoco_train2014_questions.json`: `{"data_type": "mscoco", "data_subtype": "train2014", "questions":
[{"image_id": …, "question": …, "question_id": …}]}`. `v2_mscoco_train2014_annotations.json`: `{"data_subtype": …,
"annotations": [{"question_id": …, "answers": [{"answer": …}]}]}`. The test sets have no annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.entries import name_of, object_of, text_of
from diptych.data.files import json_object, list_of, split_paths
from diptych.data.record import BadRecord, Question
from diptych.data.sources.coco import coco_path
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=vqa reads VQA v2's questions and annotations, separated by commas"
AMBIGUOUS = "two annotations that differ"
"""Stands for the annotation of a question that has several."""
FOLDERS = {"test-dev2015": "test2015"}
"""Subsets whose pictures belong to another subset, which is named here."""


def read_vqa(paths: str, config: DataConfig) -> SourceListing:
    """Reads all questions of the files, with their answers if the annotations of their subset are among the files.

    Picture paths start from `config.root` or else from the folder of their questions. Raises ValueError.
    """
    contents = {path: json_object(path, LAYOUT) for path in split_paths(paths)}
    questions = {path: content for path, content in contents.items() if "annotations" not in content}
    if not questions:
        raise ValueError(f"{paths} names no file of questions: {LAYOUT}")
    answers: dict[str, dict[str, Any]] = {}
    for path, content in contents.items():
        if "annotations" in content:
            _add_annotations(answers.setdefault(_subset(content, path), {}), content, path)
    if alone := answers.keys() - {_subset(content, path) for path, content in questions.items()}:
        raise ValueError(f"{paths}: there are annotations of {', '.join(sorted(alone))}, but no questions")
    listing = SourceListing()
    for path, content in questions.items():
        subset = _subset(content, path)
        root = Path(config.root or Path(path).parent)
        read = partial(_read, subset=FOLDERS.get(subset, subset), root=root, answers=answers.get(subset))
        for index, entry in enumerate(list_of(content, "questions", path, LAYOUT)):
            listing.add(entry, f"{path}, questions[{index}]", root, config.max_words, read)
    return listing


def _subset(content: Mapping[str, Any], path: str) -> str:
    subset = content.get("data_subtype")
    if content.get("data_type") != "mscoco" or not isinstance(subset, str):
        raise ValueError(
            f"{path} does not say which of COCO's pictures it is about (data_type, data_subtype): {LAYOUT}"
        )
    return subset


def _add_annotations(annotations: dict[str, Any], content: Mapping[str, Any], path: str) -> None:
    """Adds the annotation of each question, by the question's number. Their answers are not checked yet."""
    for entry in list_of(content, "annotations", path, LAYOUT):
        if isinstance(entry, dict) and "question_id" in entry:
            first = annotations.setdefault(number := str(entry["question_id"]), entry)
            if first != entry:
                annotations[number] = AMBIGUOUS


def _read(entry: Any, name: str, subset: str, root: Path, answers: Mapping[str, Any] | None) -> Question:
    entry = object_of(entry, name)
    number = name_of(entry, "question_id", name)
    picture = entry.get("image_id")
    if number is None or not isinstance(picture, int):
        raise BadRecord(name, "key missing", "`question_id` and `image_id` must be whole numbers")
    file = f"COCO_{subset}_{picture:012d}.jpg"
    annotated = () if answers is None else _answers(answers.get(number), number, picture, name)
    return Question(number, coco_path(root, file), text_of(entry, "question", name), annotated, file)


def _answers(annotation: Any, number: str, picture: int, name: str) -> tuple[str, ...]:
    if annotation is None:
        raise BadRecord(name, "answers missing", f"no annotation of question {number}")
    if annotation is AMBIGUOUS:
        raise BadRecord(name, "answers ambiguous", f"question {number} has {AMBIGUOUS}")
    if (other := annotation.get("image_id", picture)) != picture:
        raise BadRecord(name, "picture ambiguous", f"question {number} is of {picture}, its annotation of {other}")
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers:
        raise BadRecord(name, "answers missing", f"the annotation of question {number} has no list `answers`")
    return tuple(text_of(object_of(answer, name), "answer", name) for answer in answers)
