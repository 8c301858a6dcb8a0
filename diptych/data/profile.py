"""Describes training data in a few numbers: what a vocabulary knows of the texts, how many pictures share a text, and
digests that tell whether data are still the same. It imports no torch.

`diptych data validate` and the start of a run print what stands out. The run keeps the numbers as `data.json`, which
`diptych resume` compares and `diptych doctor` reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from diptych.data.cleanup import clean_text
from diptych.data.record import AnyRecord, Question
from diptych.data.tokenizer import Tokenizer

MOST_TEXTS = 100_000
"""The most records whose texts are counted, and the most texts that a vocabulary is tried on, evenly spread."""
FEW = 0.01
"""Share of unknown word pieces, and of pairs of pictures with the same text, above which it is said. Our own choice."""


@dataclass(frozen=True)
class TextProfile:
    """Counts the texts of records, cleaned up as a model sees them."""

    texts: int
    """Texts of all records."""
    pictures: int
    """Different pictures; 0 for texts without pictures."""
    distinct: int
    """Different texts."""
    same_text: float
    """Probability, 0..1, that two texts of different pictures, drawn at random, are the same."""
    commonest: str
    """The text that most pictures share."""
    commonest_pictures: int
    """The number of pictures that have it."""
    unknown: float | None = None
    """Share, 0..1, of the word pieces that the vocabulary does not know ([UNK]). None where no vocabulary was given."""
    unread: str = ""
    """A text with the largest share of unknown word pieces."""

    @property
    def same_for_all(self) -> bool:
        """Whether all of several pictures have the same one text."""
        return self.pictures > 1 and self.distinct == 1

    def repetition(self) -> str:
        """Says how many pictures share how few texts; empty if hardly any do."""
        if self.same_for_all:
            return (
                f"all {self.pictures:,} pictures have the same text ({shown(self.commonest)}), so no model can learn "
                "to tell them apart by words"
            )
        if self.same_text <= FEW:
            return ""
        return (
            f"{self.pictures:,} pictures share {self.distinct:,} different texts, such as {shown(self.commonest)} "
            f"({self.commonest_pictures:,} pictures): {self.same_text:.1%} of the pairs of different pictures have "
            "the same text"
        )

    def unknown_words(self) -> str:
        """Says how much of the texts the vocabulary does not know; empty if that is hardly anything."""
        if self.unknown is None or self.unknown <= FEW:
            return ""
        return f"the vocabulary does not know {self.unknown:.1%} of the word pieces ([UNK]), as in {shown(self.unread)}"


def shown(text: str, most: int = 60) -> str:
    """Quotes a text for a message, cut to `most` characters."""
    return f"'{text}'" if len(text) <= most else f"'{text[:most]}…'"


def profile_texts(records: Iterable[AnyRecord], max_words: int, tokenizer: Tokenizer | None = None) -> TextProfile:
    """Counts the texts of records. With a tokenizer it also counts the word pieces that the vocabulary does not know.

    The answers to questions are read by a model too, so the vocabulary should know them.
    """
    pictures_of: Counter[str] = Counter()
    pairs: set[int] = set()
    pictures: set[str] = set()
    answers: set[str] = set()
    texts = 0
    for record in records:
        pictures.update(record.image_ids)
        for text in record.texts:
            cleaned = clean_text(text, record, max_words)
            texts += 1
            if (pair := hash((record.image_ids, cleaned))) not in pairs:
                pairs.add(pair)
                pictures_of[cleaned] += 1
        if isinstance(record, Question):
            answers.update(answer for answer, _ in record.targets)
    total = pictures_of.total()
    same = sum(count * (count - 1) for count in pictures_of.values()) / max(1, total * (total - 1))
    commonest, most = min(pictures_of.items(), key=lambda pair: (-pair[1], pair[0]), default=("", 0))
    unknown, unread = unknown_words([*pictures_of, *sorted(answers)], tokenizer) if tokenizer else (None, "")
    return TextProfile(
        texts, len(pictures), len(pictures_of), same if pictures else 0.0, commonest, most, unknown, unread
    )


def unknown_words(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[float, str]:
    """Returns the share of unknown word pieces of different texts, and a text with the largest share."""
    texts = texts[:: max(1, len(texts) // MOST_TEXTS)]
    known = total = 0
    worst, unread = 0.0, ""
    for text, ids in zip(texts, tokenizer.encode(texts) if texts else [], strict=True):
        pieces = ids[1:-1] if tokenizer.separator else ids[1:]
        missing = pieces.count(tokenizer.unk_id)
        known, total = known + len(pieces) - missing, total + len(pieces)
        if pieces and missing / len(pieces) > worst:
            worst, unread = missing / len(pieces), text
    return (total - known) / max(1, total), unread


def is_other_script(text: str) -> bool:
    """Returns whether most letters of a text are outside of Latin script and its extensions.

    >>> is_other_script("ein grüner Bär"), is_other_script("красный круг")
    (False, True)
    """
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(letter > "\u02af" for letter in letters) > len(letters)


@dataclass(frozen=True)
class DataProfile:
    """The training data of a run, as its `data.json` keeps them."""

    place: str
    """`data.path`, or the name of the source."""
    records: int
    """Records that can be used."""
    skipped: int
    """Entries that could not become a record."""
    read: int
    """Records whose digests follow: all of them, or some of a source that streams its records."""
    text_digest: str
    """Digest of these records' texts and labels, in order."""
    picture_digest: str
    """Digest of the names of their pictures, and of the sizes of some of the files."""
    texts: TextProfile

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DataProfile:
        """Reads what `to_json` wrote. Entries that this version does not know are left out. Raises KeyError."""
        values = {name: content[name] for name in (field.name for field in fields(cls))}
        texts = {field.name: content["texts"][field.name] for field in fields(TextProfile)}
        return cls(**{**values, "texts": TextProfile(**texts)})

    def differences(self, now: DataProfile) -> list[str]:
        """Says in what other data differ from these. Where they lie does not count."""
        said = []
        if self.records != now.records:
            said.append(f"{self.records:,} records before, {now.records:,} now")
        if self.read == now.read or self.records == now.records:
            said += ["other texts or labels"] * (self.text_digest != now.text_digest)
            said += ["other pictures"] * (self.picture_digest != now.picture_digest)
        return said
