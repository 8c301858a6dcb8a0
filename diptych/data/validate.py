"""Checks data before training: missing pictures, texts, ids, leaks between splits, boxes and the balance of labels.

Whatever is counted or derived, is so from the records that can be used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from diptych.data.boxes import BoxCheck, boxes_of
from diptych.data.cleanup import clean_text
from diptych.data.doubts import Doubts
from diptych.data.labels import CLASSES, labels_of, notes_on_labels, only_label
from diptych.data.pictures import file_of, open_picture, picture_digest, picture_size
from diptych.data.profile import TextProfile, is_other_script, profile_texts
from diptych.data.record import (
    TASK_NAMES,
    AnyRecord,
    BadRecord,
    PlainText,
    Question,
    Record,
    Referring,
    has_word,
)
from diptych.data.skips import SkipLedger, list_errors
from diptych.data.sources.listing import SourceListing
from diptych.data.splits import draw_number
from diptych.data.tokenizer import Tokenizer
from diptych.printable import printable
from diptych.schema import SPLITS, DataConfig, Split

LIKELIEST = 5
"""The balance of labels shows this many of the most frequent ones."""
NAMED = 5
"""A line names this many examples."""
OTHER_SCRIPTS = 0.01
"""A note is given if more than this share of the records has texts in another script than Latin."""
LOPSIDED = 2.0
"""A note is given if the most frequent class is more than this many times as frequent as the rarest."""


@dataclass(frozen=True)
class SplitCheck:
    """Holds the counts and faults of one split."""

    split: Split
    kind: type
    """The class of its records."""
    records: int
    pictures: int
    texts: int
    bad: tuple[BadRecord, ...]
    """The records that cannot be used, each once."""
    allowed: int
    """The number of bad records that is tolerated."""
    long: tuple[str, ...]
    """The ids of records with a text that is cut to data.max_words."""
    repeated: tuple[str, ...]
    """The ids of records that repeat an earlier record's text of the same pictures."""
    labels: Mapping[str, int]
    """The number of records with each label, or with each answer for questions."""
    unlabelled: int
    """The number of training questions without an answer, or of evaluation phrases without a box."""
    profile: TextProfile
    """How many pictures share how few texts, and how much of the texts the vocabulary does not know."""
    other_scripts: int
    """The number of records with texts that are mostly not in Latin script."""
    blank_answers: tuple[str, ...]
    """The ids of questions with answers that hold no word, which are left out, beside others."""
    boxes: BoxCheck
    doubts: Doubts
    """What looks wrong in questions and pairs."""


