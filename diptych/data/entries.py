"""Records as objects of JSON, one per line of a JSONL file. This file imports no torch.

The keys of an object are the fields of its record. The key of the text says which task the record belongs to:

    {"id": "…", "image": "relative/path.jpg", "captions": ["…"], "image_id": "…", "clean": ["…"]}
    {"id": "…", "image": "…", "hypothesis": "…", "label": "neutral", "image_id": "…"}
    {"id": "…", "image": "…", "question": "…", "answers": ["red", "red", "blue"], "weights": [1, 1, 1], "image_id": "…"}
    {"id": "…", "images": ["left.png", "right.png"], "statement": "…", "label": true, "image_ids": ["…", "…"],
     "group": "…"}
    {"id": "…", "image": "…", "phrase": "…", "box": [x, y, width, height], "proposals": [[x, y, width, height]],
     "image_id": "…", "ref_id": "…", "part": "testA"}
    {"id": "…", "text": "…"}

`caption` with one string may stand for `captions`, and so may `text` beside an image, `answer` for `answers`, `bbox`
for `box`, `gold_label` for `label`, and `sentence` for the `statement` of two images. These may also stand as a list
under `image`, or under `left` and `right`. An answer may be a number, or an object {"answer": "red"}, as VQA v2 and
VizWiz write it; {"red": 3} counts annotators. `id` defaults to `FILE:LINE` and `image_id` to the image path.
`picture_from_entry` reads pictures alone, and ignores all texts. It is a separate function, because otherwise a line
without a text is a mistake.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.data.record import (
    ENTAILMENT_LABELS,
    AnyRecord,
    BadRecord,
    Box,
    Entailment,
    PairStatement,
    Picture,
    PlainText,
    Question,
    Record,
    Referring,
)
from diptych.data.written_lists import written_list
from diptych.printable import brief
from diptych.schema import Split


def to_entry(record: AnyRecord) -> dict[str, Any]:
    """Returns the JSON object of a record. Fields that equal their default are left out."""
    entry: dict[str, Any] = {"id": record.id}
    if isinstance(record, PlainText):
        return entry | {"text": record.text}
    if isinstance(record, PairStatement):
        entry |= {"images": list(record.images), "statement": record.statement, "label": record.label}
        entry["image_ids"] = list(record.image_ids)
        return entry | ({"group": record.group} if record.group != record.statement else {})
    entry["image"] = record.image
    if isinstance(record, Record):
        entry["captions"] = list(record.captions)
        optional: dict[str, Any] = {"clean": list(record.clean)}
    elif isinstance(record, Entailment):
        entry |= {"hypothesis": record.hypothesis, "label": record.label}
        optional = {}
    elif isinstance(record, Picture):
        optional = {}
    elif isinstance(record, Question):
        entry["question"] = record.question
        optional = {"answers": list(record.answers), "weights": list(record.weights)}
    else:
        entry["phrase"] = record.phrase
        boxes = [list(box) for box in record.proposals]
        optional = {"box": record.box and list(record.box), "proposals": boxes}
        optional |= {"ref_id": record.ref_id, "part": record.part}
    entry["image_id"] = record.image_id
    return entry | {key: value for key, value in optional.items() if value}


def from_entry(entry: Any, name: str) -> AnyRecord:
    """Reads the record of a JSON object. `name` says where the object stands. Image paths stay as written.

    Raises BadRecord.
    """
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object", 'each entry is {"image": …, "caption": …}')
    return _READERS[text_key(entry) or "caption"](entry, name)


def picture_from_entry(entry: Any, name: str) -> Picture:
    """Reads the picture of a JSON object and ignores its texts. Raises BadRecord."""
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object", 'each entry is {"image": …}')
    return Picture(_id(entry, name), text_of(entry, "image", name), _image_id(entry, name))


def _record(entry: Mapping[str, Any], name: str) -> Record:
    image = text_of(entry, "image", name)
    key = next((key for key in CAPTION_KEYS if key in entry), "caption")
    written = written_list(entry[key]) if isinstance(entry.get(key), str) else None
    captions = texts_of({key: written} if isinstance(written, list) else entry, key, name)
    clean = texts_of(entry, "clean", name) if entry.get("clean") else ()
    if clean and len(clean) != len(captions):
        raise BadRecord(name, "wrong type", "`clean` must have one text for each caption")
    return Record(_id(entry, name), image, captions, _image_id(entry, name), clean)


def _entailment(entry: Mapping[str, Any], name: str) -> Entailment:
    image, hypothesis = text_of(entry, "image", name), text_of(entry, "hypothesis", name)
    key = "gold_label" if "gold_label" in entry and "label" not in entry else "label"
    return Entailment(_id(entry, name), image, hypothesis, label_of(entry, key, name), _image_id(entry, name))


def _question(entry: Mapping[str, Any], name: str) -> Question:
    answers = answers_of(entry, name)
    weights = entry.get("weights", ())
    if not isinstance(weights, Sequence) or not all(_positive(weight) for weight in weights):
        raise BadRecord(name, "wrong type", "`weights` must be a list of numbers above 0")
    if weights and len(weights) != len(answers):
        raise BadRecord(name, "wrong type", "`weights` must have one number for each answer")
    image, question = text_of(entry, "image", name), text_of(entry, "question", name)
    total = float(sum(weights)) if has_counts(entry) else 1.0
    shares = tuple(float(weight) / total for weight in weights)
    return Question(_id(entry, name), image, question, answers, _image_id(entry, name), shares)


def has_counts(entry: Mapping[str, Any]) -> bool:
    """Returns whether a weight of an entry's answers is above 1, so that all are divided by their sum.

    >>> has_counts({"weights": [1, 0.5]}), has_counts({"weights": [100, 50]})
    (False, True)
    """
    weights = entry.get("weights")
    return isinstance(weights, Sequence) and any(_number(weight) and weight > 1 for weight in weights)


def _pair(entry: Mapping[str, Any], name: str) -> PairStatement:
    images = _two_images(entry, name)
    image_ids = texts_of(entry, "image_ids", name) if "image_ids" in entry else tuple(map(plain_path, images))
    if len(images) != 2 or len(image_ids) != 2:
        raise BadRecord(name, "wrong type", "`images` and `image_ids` must have two texts each")
    statement = text_of(entry, "statement" if "statement" in entry else "sentence", name)
    return PairStatement(
        id=_id(entry, name),
        images=(images[0], images[1]),
        statement=statement,
        label=truth_of(entry, "label", name),
        image_ids=(image_ids[0], image_ids[1]),
        group=name_of(entry, "group", name) or statement,
    )


def _two_images(entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Returns the images under `images`, in a list under `image`, or under `left` and `right`. Raises BadRecord."""
    if "images" in entry or not _has_pair(entry):
        return texts_of(entry, "images", name)
    if isinstance(entry.get("image"), list | tuple):
        return texts_of(entry, "image", name)
    return text_of(entry, "left", name), text_of(entry, "right", name)


