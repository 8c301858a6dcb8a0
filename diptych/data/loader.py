"""Batches of pictures with their texts, for every task, from any step on, exactly.

What a sample and a batch hold follows from the kind of record that the source has (`KINDS`).
An item is a pure function of (seed, epoch, index): which caption, which crop, whether flipped. What a step shows is a
function of (seed, step), cut among the processes (`order.py`). So a resumed run needs no state of loader or workers: it
asks for the batches from its step on.
Records that cannot be read are left out of their batch, counted and named; nothing replaces them.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from multiprocessing.util import Finalize
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.data.answers import encode_answers, score_row, soft_scores
from diptych.data.cleanup import clean_caption, clean_question
from diptych.data.collate import (
    Sample,
    collate,
    collate_labelled,
    collate_picture_pairs,
    collate_pictures,
    collate_questions,
    collate_texts,
)
from diptych.data.order import Key, Order, Ordered, Shuffled, check_processes
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
)
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform, TrainTransform
from diptych.data.workers import START, begin_worker
from diptych.schema import DataConfig, Released
from diptych.types import AnyBatch, PicturePairs

NAMED = 10
"""Bad records that a message lists."""
SMALL_SOURCE_TOLERANCE = 10
"""Bad records that training always tolerates, up to a quarter of the source, where `bad_share` is above 0."""
LONGEST_QUESTION = 50
"""Words of a question that evaluation reads, as released; training reads `data.max_words`."""


@dataclass(frozen=True)
class Loaded:
    """A batch with the records it came from, in its order, and those that could not be read."""

    batch: Any
    """An AnyBatch, of the kind that such records make."""
    records: tuple[Any, ...]
    """Of whatever kind the source holds."""
    skipped: tuple[BadRecord, ...]
    epoch: int


class SkipLedger:
    """Which records could not be used, and whether there are too many.

    The share is judged against the whole source, each record counted once however often it is met. One per cent of a
    handful of pictures is less than one picture, so a source is always allowed some: up to a quarter, at most ten.
    """

    def __init__(self, limit_share: float, total: int, at_opening: Iterable[BadRecord] = ()) -> None:
        """`total` records were found, `at_opening` those among them that could not even be opened."""
        self.limit_share = limit_share
        self.total = total
        self.seen = 0
        self.bad: dict[str, BadRecord] = {}
        self.note(0, at_opening)

    @property
    def allowed(self) -> int:
        """The most bad records that training tolerates."""
        if self.limit_share <= 0:
            return 0
        return max(int(self.limit_share * self.total), min(SMALL_SOURCE_TOLERANCE, self.total // 4))

    @property
    def count(self) -> int:
        """How many records are bad."""
        return sum(error.count for error in self.bad.values())

    def note(self, seen: int, skipped: Iterable[BadRecord]) -> None:
        """Another `seen` records were asked for, of which these were `skipped`."""
        self.seen += seen
        for error in skipped:
            self.bad.setdefault(error.record, error)

    def check(self) -> None:
        """Raises ValueError, naming the first few, if more records are bad than the limit allows."""
        if self.count > self.allowed:
            raise ValueError(
                f"{self.count} of {self.total} records could not be used, more than the {self.allowed} that"
                f" data.bad_share={self.limit_share:g} allows:\n{_listing(list(self.bad.values()))}\n"
                "Repair or remove them, or raise data.bad_share."
            )

    def summary(self) -> str:
        """For people: how many were skipped and why, and the names of the first few."""
        if not self.bad:
            return "no record was skipped"
        reasons: Counter[str] = Counter()
        for error in self.bad.values():
            reasons[error.reason] += error.count
        counts = ", ".join(f"{n} × {why}" for why, n in reasons.most_common())
        return f"{self.count} of {self.total} records skipped: {counts}\n{_listing(list(self.bad.values()))}"


def _listing(errors: Sequence[BadRecord]) -> str:
    lines = [f"  {error}" for error in errors[:NAMED]]
    if len(errors) > NAMED:
        lines.append(f"  and {len(errors) - NAMED} more")
    return "\n".join(lines)


# --------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Fetched:
    """What a worker sends: `Loaded`, but for a batch of which nothing could be read."""

    batch: Any
    records: tuple[Any, ...]
    skipped: tuple[BadRecord, ...]
    epoch: int


class PairDataset(Dataset[Sample]):
    """Samples by (epoch, index). Without state: any process makes the same sample of the same key."""

    def __init__(
        self,
        source: Source | TaskSource[Any],
        transform: TrainTransform,
        tokenizer: Tokenizer,
        config: DataConfig,
        seed: int,
        answers: Sequence[str] = (),
    ) -> None:
        """With a closed set of `answers`, questions come with its scores instead of the answers that people wrote."""
        self.source = source
        self.transform = transform
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        self.answers = tuple(answers)

    def __getitem__(self, key: Key) -> Sample:
        """Raises BadRecord."""
        epoch, index = key
        return self._sample(self.source.record(index), epoch, index)

    def _sample(self, record: AnyRecord, epoch: int, index: int) -> Sample:
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        said = rng.choice(record.texts) if record.texts else ""
        text = cleaned(said, record, self.config.max_words)
        if record.texts and not text:
            raise BadRecord(record.id, f"{record.text_name} empty")
        views = [self.transform(picture, said, rng) for picture in pictures_of(self.source, record, self.config)]
        sample = Sample(
            pixels=views[0] if views else None,
            input_ids=self.tokenizer.encode([text], self.config.max_tokens)[0] if record.texts else [],
            image_id=record.image_ids[0] if views else "",
            record=record.id,
            second_pixels=views[1] if len(views) > 1 else None,
        )
        complete, _ = KINDS[type(record)]
        return complete(sample, record, self)

    def __getitems__(self, keys: Sequence[Key]) -> _Fetched:
        """A whole batch at once (torch's loader calls this where it exists), so that workers collate."""
        samples: list[Sample] = []
        records: list[AnyRecord] = []
        skipped: list[BadRecord] = []
        for epoch, index in keys:
            try:
                record = self.source.record(index)
                samples.append(self._sample(record, epoch, index))
                records.append(record)
            except BadRecord as error:
                skipped.append(error)
        if not samples:
            return _Fetched(None, (), tuple(skipped), keys[0][0])
        _, together = KINDS[type(records[0])]
        batch = together(samples, self.tokenizer.pad_id)
        return _Fetched(batch, tuple(records), tuple(skipped), keys[0][0])


BLANK = Image.new("RGB", (64, 64), (128, 128, 128))
"""What `data.blank_images` shows."""


def pictures_of(source: Source | TaskSource[Any], record: AnyRecord, config: DataConfig) -> tuple[Image.Image, ...]:
    """The pictures of any kind of record. Raises BadRecord."""
    if config.blank_images:
        return (BLANK,) * len(record.images)
    if isinstance(source, TaskSource):
        return source.pictures(record)
    assert isinstance(record, Record)
    return (source.picture(record),)


def _complete(sample: Sample, record: Picture | Record | Referring | PlainText, dataset: PairDataset) -> Sample:
    """Picture and text, or the one of them that there is, are all there is to learn from: no box is ever shown."""
    return sample


def _with_class(sample: Sample, record: Entailment, dataset: PairDataset) -> Sample:
    return replace(sample, label=ENTAILMENT_LABELS.index(record.label))


def _with_truth(sample: Sample, record: PairStatement, dataset: PairDataset) -> Sample:
    return replace(sample, label=int(record.label))


def _with_answers(sample: Sample, record: Question, dataset: PairDataset) -> Sample:
    """Answers to write, or the scores of a closed set: all 0 where it holds none of a question's answers.

    Raises BadRecord for a question without answers, and for an answer without words where it is to be written.
    """
    if not record.answers:
        raise BadRecord(record.id, "answer missing")
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
    Entailment: (_with_class, collate_labelled),
    PairStatement: (_with_truth, collate_picture_pairs),
    Question: (_with_answers, collate_questions),
    PlainText: (_complete, collate_texts),
}
"""By the kind of record: what completes a sample with what is to be learnt, and what makes a batch of samples."""


