"""Audits the records of some data by a trained model, by their words and by their pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diptych.apps.audit.scores import ScoreName, score_pairs
from diptych.data.cleanup import clean_caption
from diptych.data.profile import unknown_words
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.predict.duplicates import nearly_equal, thumbnail
from diptych.predict.predictor import Predictor
from diptych.schema import SPLITS, Split

SHARED_BY = (5, 0.01)
"""A caption of at least this many images, and of at least this share of them, says nothing about one of them."""
UNREAD = 0.5
"""Share of unknown word pieces from which a caption says nothing to the model."""
NEIGHBOURS = 3
"""Most similar training images whose pixels are compared with those of an image of another split."""
_ADDRESS = re.compile(r"https?://\S+|www\.\S+")
_FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|webp|heic)\b|\b(?:IMG|DSC[FN]?|PXL|SAM)[_-]?\d{3,}\b", re.I)


@dataclass(frozen=True)
class Pair:
    """A caption with its image, and what was found about it."""

    split: Split
    record: Record
    caption: str
    similarity: float
    contrast: float
    match: float | None
    """ITM's log odds; None where the score does not need them."""
    score: float
    """The score that decides."""
    dropped: bool
    """Whether the pair is left out of the lists to train on."""
    empty: str = ""
    """Why the caption says nothing; empty if it does say something."""


@dataclass(frozen=True)
class Copy:
    """An image of an evaluation split that nearly equals a training image."""

    split: Split
    record: Record
    training: Record


@dataclass(frozen=True)
class Audit:
    """What was found."""

    pairs: tuple[Pair, ...]
    """All pairs, the worst first."""
    copies: tuple[Copy, ...]
    score: ScoreName
    listings: Mapping[Split, SourceListing]
    unread: tuple[BadRecord, ...]
    """Why images of records could not be opened."""
    lost: Mapping[Split, frozenset[str]]
    """The ids of these records, which no list to train on has."""
    asked_share: float | None
    """The share of pairs that the caller wanted to drop; None drops those that score below 0."""

    @property
    def dropped(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.dropped)

    @property
    def empty(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.empty)

    def summary(self) -> str:
        """Says in a few lines what was found."""
        total, dropped = len(self.pairs), len(self.dropped)
        if self.asked_share is None:
            lines = [f"{dropped:,} of {total:,} captions ({dropped / total:.1%}) do not fit their images"]
        else:
            share = f"{self.asked_share:.0%} of each split"
            lines = [f"the {dropped:,} of {total:,} pairs that fit worst are left out ({share})"]
        reasons = Counter(pair.empty for pair in self.empty)
        lines += [f"{count:,} captions say nothing: {reason}" for reason, count in reasons.most_common()]
        if self.copies:
            lines.append(
                f"{len(self.copies):,} images of evaluation splits nearly equal a training image, so measures on them "
                "are too good"
            )
        if self.unread:
            lines.append(f"{len(self.unread):,} records were passed over, the first: {self.unread[0]}")
        return "\n".join(lines)

    def kept(self) -> dict[Split, SourceListing]:
        """Returns the listings without the captions that were dropped, without records that had no other, and without
        those whose images could not be opened."""
        gone = {(pair.record.id, pair.caption) for pair in self.dropped}
        return {split: _without(listing, gone, self.lost[split]) for split, listing in self.listings.items()}


def audit(
    predictor: Predictor,
    listings: Mapping[Split, SourceListing],
    score: ScoreName = "contrast",
    drop: float | None = None,
    seed: int = 0,
) -> Audit:
    """Scores every pair of the listings, which hold images with captions.

    The pairs of each split are compared with each other. Dropped are those that score below 0 nats, which fit worse
    than other captions and images do on average, or, with `drop`, that share of each split. Raises ValueError for a
    share outside 0..1, for records without captions, for data without a readable pair, and for a score that the model
    cannot give.
    """
    if drop is not None and not 0 <= drop < 1:
        raise ValueError(f"the share to drop is {drop:g}: it lies between 0 and 1")
    pairs: list[Pair] = []
    unread: list[BadRecord] = []
    lost: dict[Split, frozenset[str]] = {}
    seen: dict[Split, tuple[list[Record], Tensor]] = {}
    for split in SPLITS:
        records: Sequence[Any] = listings[split].records
        if other := next((record for record in records if not isinstance(record, Record)), None):
            raise ValueError(f"{other.id} is no image with captions, which an audit needs")
        places, vectors, skipped = predictor.embed_readable([record.image for record in records])
        unread += skipped
        read = set(places)
        lost[split] = frozenset(record.id for place, record in enumerate(records) if place not in read)
        if readable := [records[place] for place in places]:
            seen[split] = readable, vectors
            pairs += _scored(predictor, split, readable, vectors, score, drop, seed)
    if not pairs:
        raise ValueError(f"there is no pair to score{f': {unread[0]}' if unread else ''}")
    pairs.sort(key=lambda pair: pair.score)
    return Audit(tuple(pairs), tuple(_copies(seen)), score, listings, tuple(unread), lost, drop)