def _has_pair(entry: Mapping[str, Any]) -> bool:
    listed = any(isinstance(entry.get(key), list | tuple) and len(entry[key]) == 2 for key in ("images", "image"))
    return listed or ("left" in entry and "right" in entry)


def _referring(entry: Mapping[str, Any], name: str) -> Referring:
    proposals = entry.get("proposals", ())
    if not isinstance(proposals, Sequence) or isinstance(proposals, str):
        raise BadRecord(name, "wrong type", "`proposals` must be a list of boxes")
    box = entry.get("box", entry.get("bbox"))
    return Referring(
        id=_id(entry, name),
        image=text_of(entry, "image", name),
        phrase=text_of(entry, "phrase", name),
        image_id=_image_id(entry, name),
        box=None if box is None else box_of(box, name),
        proposals=tuple(box_of(box, name) for box in proposals),
        ref_id=name_of(entry, "ref_id", name) or "",
        part=name_of(entry, "part", name) or "",
    )


def _plain_text(entry: Mapping[str, Any], name: str) -> AnyRecord:
    if "image" in entry:  # the text of a picture is its caption
        return _record(entry, name)
    return PlainText(_id(entry, name), text_of(entry, "text", name))


_READERS: dict[str, Callable[[Mapping[str, Any], str], AnyRecord]] = {
    "captions": _record,
    "caption": _record,
    "hypothesis": _entailment,
    "question": _question,
    "statement": _pair,
    "phrase": _referring,
    "text": _plain_text,
}
"""The function that reads an object with this key. The first key that is present decides."""
CAPTION_KEYS = ("captions", "caption", "text")


def text_key(entry: Any) -> str | None:
    """Returns the key of an object's text, which decides how it is read, or None."""
    if not isinstance(entry, Mapping):
        return None
    key = next((key for key in _READERS if key in entry), None)
    return "statement" if key is None and {"sentence", "label"} <= entry.keys() and _has_pair(entry) else key