class PairLoader:
    """Training batches, epoch after epoch; what an epoch has beyond whole batches is left out of that epoch.

    `ledger` counts what was skipped, and iterating raises ValueError once it is more than `config.bad_share` allows.
    """

    def __init__(
        self,
        source: Source | TaskSource[Any],
        tokenizer: Tokenizer,
        config: DataConfig,
        image_size: int,
        batch_size: int,
        seed: int,
        answers: Sequence[str] = (),
        rank: int = 0,
        size: int = 1,
        released: Released = Released(),
    ) -> None:
        """`answers`: as for `PairDataset`. `batch_size` counts the pairs of all `size` processes together, of which
        process `rank` gets its equal part, in order.

        Raises ValueError where the source cannot fill a batch, or a batch cannot be shared out.
        """
        if batch_size < 1:
            raise ValueError(f"run.batch_size is {batch_size}: it must be at least 1")
        check_processes(batch_size, size)
        assert 0 <= rank < size
        if len(source) < batch_size:
            raise ValueError(
                f"the training split has {len(source)} records, fewer than one batch of {batch_size}:"
                f" lower run.batch_size (to {max(1, len(source) // 2)}, say) or give more data"
            )
        transform = TrainTransform(config, image_size, released)
        self.dataset = PairDataset(source, transform, tokenizer, config, seed, answers)
        self.rank = rank
        own = source.order if isinstance(source, Ordered) else partial(Shuffled, len(source))
        self.order: Order = own(batch_size, seed, size)
        self.seed = seed
        self.workers = config.workers
        lost = sum(error.count for error in source.skipped)
        self.ledger = SkipLedger(config.bad_share, len(source) + lost, source.skipped)

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def batches(self, start_step: int = 0) -> Iterator[Loaded]:
        """Batches `start_step`, `start_step` + 1, … without end. Close the iterator (or drop it) to end the workers."""
        self.ledger.check()
        for fetched in self._fetch(start_step):
            self.ledger.note(len(fetched.records) + len(fetched.skipped), fetched.skipped)
            self.ledger.check()
            if fetched.batch is None:
                raise ValueError(f"no record of a batch could be read:\n{_listing(fetched.skipped)}")
            yield Loaded(fetched.batch, fetched.records, fetched.skipped, fetched.epoch)

    def keys(self, start_step: int = 0) -> Iterator[list[Key]]:
        """(epoch, index) of each batch's items, from `start_step` on, without end."""
        return (self.order.keys(step, self.rank) for step in count(start_step))

    def _fetch(self, start_step: int) -> Iterator[_Fetched]:
        if self.workers == 0:
            yield from map(self.dataset.__getitems__, self.keys(start_step))
            return
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Keys(self, start_step),
            num_workers=self.workers,
            prefetch_factor=2,
            collate_fn=_as_is,
            worker_init_fn=partial(begin_worker, os.getpid()),
            multiprocessing_context=START,
            # Its own generator: a loader must not move the global one, on which dropout depends.
            generator=torch.Generator().manual_seed(self.seed),
        )
        # At exit Python ends what is left with one SIGTERM, which workers do not heed, and would wait for ever. This
        # comes before that, also in a process that multiprocessing has started, where atexit comes too late.
        held = [iter(loader)]
        dropped = Finalize(None, held.clear, exitpriority=0)
        try:
            while True:
                yield next(held[0])
        finally:
            dropped.cancel()


