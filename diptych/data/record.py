"""One schema a task, its line of JSON, and the protocol of whatever serves the records. No torch here.

`to_entry` and `from_entry` are the JSONL form: one object a line, its keys the fields of the record. The key of the
text says which task a line belongs to: `caption` or `captions`, `hypothesis`, `question`, `statement`, `phrase`, or
`text` where there is no picture.
Pictures alone are read by another function, `picture_from_entry`: a line without a text is otherwise a mistake.
In every schema `id` defaults to `FILE:LINE` and `image_id` to the image path.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from PIL import Image

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the whole picture, from its upper left corner."""
ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
"""In the order of the classes."""


class _OfOnePicture:
    """A record's pictures and their identities, where it has one picture."""

    image: Any
    image_id: str

    @property
    def images(self) -> tuple[Any, ...]:
        return (self.image,)

    @property
    def image_ids(self) -> tuple[str, ...]:
        return (self.image_id,)


@dataclass(frozen=True)
class Record(_OfOnePicture):
    """Retrieval and pre-training: a picture and its captions.

    `{"id": "…", "image": "relative/path.jpg", "captions": ["…"], "image_id": "…", "clean": ["…"]}`;
    `caption` with one string may stand for `captions`.
    """

    text_name: ClassVar[str] = "caption"
    id: str
    """Names the record in messages; unique in its source."""
    image: Any
    """What the source needs to produce the picture: a path for files, a scene for made ones."""
    captions: tuple[str, ...]
    image_id: str
    """Equal for equal pictures, whatever record they come from."""
    clean: tuple[str, ...] = ()
    """The captions without the noise that was put into `captions`; empty where none was."""

    @property
    def texts(self) -> tuple[str, ...]:
        return self.captions


@dataclass(frozen=True)
class Entailment(_OfOnePicture):
    """Does the picture entail, contradict or leave open the hypothesis?

    `{"id": "…", "image": "…", "hypothesis": "…", "label": "neutral", "image_id": "…"}`
    """

    text_name: ClassVar[str] = "hypothesis"
    id: str
    image: Any
    hypothesis: str
    label: str
    """One of ENTAILMENT_LABELS."""
    image_id: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.hypothesis,)


@dataclass(frozen=True)
class Question(_OfOnePicture):
    """A question about a picture, and what people answered.

    `{"id": "…", "image": "…", "question": "…", "answers": ["red", "red", "blue"], "weights": [1.0], "image_id": "…"}`;
    `answers` lists each annotator's answer, or, with `weights`, each answer once with its weight. Without `answers`
    nobody knows: such questions can be answered, not learnt from.
    """

    text_name: ClassVar[str] = "question"
    id: str
    """What the data set calls the question, as a submission file needs it."""
    image: Any
    question: str
    answers: tuple[str, ...]
    image_id: str
    weights: tuple[float, ...] = ()
    """One an answer, above 0; empty: each answer is one annotator's, and all count the same."""

    @property
    def targets(self) -> tuple[tuple[str, float], ...]:
        """Each answer once, in order of first appearance, with its weight: the share of annotators who gave it."""
        share = self.weights or (1 / max(1, len(self.answers)),) * len(self.answers)
        weighted: dict[str, float] = {}
        for answer, weight in zip(self.answers, share, strict=True):
            weighted[answer] = weighted.get(answer, 0.0) + weight
        return tuple(weighted.items())

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question,)


@dataclass(frozen=True)
class PairStatement:
    """Is the statement true of a pair of pictures?

    `{"id": "…", "images": ["left.png", "right.png"], "statement": "…", "label": true, "image_ids": ["…", "…"],
    "group": "…"}`
    """

    text_name: ClassVar[str] = "statement"
    id: str
    images: tuple[Any, Any]
    """Left, right."""
    statement: str
    label: bool
    image_ids: tuple[str, str]
    group: str
    """Equal for the pairs that share one statement, over which consistency is counted; the statement by default."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.statement,)


@dataclass(frozen=True)
class Referring(_OfOnePicture):
    """Where in the picture is what the phrase names?

    `{"id": "…", "image": "…", "phrase": "…", "box": [x, y, width, height], "proposals": [[x, y, width, height]],
    "image_id": "…", "ref_id": "…", "part": "testA"}`; training needs neither `box` nor `proposals`.
    """

    text_name: ClassVar[str] = "phrase"
    id: str
    image: Any
    phrase: str
    image_id: str
    box: Box | None = None
    proposals: tuple[Box, ...] = ()
    """Boxes of a detector, of which one is chosen."""
    ref_id: str = ""
    """Equal for the phrases that name one object of one picture."""
    part: str = ""
    """The published split, where a split of ours holds several (testA, testB)."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.phrase,)