KEYS = frozenset({
    "id", "image", "images", "image_id", "image_ids", "captions", "caption", "clean", "hypothesis", "label",
    "gold_label", "question", "answers", "answer", "weights", "statement", "left", "right", "group", "phrase",
    "box", "bbox", "proposals", "ref_id", "part", "text", "split",
})  # fmt: skip
"""All keys that are read. Others hold what this library does not use, or are misspelt."""

# --------------------------------------------------------------------------- values of an entry, checked

MOST_ANNOTATORS = 1000
"""A question with more answers than this is not one that people were asked."""
LABEL_WORDS: Mapping[str, str] = {
    "entails": "entailment", "entailed": "entailment", "entail": "entailment", "e": "entailment",
    "contradicts": "contradiction", "contradict": "contradiction", "contradicted": "contradiction",
    "contradictory": "contradiction", "c": "contradiction", "n": "neutral",
}  # fmt: skip
"""Other words that people write for the labels of entailment."""
BOX_KEYS = (("x", "y", "w", "h"), ("x", "y", "width", "height"))
"""The names under which an object holds a box."""
TRUTHS: Mapping[str, bool] = {
    "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False
}  # fmt: skip
LARGEST = 1e300
"""Whole numbers of JSON may be larger than any floating-point number."""


def text_of(entry: Mapping[str, Any], key: str, name: str) -> str:
    """Returns the text under a key. Raises BadRecord if there is none."""
    if key not in entry:
        raise BadRecord(name, "key missing", key)
    if not isinstance(entry[key], str):
        raise BadRecord(name, "wrong type", f"`{key}` must be a text")
    return _unicode(entry[key], name)


