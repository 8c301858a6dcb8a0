"""Defines the records of each task and the protocols of the sources that serve them. It imports no torch.

There is one record class per task. `diptych/data/entries.py` reads and writes records as lines of JSON.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from PIL import Image

from diptych.printable import printable

Box = tuple[float, float, float, float]
"""x, y, width and height in pixels of the whole picture, counted from its upper left corner."""
ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
"""The labels of visual entailment, in the order of their class numbers."""


def has_word(text: str) -> bool:
    """Returns whether a text holds a character that a tokenizer sees.

    White space, control and format characters, such as a zero-width space, and accents without a letter are none.

    >>> has_word("red"), has_word("?"), has_word(" \u200b")
    (True, True, False)
    """
    return any(letter.isalnum() or (unicodedata.category(letter)[0] in "PS" and letter != "\ufffd") for letter in text)


class _OnePicture:
    """Gives the records that have one picture the properties `images` and `image_ids`, which all records share."""

    image: Any
    image_id: str

    @property
    def images(self) -> tuple[Any, ...]:
        return (self.image,)

    @property
    def image_ids(self) -> tuple[str, ...]:
        return (self.image_id,)


@dataclass(frozen=True)
class Part:
    """Holds a part of a caption, or the whole."""

    text: str
    phrases: tuple[str, ...]
    """What it says, phrase by phrase. The text is true of every picture of which all its phrases are."""


@runtime_checkable
class Truth(Protocol):
    """Answers what the source of a record knows of its picture and of its only caption. It is asked only if needed."""

    def parts(self) -> tuple[Part, ...]:
        """Returns the caption, then the shorter texts that it can be cut to; none to have it cut by its words."""
        ...

    def shown(self) -> tuple[str, ...]:
        """Returns phrases that are true of the picture, beside those of its caption."""
        ...


@dataclass(frozen=True)
class Record(_OnePicture):
    """Holds a picture with its captions, for pre-training and retrieval."""

    text_name: ClassVar[str] = "caption"
    id: str
    """Name of the record in messages. It is unique within its source."""
    image: Any
    """What the source needs to produce the picture: a path for picture files, a scene for generated pictures."""
    captions: tuple[str, ...]
    image_id: str
    """Identity of the picture. Records with the same picture have the same `image_id`."""
    clean: tuple[str, ...] = ()
    """The captions before noise was added to `captions`. Empty where no noise was added."""
    truth: Truth | None = field(default=None, compare=False)
    """What the source knows of the caption and the picture. None if it knows no more than the captions themselves."""

    @property
    def texts(self) -> tuple[str, ...]:
        return self.captions


@dataclass(frozen=True)
class Entailment(_OnePicture):
    """Holds a picture and a hypothesis that it entails, contradicts or leaves open."""

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
class Question(_OnePicture):
    """Holds a question about a picture and people's answers. A question without answers cannot be trained on."""

    text_name: ClassVar[str] = "question"
    id: str
    """The data set's own id of the question, which a submission file needs."""
    image: Any
    question: str
    answers: tuple[str, ...]
    """One answer per annotator, or, with `weights`, each different answer once."""
    image_id: str
    weights: tuple[float, ...] = ()
    """One weight above 0 per answer. If empty, each answer comes from one annotator and all count the same."""

    @property
    def targets(self) -> tuple[tuple[str, float], ...]:
        """Each different answer once, in order of first appearance, with its weight or its share of the annotators.

        Answers without a word are left out: nothing can be learnt from them, and no model may choose them.
        """
        share = self.weights or (1 / max(1, len(self.answers)),) * len(self.answers)
        weighted: dict[str, float] = {}
        for answer, weight in zip(self.answers, share, strict=True):
            if not has_word(answer):
                continue
            weighted[answer] = weighted.get(answer, 0.0) + weight
        return tuple(weighted.items())

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question,)


@dataclass(frozen=True)
class PairStatement:
    """Holds two pictures and a statement that is true or false of them."""

    text_name: ClassVar[str] = "statement"
    id: str
    images: tuple[Any, Any]
    """The left and the right picture."""
    statement: str
    label: bool
    image_ids: tuple[str, str]
    group: str
    """Equal for the pairs that share a statement, over which consistency is counted. By default the statement."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.statement,)


@dataclass(frozen=True)
class Referring(_OnePicture):
    """Holds a picture and a phrase for one object in it. Training needs neither `box` nor `proposals`."""

    text_name: ClassVar[str] = "phrase"
    id: str
    image: Any
    phrase: str
    image_id: str
    box: Box | None = None
    """The box of the object, if it is known."""
    proposals: tuple[Box, ...] = ()
    """Boxes of a detector, from which the model chooses one."""
    ref_id: str = ""
    """Equal for the phrases that name the same object of the same picture."""
    part: str = ""
    """The published split (testA, testB), where one split of ours holds several."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.phrase,)


