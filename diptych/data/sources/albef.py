"""Reads ALBEF's own annotation lists: JSON files that hold a list of objects, whose keys say which task they belong to.

| task | an entry |
|---|---|
| pre-training, retrieval | `{"image": path, "caption": text or texts, "image_id": …}` |
| entailment | `{"image": name without ".jpg", "sentence": text, "label": "neutral"}` |
| questions | `{"image": path, "question": text, "question_id": …, "dataset": "vqa" or "vg", "answer": text or texts}` |
| statements about pairs, text assignment | `{"images": [path, path], "sentence": text, "label": "True" or "False"}` |
| grounding | `{"image": path, "text": text, "ref_id": …}` |

A key `split`, which other lists of this form have, divides the records, if it names more than one split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.data.columns import SPLIT_COLUMN
from diptych.data.entries import (
    answers_of,
    from_entry,
    label_of,
    name_of,
    object_of,
    plain_path,
    text_of,
    texts_of,
    truth_of,
)
from diptych.data.files import json_list
from diptych.data.picture_kinds import is_picture
from diptych.data.record import AnyRecord, BadRecord, Entailment, PairStatement, Question, Referring
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import name_splits, split_of_row
from diptych.data.sources.visual_genome import ANSWER_WEIGHT
from diptych.schema import DataConfig, Split

LAYOUT = 'data.source=albef reads JSON lists of {"image": …, "caption": …}, separated by commas'


def read_albef(path: str, config: DataConfig) -> SourceListing:
    """Reads all records of a list. Relative picture paths start from `config.root` or else from the list's folder.

    Entries that cannot be used are skipped and named FILE[INDEX], counted from 0. Raises ValueError if the file is
    missing or holds no list.
    """
    listing = SourceListing()
    root = Path(config.root or Path(path).parent)
    entries = json_list(path, LAYOUT)
    divided = name_splits(entry.get(SPLIT_COLUMN, "") for entry in entries if isinstance(entry, dict))
    listing.notes += [f"{path}: splits from `{SPLIT_COLUMN}`"] if divided else []
    for index, entry in enumerate(entries):
        listing.add(entry, f"{path}[{index}]", root, config.max_words, _read, _split_of if divided else None)
    return listing


def _split_of(entry: Any, name: str) -> Split:
    return split_of_row(object_of(entry, name).get(SPLIT_COLUMN), name)


def _read(entry: Any, name: str) -> AnyRecord:
    entry = object_of(entry, name)
    if "question" in entry:
        return _question(entry, name)
    if "sentence" in entry:
        return _pair(entry, name) if "images" in entry else _entailment(entry, name)
    if "text" in entry:
        return _referring(entry, name)
    return from_entry(entry, name)


def _question(entry: Mapping[str, Any], name: str) -> Question:
    genome = entry.get("dataset") == "vg"
    number = name_of(entry, "question_id", name)
    image = text_of(entry, "image", name)
    answers = answers_of(entry, name)
    return Question(
        # VQA and Visual Genome number their questions independently of each other.
        id=name if number is None else f"vg/{number}" if genome else number,
        image=image,
        question=text_of(entry, "question", name),
        answers=answers,
        image_id=plain_path(image),
        weights=(ANSWER_WEIGHT,) * len(answers) if genome else (),
    )


def _entailment(entry: Mapping[str, Any], name: str) -> Entailment:
    image = text_of(entry, "image", name)
    path = image if is_picture(image) else f"{image}.jpg"
    sentence, label = text_of(entry, "sentence", name), label_of(entry, "label", name)
    return Entailment(name, path, sentence, label, plain_path(path))


def _pair(entry: Mapping[str, Any], name: str) -> PairStatement:
    images = texts_of(entry, "images", name)
    if len(images) != 2:
        raise BadRecord(name, "wrong type", "`images` must be two paths")
    sentence = text_of(entry, "sentence", name)
    return PairStatement(
        id=name,
        images=(images[0], images[1]),
        statement=sentence,
        label=truth_of(entry, "label", name),
        image_ids=(plain_path(images[0]), plain_path(images[1])),
        group=sentence,
    )


def _referring(entry: Mapping[str, Any], name: str) -> Referring:
    image = text_of(entry, "image", name)
    number = name_of(entry, "ref_id", name) or ""
    return Referring(name, image, text_of(entry, "text", name), plain_path(image), ref_id=number)