@dataclass(frozen=True)
class _Keys:
    """`PairLoader.keys` as something that can be iterated again."""

    loader: PairLoader
    start_step: int

    def __iter__(self) -> Iterator[list[Key]]:
        return self.loader.keys(self.start_step)


def _as_is(fetched: Any) -> Any:
    """The worker has collated already."""
    return fetched


# --------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Item:
    """A record of an evaluation split, and what a model sees of it."""

    record: Any
    views: tuple[Float[Tensor, "3 H W"], ...]
    """Pixels of each of its pictures."""
    size: tuple[int, int]
    """Width and height of its first picture; (0, 0) without one."""


@dataclass(frozen=True)
class EvaluationBatch:
    """Records of an evaluation split, and what a model sees of them: what is right stays with the records."""

    records: tuple[Any, ...]
    batch: Any
    """`PicturePairs` for records of two pictures, `TextBatch` for those of none."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each first picture, in pixels; (0, 0) without one."""


def evaluation_batches(
    source: Source | TaskSource[Any], tokenizer: Tokenizer, config: DataConfig, image_size: int, batch_size: int,
    limit: int | None = None,
) -> Iterator[EvaluationBatch]:  # fmt: skip
    """The records of an evaluation split in order, the first `limit` at most, each once, with what a model sees.

    Raises ValueError as `evaluation_items` does, and for a text without words.
    """
    items = evaluation_items(source, config, image_size, limit)
    while chunk := list(islice(items, batch_size)):
        records = tuple(item.record for item in chunk)
        batch = evaluation_batch(records, [item.views for item in chunk], tokenizer, config)
        yield EvaluationBatch(records, batch, tuple(item.size for item in chunk))