@dataclass(frozen=True)
class Picture(_OfOnePicture):
    """A picture alone, for stages that see nothing else.

    `{"id": "…", "image": "relative/path.jpg", "image_id": "…"}`; what else a line says is passed over.
    """

    text_name: ClassVar[str] = "text"
    id: str
    image: Any
    image_id: str

    @property
    def texts(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class PlainText:
    """A text without a picture, for language modelling.

    `{"id": "…", "text": "…"}`
    """

    text_name: ClassVar[str] = "text"
    images: ClassVar[tuple[Any, ...]] = ()
    image_ids: ClassVar[tuple[str, ...]] = ()
    id: str
    text: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


AnyRecord = Picture | Record | Entailment | Question | PairStatement | Referring | PlainText
R = TypeVar("R", bound=AnyRecord)
TASK_NAMES: dict[type, str] = {
    Picture: "pictures alone",
    Record: "captions",
    Entailment: "entailment hypotheses",
    Question: "questions",
    PairStatement: "statements about pairs",
    Referring: "referring phrases",
    PlainText: "texts without pictures",
}
"""What messages call the records of each task."""


class BadRecord(ValueError):
    """A record that cannot be used. `reason` is a short fixed phrase to count by; the message names the record."""

    def __init__(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        """`count`: how many records it stands for, where a whole file of them is lost."""
        super().__init__(f"{record}: {reason}" + (f" ({detail})" if detail else ""))
        self.record = record
        self.reason = reason
        self.detail = detail
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.record, self.reason, self.detail, self.count)


@runtime_checkable
class Source(Protocol):
    """An ordered set of records. Cheap to index; pictures are made or decoded only on request. Picklable."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """What could not become a record when the source was opened (broken lines, missing files, empty captions)."""
        ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...

    def picture(self, record: Record) -> Image.Image:
        """An RGB picture. Raises BadRecord."""
        ...


@runtime_checkable
class TaskSource(Protocol[R]):
    """A `Source` for the records of any task."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]: ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> R: ...

    def pictures(self, record: R) -> tuple[Image.Image, ...]:
        """RGB pictures, one for each of `record.images`. Raises BadRecord."""
        ...


def check_kind(source: Source | TaskSource[Any], kind: type, name: str) -> None:
    """Raises ValueError unless the source holds records of that task. `name` says what the source is."""
    if len(source) and not isinstance(source.record(0), kind):
        found = TASK_NAMES[type(source.record(0))]
        raise ValueError(f"{name} holds {found}; this task needs {TASK_NAMES[kind]}")


# --------------------------------------------------------------------------- the JSONL form


def to_entry(record: AnyRecord) -> dict[str, Any]:
    """The object of a record's line. What equals its default is left out."""
    entry: dict[str, Any] = {"id": record.id}
    if isinstance(record, PlainText):
        return entry | {"text": record.text}
    if isinstance(record, PairStatement):
        entry |= {"images": list(record.images), "statement": record.statement, "label": record.label}
        entry |= {"image_ids": list(record.image_ids)}
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
    """The record of a line's object; `name` says where it stands. Images stay as written. Raises BadRecord."""
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object", 'each entry is {"image": …, "caption": …}')
    for key, read in _READERS.items():
        if key in entry:
            return read(entry, name)
    return _record(entry, name)


def picture_from_entry(entry: Any, name: str) -> Picture:
    """The picture of a line's object, whatever texts it has. Raises BadRecord."""
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object", 'each entry is {"image": …}')
    return Picture(_id(entry, name), text_of(entry, "image", name), _image_id(entry, name))


def _record(entry: Mapping[str, Any], name: str) -> Record:
    image = text_of(entry, "image", name)
    captions = texts_of(entry, "captions" if "captions" in entry else "caption", name)
    clean = texts_of(entry, "clean", name) if entry.get("clean") else ()
    if clean and len(clean) != len(captions):
        raise BadRecord(name, "wrong type", "`clean` must have one text for each caption")
    return Record(_id(entry, name), image, captions, _image_id(entry, name), clean)


def _entailment(entry: Mapping[str, Any], name: str) -> Entailment:
    image, hypothesis = text_of(entry, "image", name), text_of(entry, "hypothesis", name)
    return Entailment(_id(entry, name), image, hypothesis, label_of(entry, "label", name), _image_id(entry, name))


def _question(entry: Mapping[str, Any], name: str) -> Question:
    answers = texts_of(entry, "answers", name) if "answers" in entry else ()
    weights = entry.get("weights", ())
    if not isinstance(weights, Sequence) or not all(_positive(weight) for weight in weights):
        raise BadRecord(name, "wrong type", "`weights` must be a list of numbers above 0")
    if weights and len(weights) != len(answers):
        raise BadRecord(name, "wrong type", "`weights` must have one number for each answer")
    image, question = text_of(entry, "image", name), text_of(entry, "question", name)
    return Question(_id(entry, name), image, question, answers, _image_id(entry, name), tuple(map(float, weights)))


def _pair(entry: Mapping[str, Any], name: str) -> PairStatement:
    images = texts_of(entry, "images", name)
    image_ids = texts_of(entry, "image_ids", name) if "image_ids" in entry else tuple(map(plain_path, images))
    if len(images) != 2 or len(image_ids) != 2:
        raise BadRecord(name, "wrong type", "`images` and `image_ids` must have two texts each")
    statement = text_of(entry, "statement", name)
    return PairStatement(
        id=_id(entry, name),
        images=(images[0], images[1]),
        statement=statement,
        label=truth_of(entry, "label", name),
        image_ids=(image_ids[0], image_ids[1]),
        group=name_of(entry, "group", name) or statement,
    )


def _referring(entry: Mapping[str, Any], name: str) -> Referring:
    proposals = entry.get("proposals", ())
    if not isinstance(proposals, Sequence) or isinstance(proposals, str):
        raise BadRecord(name, "wrong type", "`proposals` must be a list of boxes")
    return Referring(
        id=_id(entry, name),
        image=text_of(entry, "image", name),
        phrase=text_of(entry, "phrase", name),
        image_id=_image_id(entry, name),
        box=None if entry.get("box") is None else box_of(entry["box"], name),
        proposals=tuple(box_of(box, name) for box in proposals),
        ref_id=name_of(entry, "ref_id", name) or "",
        part=name_of(entry, "part", name) or "",
    )


def _plain_text(entry: Mapping[str, Any], name: str) -> AnyRecord:
    if "image" in entry:  # what is said of a picture is its caption
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


# --------------------------------------------------------------------------- values of an entry, checked


def text_of(entry: Mapping[str, Any], key: str, name: str) -> str:
    """A text that must be there. Raises BadRecord."""
    if key not in entry:
        raise BadRecord(name, "key missing", key)
    if not isinstance(entry[key], str):
        raise BadRecord(name, "wrong type", f"`{key}` must be a text")
    return _unicode(entry[key], name)


def texts_of(entry: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    """A text or a list of texts that must be there. Raises BadRecord."""
    if key not in entry:
        raise BadRecord(name, "key missing", key)
    value = entry[key]
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise BadRecord(name, "wrong type", f"`{key}` must be a text or a list of texts")
    return tuple(_unicode(text, name) for text in texts)


def name_of(entry: Mapping[str, Any], key: str, name: str) -> str | None:
    """An optional name; published lists number their pictures, so whole numbers will do. Raises BadRecord."""
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRecord(name, "wrong type", f"`{key}` must be a text or a whole number")


def label_of(entry: Mapping[str, Any], key: str, name: str) -> str:
    """One of ENTAILMENT_LABELS. Raises BadRecord."""
    label = text_of(entry, key, name)
    if label not in ENTAILMENT_LABELS:
        raise BadRecord(name, "label unknown", f"'{label}' is none of {', '.join(ENTAILMENT_LABELS)}")
    return label


def truth_of(entry: Mapping[str, Any], key: str, name: str) -> bool:
    """True or false, as such or as a text, as published. Raises BadRecord."""
    truth = {"true": True, "false": False}.get(str(entry.get(key)).lower())
    if truth is None:
        raise BadRecord(name, "label unknown", f"`{key}` must be true or false")
    return truth


def box_of(value: Any, name: str) -> Box:
    """x, y, width, height. Raises BadRecord."""
    if not isinstance(value, Sequence) or len(value) != 4 or not all(map(_number, value)):
        raise BadRecord(name, "box wrong", f"{value!r} is not [x, y, width, height]")
    x, y, width, height = map(float, value)
    if min(width, height) <= 0:
        raise BadRecord(name, "box wrong", f"width and height of {value!r} must be above 0")
    return x, y, width, height


def plain_path(path: str) -> str:
    """A path without `.`, `..` and doubled slashes, so that one file has one name.

    >>> plain_path("./photos//a.jpg")
    'photos/a.jpg'
    """
    return Path(os.path.normpath(path)).as_posix()


def _id(entry: Mapping[str, Any], name: str) -> str:
    return name_of(entry, "id", name) or name


def _image_id(entry: Mapping[str, Any], name: str) -> str:
    return name_of(entry, "image_id", name) or plain_path(text_of(entry, "image", name))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _unicode(text: str, name: str) -> str:
    """JSON and file names can hold half characters, which no tokenizer takes and no terminal prints."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(name.encode(errors="backslashreplace").decode(), "not Unicode", str(error)) from None
    return text