@dataclass(frozen=True)
class Picture(_OnePicture):
    """Holds a picture without a text, for stages that train on pictures alone."""

    text_name: ClassVar[str] = "text"
    id: str
    image: Any
    image_id: str

    @property
    def texts(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class PlainText:
    """Holds a text without a picture, for language modelling."""

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
LOOKED_AT = 100
"""The task of a source is that of its first readable record, which must be among this many."""
TASK_NAMES: dict[type, str] = {
    Picture: "pictures alone",
    Record: "captions",
    Entailment: "entailment hypotheses",
    Question: "questions",
    PairStatement: "statements about pairs",
    Referring: "referring phrases",
    PlainText: "texts without pictures",
}
"""The name of each kind of record in messages."""
KEYS_OF_TASKS: dict[type, str] = {
    Entailment: "`hypothesis` and `label`",
    Question: "`question` and `answers`",
    PairStatement: "`images`, `statement` and `label`",
    Referring: "`phrase` and `box`",
}
"""The keys that make an object a record of a task other than captions."""


def with_images(record: Any, images: Sequence[Any]) -> Any:
    """Returns the record with other `images`, one for each that it has. A `PlainText` stays as it is."""
    if isinstance(record, PlainText):
        return record
    if isinstance(record, PairStatement):
        return replace(record, images=(images[0], images[1]))
    return replace(record, image=images[0])


def with_image_ids(record: Any, names: Mapping[str, str]) -> Any:
    """Returns the record with new identities for the pictures whose identity is a key of `names`."""
    if isinstance(record, PlainText):
        return record
    if isinstance(record, PairStatement):
        first, second = (names.get(name, name) for name in record.image_ids)
        return replace(record, image_ids=(first, second))
    return replace(record, image_id=names.get(record.image_id, record.image_id))


class BadRecord(ValueError):
    """Says why a record cannot be used. `reason` is a short fixed phrase to count by; the message names the record.

    The message is safe to print, and names the record once. `record` and `detail` are as they were found.

    >>> str(BadRecord("a.jpg", "not a picture", "a.jpg: a web page"))
    'a.jpg: not a picture (a web page)'
    """

    def __init__(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        """`count` is the number of records that the error stands for, where a whole file of them is lost."""
        said = "" if detail == record else detail.removeprefix(f"{record}: ")  # the message begins with it already
        super().__init__(f"{printable(record)}: {reason}" + (f" ({printable(said)})" if said else ""))
        self.record = record
        self.reason = reason
        self.detail = detail
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.record, self.reason, self.detail, self.count)


@runtime_checkable
class Source(Protocol):
    """Serves the captioned pictures of one split. Sources are cheap to index and can be pickled; a picture is made or
    decoded only on request."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """The entries that were not usable when the source was opened: broken lines, missing files, empty captions."""
        ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...

    def picture(self, record: Record) -> Image.Image:
        """Returns the RGB picture of a record. Raises BadRecord."""
        ...


@runtime_checkable
class TaskSource(Protocol[R]):
    """Serves the records of one split of any task, as `Source` serves captioned pictures."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]: ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> R: ...

    def pictures(self, record: R) -> tuple[Image.Image, ...]:
        """Returns one RGB picture for each of `record.images`. Raises BadRecord."""
        ...


@runtime_checkable
class Numbered(Protocol):
    """Stands for a source that knows the identity of a record's image without making the record."""

    def image_id(self, index: int) -> str: ...


def check_kind(source: Source | TaskSource[Any], kind: type, name: str) -> None:
    """Raises ValueError unless the first readable record is of class `kind`. `name` says what the source is."""
    held = first_kind(source)
    if held not in (kind, None):
        way = f": lines with {KEYS_OF_TASKS[kind]}, which data.source=jsonl reads" if kind in KEYS_OF_TASKS else ""
        raise ValueError(f"{name} holds {TASK_NAMES[held]}; this task needs {TASK_NAMES[kind]}{way}")


def first_kind(source: Source | TaskSource[Any]) -> type | None:
    """Returns the class of the first readable record. None if none of the first ones can be read."""
    for index in range(min(LOOKED_AT, len(source))):
        with suppress(BadRecord):  # which is counted when it is its turn
            return type(source.record(index))
    return None