def evaluation_batch(
    records: Sequence[AnyRecord], views: Sequence[Sequence[Float[Tensor, "3 H W"]]], tokenizer: Tokenizer,
    config: DataConfig,
) -> Any:  # fmt: skip
    """The AnyBatch of records with the pixels of each of their pictures, as evaluation reads them."""
    samples = []
    for record, seen in zip(records, views, strict=True):
        samples.append(
            Sample(
                pixels=seen[0] if seen else None,
                input_ids=_evaluation_ids(record, tokenizer, config) if record.texts else [],
                image_id=record.image_ids[0] if seen else "",
                record=record.id,
                second_pixels=seen[1] if len(seen) > 1 else None,
            )
        )
    if samples[0].pixels is None:
        return collate_texts(samples, tokenizer.pad_id)
    if not records[0].texts:
        return collate_pictures(samples, tokenizer.pad_id)
    batch = collate(samples, tokenizer.pad_id)
    if samples[0].second_pixels is None:
        return batch
    second = [sample.second_pixels for sample in samples if sample.second_pixels is not None]
    return PicturePairs(**vars(batch), second_pixels=torch.stack(second))


def cleaned(said: str, record: AnyRecord, max_words: int) -> str:
    """A record's text as a tokenizer gets it. Texts without pictures keep their punctuation and all their words."""
    if isinstance(record, PlainText):
        return " ".join(said.split())
    return (clean_question if isinstance(record, Question) else clean_caption)(said, max_words)


def _evaluation_ids(record: AnyRecord, tokenizer: Tokenizer, config: DataConfig) -> list[int]:
    """Questions are never cut to a number of tokens, as released. Raises ValueError for a text without words."""
    of_question = isinstance(record, Question)
    text = cleaned(record.texts[0], record, LONGEST_QUESTION if of_question else config.max_words)
    if not text:
        raise ValueError(f"{record.id}: {record.text_name} empty")
    return tokenizer.encode([text], None if of_question else config.max_tokens_evaluation)[0]


def evaluation_items(
    source: Source | TaskSource[Any], config: DataConfig, image_size: int, limit: int | None = None
) -> Iterator[Item]:
    """The records of an evaluation split with the pixels of their pictures, in order, the first `limit` at most.

    Raises ValueError as `items_at` does.
    """
    return items_at(source, range(len(source))[:limit], config, image_size)


def items_at(
    source: Source | TaskSource[Any], indices: Sequence[int], config: DataConfig, image_size: int
) -> Iterator[Item]:
    """Records by their places in an evaluation split, with the pixels of their pictures, in the order of `indices`.

    A measure must not depend on which files happen to be readable: at the first bad record the rest is read through,
    and a ValueError names them all.
    """
    transform = EvaluationTransform(config, image_size)
    for number, index in enumerate(indices):
        record = source.record(index)
        try:
            images, size = _seen(source, record, config)
        except BadRecord as error:
            raise _intolerable([error, *unreadable(source, indices[number + 1 :], config)], len(indices)) from None
        yield Item(record, tuple(transform(image) for image in images), size)


def _seen(
    source: Source | TaskSource[Any], record: AnyRecord, config: DataConfig
) -> tuple[tuple[Image.Image, ...], tuple[int, int]]:
    """What is seen of a record, and the size of its first picture. Raises BadRecord.

    Boxes are in pixels of the picture itself: a phrase's is opened for its size also where a blank one is shown.
    """
    images = pictures_of(source, record, config)
    if config.blank_images and isinstance(record, Referring):
        return images, pictures_of(source, record, replace(config, blank_images=False))[0].size
    return images, images[0].size if images else (0, 0)


def check_readable(source: Source | TaskSource[Any], indices: Sequence[int], config: DataConfig) -> None:
    """Raises ValueError as `items_at` would, before anything is asked of a model."""
    if bad := list(unreadable(source, indices, config)):
        raise _intolerable(bad, len(indices))


def _intolerable(bad: Sequence[BadRecord], total: int) -> ValueError:
    names = "\n".join(f"  {error}" for error in bad)
    return ValueError(f"{len(bad)} of {total} evaluation records cannot be read; evaluation tolerates none:\n{names}")


def unreadable(source: Source | TaskSource[Any], indices: Iterable[int], config: DataConfig) -> Iterator[BadRecord]:
    """The records among `indices` whose pictures cannot be made."""
    for index in indices:
        try:
            _seen(source, source.record(index), config)
        except BadRecord as error:
            yield error
