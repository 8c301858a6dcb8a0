"""What is wrong with data, said before training starts: pictures, texts, ids, leaks between splits, labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from diptych.data.cleanup import clean_caption, clean_question
from diptych.data.loader import SkipLedger
from diptych.data.pictures import open_picture, picture_bytes
from diptych.data.record import (
    ENTAILMENT_LABELS,
    TASK_NAMES,
    AnyRecord,
    BadRecord,
    Entailment,
    PairStatement,
    PlainText,
    Question,
    Referring,
)
from diptych.data.sources.files import Found, draw_number, listing
from diptych.schema import SPLITS, DataConfig, Split

CLASSES: dict[type, tuple[str, ...]] = {Entailment: ENTAILMENT_LABELS, PairStatement: ("false", "true")}
"""The labels of the tasks that have a fixed set of them; training needs examples of each."""
LIKELIEST = 5
"""Answers that the balance of questions shows."""
NAMED = 5
"""Examples that a line names."""
LOPSIDED = 2.0
"""How many times as frequent as the rarest class the most frequent one may be without a note."""


@dataclass(frozen=True)
class SplitCheck:
    """One split, counted."""

    split: Split
    kind: type
    """Of its records."""
    records: int
    pictures: int
    texts: int
    bad: tuple[BadRecord, ...]
    """What cannot be used, each record once."""
    allowed: int
    """How many bad ones do no harm."""
    long: tuple[str, ...]
    """Ids of the records with a text that is cut to data.max_words."""
    repeated: tuple[str, ...]
    """Ids of records that say what an earlier one said of the same pictures."""
    labels: Mapping[str, int]
    """How many records have each label (questions: answer)."""
    unlabelled: int
    """Records without what the split needs: training questions without answer, phrases to be found without box."""


@dataclass(frozen=True)
class Check:
    """The splits and what they share. `errors` keep training from starting, `notes` do not."""

    splits: tuple[SplitCheck, ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether training can start."""
        return not self.errors

    def text(self) -> str:
        """For people: the counts, then what stands in the way."""
        lines = [line for split in self.splits for line in _counts(split)]
        lines += [f"note: {note}" for note in self.notes] + [f"error: {error}" for error in self.errors]
        count = len(self.errors)
        verdict = "training can start" if self.ready else f"training cannot start: {count} error{'s'[: count > 1]}"
        return "\n".join([*lines, verdict])


def validate(parts: Mapping[Split, Found], config: DataConfig, open_pictures: bool = True) -> Check:
    """Check the splits that `read_splits` gave.

    With `open_pictures` every picture is decoded, and copies under other names are found too; without, only
    missing files are.
    """
    seen = _Pictures({}, {}) if open_pictures else None
    splits = tuple(_check(split, found, config, seen) for split, found in parts.items())
    errors = [error for check in splits for error in _errors(check)]
    notes = [note for check in splits for note in _notes(check, config)]
    for one, other in combinations(SPLITS, 2):
        of_texts = _of_texts(parts[one]) and _of_texts(parts[other])
        shared = _shared_texts(parts[one], parts[other]) if of_texts else _shared(parts[one], parts[other], seen)
        if shared:
            # A drawn split cannot be chosen better by hand: what its copies are worth is for the user to say.
            where = errors if one == "train" and not parts[other].drawn else notes
            things = _many(shared, "text" if of_texts else "picture")
            where.append(f"{one} and {other} share {things}: {_some(shared)}")
        if ids := sorted(_ids(parts[one]) & _ids(parts[other])):
            notes.append(f"{one} and {other} share {_many(ids, 'id')}: {_some(ids)}")
    return Check(splits, tuple(errors), tuple(notes))


@dataclass(frozen=True)
class _Pictures:
    """What opening each picture once gave, by its path: what is wrong with it, or its fingerprint."""

    broken: dict[str, BadRecord]
    content: dict[str, bytes]

    def bad(self, record: AnyRecord) -> BadRecord | None:
        """The first of a record's pictures that cannot be opened, as that record's fault."""
        for path in record.images:
            if path not in self.broken and path not in self.content:
                self._open(path, record.id)
            if path in self.broken:
                error = self.broken[path]
                return BadRecord(record.id, error.reason, error.detail)
        return None

    def _open(self, path: str, name: str) -> None:
        try:
            open_picture(path, name, least_side=64)  # a scaled JPEG is read to its end, and several times faster
        except BadRecord as error:
            self.broken[path] = error
            return
        self.content[path] = hashlib.blake2b(picture_bytes(path), digest_size=16).digest()


def _check(split: Split, found: Found, config: DataConfig, seen: _Pictures | None) -> SplitCheck:
    records: Sequence[AnyRecord] = found.records
    broken = [error for record in records if (error := seen.bad(record))] if seen else []
    total = len(records) + len(found.skipped)
    ledger = SkipLedger(config.bad_share if split == "train" else 0.0, total, [*found.skipped, *broken])
    return SplitCheck(
        split=split,
        kind=type(records[0]) if records else object,
        records=len(records) - len(broken),
        pictures=len({image_id for record in records for image_id in record.image_ids}),
        texts=sum(len(record.texts) for record in records),
        bad=tuple(ledger.bad.values()),
        # Pictures that cannot be read are left out of a split that was drawn, and it goes on.
        allowed=total if found.drawn else ledger.allowed,
        long=tuple(record.id for record in records if _is_long(record, config.max_words)),
        repeated=tuple(_repeated(records)),
        labels=Counter(label for record in records for label in _labels(record)),
        unlabelled=sum(_lacks_label(record, split) for record in records),
    )