def _scored(
    predictor: Predictor,
    split: Split,
    records: Sequence[Record],
    vectors: Tensor,
    name: ScoreName,
    drop: float | None,
    seed: int,
) -> Iterator[Pair]:
    limit = predictor.recipe.data.max_words
    owners = [place for place, record in enumerate(records) for _ in record.captions]
    given = [caption for record in records for caption in record.captions]
    captions = [clean_caption(caption, limit) for caption in given]
    # Records of the same image are the same image for the contrast.
    first: dict[str, int] = {}
    images = [first.setdefault(record.image_id, place) for place, record in enumerate(records)]
    pictures = [record.image for record in records]
    scores = score_pairs(predictor, pictures, vectors, captions, [images[owner] for owner in owners], name, seed)
    decisive = scores.by(name)
    dropped = decisive < 0 if drop is None else _worst(decisive, drop)
    empty = _empty(predictor, given, captions, [records[owner].image_id for owner in owners])
    for number, (owner, caption) in enumerate(zip(owners, given, strict=True)):
        yield Pair(
            split, records[owner], caption,
            similarity=float(scores.similarity[number]),
            contrast=float(scores.contrast[number]),
            match=None if scores.match is None else float(scores.match[number]),
            score=float(decisive[number]),
            dropped=bool(dropped[number]),
            empty=empty[number],
        )  # fmt: skip


def _worst(scores: Tensor, share: float) -> Tensor:
    """Marks this share of the scores, the lowest."""
    marked = torch.zeros(len(scores), dtype=torch.bool)
    marked[scores.argsort()[: round(share * len(scores))]] = True
    return marked


def _empty(predictor: Predictor, given: Sequence[str], captions: Sequence[str], image_ids: Sequence[str]) -> list[str]:
    """Says for each caption, as it was given and as the model reads it, why it says nothing about its image."""
    images_of = Counter(caption for caption, _ in set(zip(captions, image_ids, strict=True)))
    least = max(SHARED_BY[0], SHARED_BY[1] * len(set(image_ids)))
    unread = {caption for caption in images_of if unknown_words([caption], predictor.tokenizer)[0] >= UNREAD}

    def reason(text: str, caption: str) -> str:
        if images_of[caption] >= least:
            return "many images share the caption"
        if _FILE_NAME.search(text) or _ADDRESS.search(text):
            return "it holds a file name or an address"
        return "the model's vocabulary does not know its words" if caption in unread else ""

    return [reason(text, caption) for text, caption in zip(given, captions, strict=True)]


def _copies(splits: Mapping[Split, tuple[list[Record], Tensor]]) -> Iterator[Copy]:
    """Finds images of the other splits among the training images: near in vectors, and nearly equal in pixels."""
    if "train" not in splits:
        return
    training, vectors = splits["train"]
    for split, (records, own) in splits.items():
        if split == "train":
            continue
        for record, vector in zip(records, own, strict=True):
            look = thumbnail(record.image)
            nearest = (vectors @ vector).topk(min(NEIGHBOURS, len(vectors))).indices.tolist()
            near = (training[place] for place in nearest)
            same = next((other for other in near if nearly_equal(look, thumbnail(other.image))), None)
            if same is not None:
                yield Copy(split, record, same)


def _without(listing: SourceListing, gone: set[tuple[str, str]], lost: frozenset[str]) -> SourceListing:
    records = []
    for record in listing.records:
        if record.id in lost:
            continue
        captions = tuple(caption for caption in record.captions if (record.id, caption) not in gone)
        if captions:
            records.append(record if captions == record.captions else replace(record, captions=captions, clean=()))
    return SourceListing(records, splits=listing.splits, drawn=listing.drawn, notes=listing.notes)