@dataclass(frozen=True)
class Check:
    """Holds the checks of all splits and of what they share. `errors` prevent training, `notes` do not."""

    splits: tuple[SplitCheck, ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether training can start."""
        return not self.errors

    def text(self) -> str:
        """Returns the counts, notes and errors as text for people."""
        lines = [line for split in self.splits for line in _counts(split)]
        lines += [f"note: {note}" for note in self.notes] + [f"error: {error}" for error in self.errors]
        count = len(self.errors)
        verdict = "training can start" if self.ready else f"training cannot start: {count} error{'s'[: count > 1]}"
        return printable("\n".join([*lines, verdict]), lines=True)


def validate(
    listings: Mapping[Split, SourceListing],
    config: DataConfig,
    open_pictures: bool = True,
    tokenizer: Tokenizer | None = None,
    normalise: Callable[[str], str] | None = None,
) -> Check:
    """Checks the splits that `read_splits` read.

    With `open_pictures`, every picture is decoded, and copies of a picture under other names are found as well.
    Otherwise only missing files are. With a `tokenizer`, the words that its vocabulary does not know are counted.
    `normalise` brings an answer into the form in which it is compared, to find those that are written in several ways.
    """
    opened = _OpenedPictures({}, {}, {}, config.largest_pixels) if open_pictures else None
    checks = tuple(_check(split, listing, config, opened, tokenizer, normalise) for split, listing in listings.items())
    errors = [error for check in checks for error in _errors(check)]
    notes = [note for listing in listings.values() for note in listing.notes]
    notes += [f"{split}: {listing.passed_over}" for split, listing in listings.items() if listing.passed_over]
    notes += [f"{split}: {note}" for split, listing in listings.items() for note in _joined_files(listing, opened)]
    notes += [note for check in checks for note in _notes(check, config)]
    for first, second in combinations(SPLITS, 2):
        texts_alone = _has_texts_alone(listings[first]) and _has_texts_alone(listings[second])
        if texts_alone:
            shared = _shared_texts(listings[first], listings[second])
        else:
            shared = _shared_pictures(listings[first], listings[second], opened)
        if shared:
            # A drawn split cannot be chosen better by hand, so its copies are only noted.
            messages = errors if first == "train" and not listings[second].drawn else notes
            things = _counted(len(shared), "text" if texts_alone else "picture")
            messages.append(f"{first} and {second} share {things}: {_some(shared)}")
        if ids := sorted(_ids(listings[first]) & _ids(listings[second])):
            notes.append(f"{first} and {second} share {_counted(len(ids), 'id')}: {_some(ids)}")
    return Check(checks, tuple(errors), tuple(notes))


@dataclass(frozen=True)
class _OpenedPictures:
    """Remembers the outcome of opening each picture, by path: its error, or a hash of its content.

    Of pictures with boxes it also remembers width and height.
    """

    broken: dict[str, BadRecord]
    hashes: dict[str, bytes]
    sizes: dict[str, tuple[int, int]]
    largest_pixels: int

    def error_of(self, record: AnyRecord) -> BadRecord | None:
        """Opens a record's pictures and returns the first error, under the record's name."""
        for path in record.images:
            if path not in self.broken and path not in self.hashes:
                self._open(path, record.id)
            if path in self.broken:
                error = self.broken[path]
                return BadRecord(record.id, error.reason, error.detail)
        if boxes_of(record) and record.images[0] not in self.sizes:
            self.sizes[record.images[0]] = picture_size(record.images[0])
        return None

    def _open(self, path: str, name: str) -> None:
        try:
            # A scaled JPEG is still read to its end, several times faster.
            open_picture(path, name, 64, self.largest_pixels)
        except BadRecord as error:
            self.broken[path] = error
            return
        self.hashes[path] = picture_digest(path)


def _check(
    split: Split,
    listing: SourceListing,
    config: DataConfig,
    opened: _OpenedPictures | None,
    tokenizer: Tokenizer | None,
    normalise: Callable[[str], str] | None,
) -> SplitCheck:
    records: Sequence[AnyRecord] = listing.records
    errors = enumerate(map(opened.error_of, records) if opened else ())
    broken = {number: error for number, error in errors if error}

    def usable() -> Iterator[AnyRecord]:
        """Yields the records again and again, since streamed ones are not held in memory."""
        return (record for number, record in enumerate(records) if number not in broken)

    total = len(records) + sum(error.count for error in listing.skipped)
    ledger = SkipLedger(config.bad_share if split == "train" else 0.0, total, [*listing.skipped, *broken.values()])
    return SplitCheck(
        split=split,
        kind=type(records[0]) if records else object,
        records=len(records) - len(broken),
        pictures=len({image_id for record in usable() for image_id in record.image_ids}),
        texts=sum(len(record.texts) for record in usable()),
        bad=tuple(ledger.bad.values()),
        # A drawn split leaves out pictures that cannot be read, so any number of them is tolerated.
        allowed=total if listing.drawn else ledger.allowed,
        long=tuple(record.id for record in usable() if _is_long(record, config.max_words)),
        repeated=tuple(_repeated(usable())),
        labels=Counter(label for record in usable() for label in labels_of(record)),
        unlabelled=sum(_lacks_label(record, split) for record in usable()),
        profile=profile_texts(usable(), config.max_words, tokenizer),
        other_scripts=0 if tokenizer else sum(any(map(is_other_script, record.texts)) for record in usable()),
        blank_answers=tuple(record.id for record in usable() if _has_blank_answer(record)),
        boxes=_boxes(usable, opened),
        doubts=_doubts(usable(), normalise),
    )


def _doubts(records: Iterable[AnyRecord], normalise: Callable[[str], str] | None) -> Doubts:
    doubts = Doubts(normalise)
    for record in records:
        doubts.add(record)
    return doubts


def _boxes(usable: Callable[[], Iterator[AnyRecord]], opened: _OpenedPictures | None) -> BoxCheck:
    check = BoxCheck()
    for record in usable():
        if isinstance(record, Referring):
            check.add(record, opened.sizes.get(record.image) if opened else None)
    return check


def _has_blank_answer(record: AnyRecord) -> bool:
    return isinstance(record, Question) and not all(map(has_word, record.answers))


def _is_long(record: AnyRecord, max_words: int) -> bool:
    """Returns whether a text of the record is cut to `max_words`."""
    return any(clean_text(text, record, max_words) != clean_text(text, record, len(text) + 1) for text in record.texts)


def _repeated(records: Iterable[AnyRecord]) -> Iterator[str]:
    """Yields the ids of records with the pictures, texts and box of an earlier one. Memory holds only their hashes."""
    earlier: set[int] = set()
    for record in records:
        content = hash((record.image_ids, record.texts, getattr(record, "box", None)))
        if content in earlier:
            yield record.id
        earlier.add(content)


def _lacks_label(record: AnyRecord, split: Split) -> bool:
    if isinstance(record, Question):
        return split == "train" and not record.answers
    return isinstance(record, Referring) and split != "train" and record.box is None


# --------------------------------------------------------------------------- what splits share


def _has_texts_alone(listing: SourceListing) -> bool:
    return bool(listing.records) and isinstance(listing.records[0], PlainText)


def _shared_texts(first: SourceListing, second: SourceListing) -> list[str]:
    """Returns the ids of texts of `second` that are in `first` too. Memory holds nothing of `first`, which may be far
    larger."""
    names = {draw_number(record.text): record.id for record in second.records}
    return sorted({names[number] for record in first.records if (number := draw_number(record.text)) in names})


def _ids(listing: SourceListing) -> set[str]:
    """Returns the ids of records. Those of plain texts are their positions, which two splits may share."""
    return set() if _has_texts_alone(listing) else {record.id for record in listing.records}


def _shared_pictures(first: SourceListing, second: SourceListing, opened: _OpenedPictures | None) -> list[str]:
    """Returns the pictures that two splits share, by identity or by equal content under another name."""
    names = _names(first, opened)
    shared: dict[str, str] = {}
    for key, name in _names(second, opened).items():
        if key in names and name not in shared:
            shared[name] = name if names[key] == name else f"{name} (the same as {names[key]})"
    return sorted(shared.values())


def _joined_files(listing: SourceListing, opened: _OpenedPictures | None) -> Iterator[str]:
    """Notes that files which differ have one `image_id`, and so are one picture.

    Files that were opened differ by their content, others by their paths. Each sample of a shard has a copy of its own.
    """
    first: dict[str, tuple[str | bytes, str]] = {}
    others: defaultdict[str, set[str]] = defaultdict(set)
    for record in listing.records if not _has_texts_alone(listing) else ():
        for image_id, path in zip(record.image_ids, record.images, strict=True):
            content = opened.hashes.get(path) if opened else path
            if content is None or (opened is None and file_of(path) != path):
                continue
            if first.setdefault(image_id, (content, path))[0] != content:
                others[image_id].add(path)
    if others:
        image_id, paths = next(iter(others.items()))
        files = [first[image_id][1], *sorted(paths)]
        yield (
            f"{_counted(len(others), '`image_id`')} of several files that differ, such as {image_id} of {_some(files)}:"
            " files with one `image_id` count as one picture, which is never a negative of itself. Leave it out, or"
            " give each picture its own, if they show different things"
        )


def _names(listing: SourceListing, opened: _OpenedPictures | None) -> dict[Any, str]:
    """Returns the name of each picture, by its identity and by the hash of its content."""
    names: dict[Any, str] = {}
    for record in listing.records:
        for image_id, path in zip(record.image_ids, record.images, strict=True):
            names[image_id] = image_id
            if opened is not None and path in opened.hashes:
                names[opened.hashes[path]] = image_id
    return names


# --------------------------------------------------------------------------- messages


def _counts(check: SplitCheck) -> Iterator[str]:
    if not check.records and not check.bad:
        yield f"{check.split}: empty"
        return
    task = TASK_NAMES.get(check.kind, "none")
    pictures = f"{check.pictures} pictures, " * (check.kind is not PlainText)
    yield f"{check.split}: {check.records} records ({task}), {pictures}{check.texts} texts"
    if check.bad:
        reasons: Counter[str] = Counter()
        for error in check.bad:
            reasons[error.reason] += error.count
        counts = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        yield f"  {_lost(check)} cannot be used: {counts}"
        yield "\n".join(f"  {line}" for line in list_errors(check.bad).splitlines())
    if check.labels:
        total = sum(check.labels.values())
        most = sorted(check.labels.items(), key=lambda pair: (-pair[1], pair[0]))[:LIKELIEST]
        rest = f", and {len(check.labels) - LIKELIEST} more" if len(check.labels) > LIKELIEST else ""
        yield "  " + ", ".join(f"{label} {count / total:.1%}" for label, count in most) + rest


def _lost(check: SplitCheck) -> int:
    """Counts the records that cannot be used. An error may stand for many."""
    return sum(error.count for error in check.bad)


def _errors(check: SplitCheck) -> Iterator[str]:
    split = check.split
    if not check.records and split != "test":
        yield f"the {split} split has no record that can be used"
    if _lost(check) > check.allowed:
        rule = "data.bad_share allows" if split == "train" else "evaluation tolerates"
        yield f"{split}: {_counted(_lost(check), 'record')} cannot be used; {rule} {check.allowed}"
    if check.unlabelled:
        lack = "an answer to learn" if check.kind is Question else "a box to measure by"
        yield f"{split}: {_counted(check.unlabelled, 'record')} without {lack}"
    if split == "train" and (only := only_label(check.kind, check.labels)):
        yield f"{split}: {only}"


def _notes(check: SplitCheck, config: DataConfig) -> Iterator[str]:
    split = check.split
    if not check.records and split == "test":
        yield "the test split is empty: the trained model cannot be measured on it"
    if check.long:
        cut = f"texts of more than {config.max_words} words, which are cut"
        yield f"{split}: {_counted(len(check.long), 'record')} with {cut}: {_some(check.long)}"
    if check.repeated:
        records = _counted(len(check.repeated), "record")
        yield f"{split}: {records} saying what another one says: {_some(check.repeated)}"
    if check.blank_answers:
        records = _counted(len(check.blank_answers), "question")
        yield f"{split}: {records} with an answer without a word, which is left out: {_some(check.blank_answers)}"
    if unknown := check.profile.unknown_words():
        yield f"{split}: {unknown}"
    if check.other_scripts > OTHER_SCRIPTS * check.records:
        yield (
            f"{split}: {_counted(check.other_scripts, 'record')} with texts in another script than Latin, of which "
            "English vocabularies know little: learn one from the texts, or name the vocabulary of the training with "
            "--vocabulary, to have the words counted that it does not know"
        )
    if split == "train" and check.kind in (Record, Referring) and (repeated := check.profile.repetition()):
        way_out = "" if check.profile.same_for_all else "; task.ignore_true_texts=true takes these from the negatives"
        yield f"{split}: {repeated}{way_out}"
    for note in (*check.boxes.notes(), *(check.doubts.notes() if split == "train" else ())):
        yield f"{split}: {note}"
    for note in notes_on_labels(check.kind, check.labels) if split == "train" else ():
        yield f"{split}: {note}"
    shares = [check.labels.get(label, 0) for label in CLASSES.get(check.kind, ()) if split == "train"]
    if len(check.labels) > 1 and shares and max(shares) > LOPSIDED * min(shares):
        yield f"{split}: the labels are out of balance: {dict(check.labels)}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