def _is_long(record: AnyRecord, max_words: int) -> bool:
    if isinstance(record, PlainText):
        return False
    clean = clean_question if isinstance(record, Question) else clean_caption
    return any(clean(text, max_words) != clean(text, len(text) + 1) for text in record.texts)


def _repeated(records: Iterable[AnyRecord]) -> Iterator[str]:
    said: set[int] = set()  # of as many texts as there may be, no more than a number each
    for record in records:
        what = hash((record.image_ids, record.texts, getattr(record, "box", None)))
        if what in said:
            yield record.id
        said.add(what)


def _labels(record: AnyRecord) -> list[str]:
    if isinstance(record, Entailment):
        return [record.label]
    if isinstance(record, PairStatement):
        return [str(record.label).lower()]
    return [answer for answer, _ in record.targets[:1]] if isinstance(record, Question) else []


def _lacks_label(record: AnyRecord, split: Split) -> bool:
    if isinstance(record, Question):
        return split == "train" and not record.answers
    return isinstance(record, Referring) and split != "train" and record.box is None


def _of_texts(found: Found) -> bool:
    return bool(found.records) and isinstance(found.records[0], PlainText)


def _shared_texts(one: Found, other: Found) -> list[str]:
    """Names of texts of `other` that `one` has too; of `one`, which may be far larger, nothing is kept."""
    names = {draw_number(record.text): record.id for record in other.records}
    return sorted({names[number] for record in one.records if (number := draw_number(record.text)) in names})


def _ids(found: Found) -> set[str]:
    if _of_texts(found):  # their names are their places
        return set()
    return {record.id for record in found.records}


def _shared(one: Found, other: Found, seen: _Pictures | None) -> list[str]:
    """Names of the pictures that two splits share: by their identity, or by their content under another name."""
    names = _names(one, seen)
    shared: dict[str, str] = {}
    for key, name in _names(other, seen).items():
        if key in names and name not in shared:
            shared[name] = name if names[key] == name else f"{name} (the same as {names[key]})"
    return sorted(shared.values())


def _names(found: Found, seen: _Pictures | None) -> dict[Any, str]:
    """What tells the pictures of a split, each with the picture's name."""
    names: dict[Any, str] = {}
    for record in found.records:
        for image_id, path in zip(record.image_ids, record.images, strict=True):
            names[image_id] = image_id
            if seen is not None and path in seen.content:
                names[seen.content[path]] = image_id
    return names


# --------------------------------------------------------------------------- in words


def _counts(check: SplitCheck) -> Iterator[str]:
    if not check.records and not check.bad:
        yield f"{check.split}: empty"
        return
    what = TASK_NAMES.get(check.kind, "none")
    pictures = f"{check.pictures} pictures, " * (check.kind is not PlainText)
    yield f"{check.split}: {check.records} records ({what}), {pictures}{check.texts} texts"
    if check.bad:
        reasons = ", ".join(f"{n} × {why}" for why, n in Counter(error.reason for error in check.bad).most_common())
        yield f"  {len(check.bad)} cannot be used: {reasons}"
        yield "\n".join(f"  {line}" for line in listing(check.bad).splitlines())
    if check.labels:
        total = sum(check.labels.values())
        most = sorted(check.labels.items(), key=lambda pair: (-pair[1], pair[0]))[:LIKELIEST]
        rest = f", and {len(check.labels) - LIKELIEST} more" if len(check.labels) > LIKELIEST else ""
        yield "  " + ", ".join(f"{label} {count / total:.1%}" for label, count in most) + rest


def _errors(check: SplitCheck) -> Iterator[str]:
    split = check.split
    if not check.records and split != "test":
        yield f"the {split} split has no record that can be used"
    if len(check.bad) > check.allowed:
        kind = "data.bad_share allows" if split == "train" else "evaluation tolerates"
        yield f"{split}: {_many(check.bad, 'record')} cannot be used; {kind} {check.allowed}"
    if check.unlabelled:
        lack = "an answer to learn" if check.kind is Question else "a box to measure by"
        yield f"{split}: {_many(range(check.unlabelled), 'record')} without {lack}"
    if split == "train" and check.records:
        absent = [label for label in CLASSES.get(check.kind, ()) if not check.labels.get(label)]
        if absent:
            yield f"{split}: no record is labelled {' or '.join(absent)}"


def _notes(check: SplitCheck, config: DataConfig) -> Iterator[str]:
    split = check.split
    if not check.records and split == "test":
        yield "the test split is empty: the trained model cannot be measured on it"
    if check.long:
        cut = f"texts of more than {config.max_words} words, which are cut"
        yield f"{split}: {_many(check.long, 'record')} with {cut}: {_some(check.long)}"
    if check.repeated:
        yield f"{split}: {_many(check.repeated, 'record')} saying what another one says: {_some(check.repeated)}"
    shares = [check.labels.get(label, 0) for label in CLASSES.get(check.kind, ()) if split == "train"]
    if shares and max(shares) > LOPSIDED * min(shares):
        yield f"{split}: the labels are out of balance: {dict(check.labels)}"


def _many(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
