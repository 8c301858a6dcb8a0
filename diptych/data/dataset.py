"""Turns records into training samples and batches of samples.

A sample is a pure function of (seed, epoch, index): its caption or a part of it, its crop, and whether it is flipped.
The class of the records decides what a sample holds and how samples become a batch (`KINDS`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from diptych.data.answers import encode_answers, score_row, soft_scores
from diptych.data.cleanup import clean_text
from diptych.data.collate import (
    Sample,
    collate,
    collate_labelled,
    collate_picture_pairs,
    collate_pictures,
    collate_questions,
    collate_texts,
)
from diptych.data.order import Key
from diptych.data.phrases import check_shares, claims_of, draw_part, draw_phrase
from diptych.data.record import (
    ENTAILMENT_LABELS,
    AnyRecord,
    BadRecord,
    Entailment,
    PairStatement,
    Picture,
    PlainText,
    Question,
    Record,
    Referring,
    Source,
    TaskSource,
    has_word,
)
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import TrainTransform, says_left_or_right
from diptych.schema import DataConfig
from diptych.seeds import seed_of
from diptych.types import AnyBatch

BLANK = Image.new("RGB", (64, 64), (128, 128, 128))
"""The picture that replaces all others if `data.blank_images` is set."""


@dataclass(frozen=True)
class Loaded:
    """Holds a batch with the records of its rows, in order, and the records that could not be read."""

    batch: Any
    """An AnyBatch, of the class that belongs to the records. None if no record could be read."""
    records: tuple[Any, ...]
    """Records of the class that the source holds."""
    skipped: tuple[BadRecord, ...]
    epoch: int


Views = dict[Any, tuple[Float[Tensor, "3 H W"], ...]]
"""Transformed images of a batch, by the identity of their image and by whether a text tells of sides."""


class PairDataset(Dataset[Sample]):
    """Makes the sample of each (epoch, index). It has no state, so every process makes the same sample for a key."""

    def __init__(
        self,
        source: Source | TaskSource[Any],
        transform: TrainTransform,
        tokenizer: Tokenizer,
        config: DataConfig,
        seed: int,
        answers: Sequence[str] = (),
        claims: bool = False,
        phrases: bool = False,
    ) -> None:
        """With a closed set of `answers`, questions get the scores of that set instead of the annotators' answers.
        With `claims`, batches of captions say what is known to be true of their pictures. With `phrases` they also hold
        one phrase of each caption.

        Raises ValueError for shares of captions that are not shares of one whole.
        """
        check_shares(config)
        self.source = source
        self.transform = transform
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        self.answers = tuple(answers)
        self.claims = claims
        self.phrases = phrases

    def __getitem__(self, key: Key) -> Sample:
        """Makes one sample. Raises BadRecord."""
        epoch, index = key
        return self._sample(self.source.record(index), epoch, index, {})

    def _sample(self, record: AnyRecord, epoch: int, index: int, seen: Views) -> Sample:
        """Makes a sample. `seen` are the views of images so far, which texts about one image share."""
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        text = rng.choice(record.texts) if record.texts else ""
        claims = phrase = None
        if self.phrases and isinstance(record, Record):
            said = draw_phrase(record, text, self.config, random.Random(seed_of(self.seed, "phrase", epoch, index)))
            phrase = said, self.tokenizer.encode([said], self.config.max_tokens)[0]
        if isinstance(record, Record) and (self.claims or self.config.partial_captions or self.config.single_phrases):
            part = draw_part(record, text, self.config, random.Random(seed_of(self.seed, "part", epoch, index)))
            text = part.text
            claims = claims_of(record, part, self.config.max_words) if self.claims else None
        cleaned = clean_text(text, record, self.config.max_words)
        if record.texts and not has_word(cleaned):
            raise BadRecord(record.id, f"{record.text_name} empty")
        shown = text if phrase is None else f"{text} {phrase[0]}"  # an image is flipped where neither tells of sides
        shared = self.config.texts_per_image > 1
        views = self._shared_views(record, shown, epoch, seen) if shared else self._views(record, shown, rng)
        sample = Sample(
            pixels=views[0] if views else None,
            input_ids=self.tokenizer.encode([cleaned], self.config.max_tokens)[0] if record.texts else [],
            image_id=record.image_ids[0] if views else "",
            record=record.id,
            second_pixels=views[1] if len(views) > 1 else None,
            claims=claims,
            phrase=phrase,
        )
        complete, _ = KINDS[type(record)]
        return complete(sample, record, self)

    def _views(self, record: AnyRecord, text: str, rng: random.Random) -> tuple[Float[Tensor, "3 H W"], ...]:
        """Transforms the images of a record. Raises BadRecord."""
        return tuple(self.transform(image, text, rng) for image in pictures_of(self.source, record, self.config))

    def _shared_views(
        self, record: AnyRecord, text: str, epoch: int, seen: Views
    ) -> tuple[Float[Tensor, "3 H W"], ...]:
        """Transforms the images of a record as they are for all texts about them in this epoch. Raises BadRecord.

        Texts that tell of sides see an image unflipped, and the others may see it flipped.
        """
        key = record.image_ids, self.config.flip > 0 and says_left_or_right(text)
        if key not in seen:
            seen[key] = self._views(record, text, random.Random(f"{self.seed}/{epoch}/{record.image_ids}"))
        return seen[key]

    def __getitems__(self, keys: Sequence[Key]) -> Loaded:
        """Makes a whole batch at once, so that the workers collate."""
        samples: list[Sample] = []
        records: list[AnyRecord] = []
        skipped: list[BadRecord] = []
        seen: Views = {}
        for epoch, index in keys:
            try:
                record = self.source.record(index)
                samples.append(self._sample(record, epoch, index, seen))
                records.append(record)
            except BadRecord as error:
                skipped.append(error)
        if not samples:
            return Loaded(None, (), tuple(skipped), keys[0][0])
        _, collate_samples = KINDS[type(records[0])]
        batch = collate_samples(samples, self.tokenizer.pad_id)
        return Loaded(batch, tuple(records), tuple(skipped), keys[0][0])


def pictures_of(source: Source | TaskSource[Any], record: AnyRecord, config: DataConfig) -> tuple[Image.Image, ...]:
    """Returns the pictures of a record of any kind. Raises BadRecord."""
    if config.blank_images:
        return (BLANK,) * len(record.images)
    if isinstance(source, TaskSource):
        return source.pictures(record)
    assert isinstance(record, Record)
    return (source.picture(record),)


# --------------------------------------------------------------------------- what each kind of record adds


def _complete(sample: Sample, record: Picture | Record | Referring | PlainText, dataset: PairDataset) -> Sample:
    """Returns the sample as it is: these tasks learn from picture and text alone, and the model never sees a box."""
    return sample


def _with_label(sample: Sample, record: Entailment, dataset: PairDataset) -> Sample:
    return replace(sample, label=ENTAILMENT_LABELS.index(record.label))


def _with_truth(sample: Sample, record: PairStatement, dataset: PairDataset) -> Sample:
    return replace(sample, label=int(record.label))


def _with_answers(sample: Sample, record: Question, dataset: PairDataset) -> Sample:
    """Adds the answers to generate, or the scores of a closed set, which are all 0 if it has none of the answers.

    Raises BadRecord for a question without an answer that holds a word.
    """
    if not record.targets:
        raise BadRecord(record.id, "answer empty" if record.answers else "answer missing")
    if dataset.answers:
        return replace(sample, scores=tuple(score_row(soft_scores(record), dataset.answers)))
    answers, weights = zip(*record.targets, strict=True)
    try:
        ids = encode_answers(answers, dataset.tokenizer, dataset.config.max_tokens)
    except ValueError as error:
        raise BadRecord(record.id, "answer unusable", str(error)) from None
    return replace(sample, answers=tuple(ids), weights=weights)


KINDS: dict[type, tuple[Callable[[Sample, Any, PairDataset], Sample], Callable[[Sequence[Sample], int], AnyBatch]]] = {
    Picture: (_complete, collate_pictures),
    Record: (_complete, collate),
    Referring: (_complete, collate),
    Entailment: (_with_label, collate_labelled),
    PairStatement: (_with_truth, collate_picture_pairs),
    Question: (_with_answers, collate_questions),
    PlainText: (_complete, collate_texts),
}
"""For each class of records, the function that adds a task's targets to a sample, and the one that collates samples."""
