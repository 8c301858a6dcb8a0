"""Reads Visual Genome: `region_descriptions.json` as captions, or `question_answers.json` as questions.

Both are lists with one object per picture: `{"id": 1, "regions": [{"region_id": …, "phrase": …}]}` and `{"id": 1,
"qas": [{"qa_id": …, "question": …, "answer": "Green."}]}`. Pictures are `VG_100K/1.jpg` or `VG_100K_2/1.jpg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.entries import name_of, object_of, text_of
from diptych.data.files import json_list
from diptych.data.record import BadRecord, Question, Record
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=visual_genome reads region_descriptions.json or question_answers.json"
FOLDERS = ("VG_100K", "VG_100K_2", "")
ANSWER_WEIGHT = 0.5
"""Weight of a question's single answer, as in ALBEF's released data. The ten annotators of a VQA question have a weight
of 1 together."""


def read_visual_genome(path: str, config: DataConfig) -> SourceListing:
    """Reads every region or question of a file as a record.

    Picture paths start from `config.root` or else from the file's folder. Raises ValueError.
    """
    listing = SourceListing()
    root = Path(config.root or Path(path).parent)
    for index, entry in enumerate(json_list(path, LAYOUT)):
        _add_picture(listing, entry, f"{path}[{index}]", root, config.max_words)
    return listing


def _add_picture(listing: SourceListing, entry: Any, name: str, root: Path, max_words: int) -> None:
    key = "qas" if isinstance(entry, Mapping) and "qas" in entry else "regions"
    try:
        number = name_of(object_of(entry, name), "id", name)
        if number is None or not isinstance(entry.get(key), list):
            raise BadRecord(name, "key missing", f"`id` and the list `{key}`")
    except BadRecord as error:
        listing.skip(error)
        return
    file = next((path for folder in FOLDERS if (root / (path := f"{folder}/{number}.jpg".lstrip("/"))).is_file()), "")
    read = partial(_question if key == "qas" else _region, file=file or f"{FOLDERS[0]}/{number}.jpg", picture=number)
    for place, part in enumerate(entry[key]):
        listing.add(part, f"{name}, {key}[{place}]", root, max_words, read)


def _region(entry: Any, name: str, file: str, picture: str) -> Record:
    number = name_of(object_of(entry, name), "region_id", name)
    record_id = name if number is None else f"vg/{number}"
    return Record(record_id, file, (text_of(entry, "phrase", name),), f"vg/{picture}")


def _question(entry: Any, name: str, file: str, picture: str) -> Question:
    number = name_of(object_of(entry, name), "qa_id", name)
    answer = text_of(entry, "answer", name).strip().removesuffix(".").lower()
    if not answer:
        raise BadRecord(name, "answer empty")
    return Question(
        id=name if number is None else f"vg/{number}",
        image=file,
        question=text_of(entry, "question", name),
        answers=(answer,),
        image_id=f"vg/{picture}",
        weights=(ANSWER_WEIGHT,),
    )