def texts_of(entry: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    """Returns the text or the list of texts under a key. Raises BadRecord if there is none."""
    if key not in entry:
        raise BadRecord(name, "key missing", key)
    value = entry[key]
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise BadRecord(name, "wrong type", f"`{key}` must be a text or a list of texts")
    return tuple(_unicode(text, name) for text in texts)


def answers_of(entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Returns the answers under `answers` or `answer`; none if neither key is there. Raises BadRecord.

    Each is a text, a number or, as VQA v2 and VizWiz write them, an object that holds one under `answer`. They may be a
    list that was written as a text, or an object that counts annotators. An annotator who gave none (null) counts not.

    >>> answers_of({"answers": ["two", 2, {"answer": "2", "answer_confidence": "yes"}]}, "a.jsonl:1")
    ('two', '2', '2')
    >>> answers_of({"answers": "['red', 'red']"}, "a.jsonl:1"), answers_of({"answers": {"red": 2, "pink": 1}}, "")
    (('red', 'red'), ('red', 'red', 'pink'))
    """
    key = "answers" if "answers" in entry else "answer"
    value = entry.get(key)
    if value is None:
        return ()
    listed = written_list(value) if isinstance(value, str) else value
    if isinstance(listed, Mapping) and "answer" not in listed:
        listed = _counted_answers(listed, key, name)
    listed = list(listed) if isinstance(listed, list | tuple) else [value]
    answers = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in listed]
    answers = [answer for answer in answers if answer is not None] if len(answers) > 1 else answers
    if any(isinstance(answer, bool) for answer in answers):
        raise BadRecord(name, "wrong type", f'`{key}` holds true or false: write "yes" or "no", as the questions ask')
    if not all(isinstance(answer, str) or _number(answer) for answer in answers):
        raise BadRecord(
            name, "wrong type", f'`{key}` must be a text, a number, {{"answer": …}}, or a list of such answers'
        )
    return tuple(_unicode(answer if isinstance(answer, str) else f"{answer:.12g}", name) for answer in answers)


def _counted_answers(counts: Mapping[str, Any], key: str, name: str) -> list[str]:
    """Returns each answer as many times as annotators gave it. Raises BadRecord unless all are counted."""
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in counts.values())
    if not counts or not whole or sum(counts.values()) > MOST_ANNOTATORS:
        raise BadRecord(
            name, "wrong type", f'`{key}` must be a text, a number, {{"answer": …}}, a list of such answers, or'
            ' {"red": 3}, which counts the annotators of each answer'
        )  # fmt: skip
    return [answer for answer, count in counts.items() for _ in range(count)]


def name_of(entry: Mapping[str, Any], key: str, name: str) -> str | None:
    """Returns the name under a key, or None. Published lists number their pictures, so a whole number is a name too.

    Raises BadRecord.
    """
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRecord(name, "wrong type", f"`{key}` must be a text or a whole number")


def label_of(entry: Mapping[str, Any], key: str, name: str) -> str:
    """Returns the entailment label under a key, in any case. Raises BadRecord unless it is one of ENTAILMENT_LABELS.

    LABEL_WORDS may stand for them. A number is none: data sets count the labels in different orders. SNLI marks by "-"
    that its annotators disagreed.
    """
    value, known = entry.get(key), ", ".join(ENTAILMENT_LABELS)
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdecimal()):
        detail = f"{value} is a number, and data sets number the labels differently: write one of {known}"
        raise BadRecord(name, "label unknown", detail)
    label = text_of(entry, key, name).strip().lower()
    if label == "-":
        raise BadRecord(name, "label unknown", "'-' says that the annotators did not agree: leave such lines out")
    label = LABEL_WORDS.get(label, label)
    if label not in ENTAILMENT_LABELS:
        raise BadRecord(name, "label unknown", f"{brief(label)} is none of {known}")
    return label


def truth_of(entry: Mapping[str, Any], key: str, name: str) -> bool:
    """Returns the truth value under a key: a boolean, 0 or 1, or, as published, a text of one or of yes or no.

    Raises BadRecord.
    """
    value = entry.get(key)
    truth = TRUTHS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if truth is None:
        raise BadRecord(name, "label unknown", f"`{key}` must be true or false, yes or no, or 1 or 0")
    return truth


def box_of(value: Any, name: str) -> Box:
    """Checks and returns a box (x, y, width, height). Raises BadRecord.

    It may also be an object with these names, a text with commas between, texts of numbers, or a list of one box.

    >>> box_of({"x": 1, "y": 2, "w": 3, "h": 4}, ""), box_of("1,2,3,4", ""), box_of([["1", "2", "3", "4"]], "")
    ((1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0))
    """
    numbers = list(map(_as_number, _box_parts(value)))
    if len(numbers) != 4 or not all(map(_number, numbers)):
        raise BadRecord(name, "box wrong", f"{brief(value)} is not [x, y, width, height]")
    x, y, width, height = map(float, numbers)
    if min(width, height) <= 0:
        raise BadRecord(name, "box wrong", f"width and height of {brief(value)} must be above 0")
    return x, y, width, height


def _box_parts(value: Any) -> Sequence[Any]:
    """Returns the four parts of a box, or whatever stands in their place."""
    if isinstance(value, Mapping):
        return next(([value[key] for key in keys] for keys in BOX_KEYS if value.keys() == set(keys)), ())
    if isinstance(value, str):
        return value.strip().strip("[]()").split(",")
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        return value[0]
    return value if isinstance(value, Sequence) else ()


def _as_number(value: Any) -> Any:
    """Returns the number that a text is. Anything else is returned as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def plain_path(path: str) -> str:
    """Removes `.`, `..` and doubled slashes from a path, so that each file has one name.

    >>> plain_path("./photos//a.jpg")
    'photos/a.jpg'
    """
    return Path(os.path.normpath(path)).as_posix()


def _id(entry: Mapping[str, Any], name: str) -> str:
    return name_of(entry, "id", name) or name


def _image_id(entry: Mapping[str, Any], name: str) -> str:
    return name_of(entry, "image_id", name) or plain_path(text_of(entry, "image", name))


def _number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < LARGEST and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _unicode(text: str, name: str) -> str:
    """Refuses lone surrogates, which JSON and file names can hold but tokenizers and terminals cannot handle."""
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "in another encoding than UTF-8: rename the file, or save the list as UTF-8"
        raise BadRecord(name.encode(errors="backslashreplace").decode(), "not Unicode", reason) from None
    return text


def object_of(entry: Any, name: str) -> Mapping[str, Any]:
    """Returns the entry itself. Raises BadRecord unless it is a JSON object."""
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object")
    return entry


def published_split(entry: Any, name: str, splits: Mapping[str, Split]) -> Split:
    """Returns our name of the published split under the key `split`. Raises BadRecord."""
    published = text_of(object_of(entry, name), "split", name)
    if published not in splits:
        raise BadRecord(name, "split unknown", f"'{published}' is none of {', '.join(splits)}")
    return splits[published]
