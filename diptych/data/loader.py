"""Loads batches of pictures and texts for every task: for training, from any step on, and for evaluation.

The indices that a training step reads are a function of (seed, step), divided among the processes (`order.py`), and
each sample is a function of (seed, epoch, index) (`dataset.py`). A resumed run therefore needs no state of loader or
workers: it asks for the batches from its step on. Records that cannot be read are left out of their batch, counted and
named; nothing replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diptych.data.cleanup import clean_text
from diptych.data.collate import Sample, collate, collate_pictures, collate_texts
from diptych.data.dataset import Loaded, PairDataset, pictures_of
from diptych.data.order import ByImage, Key, Order, Ordered, Shuffled, check_processes
from diptych.data.pool import OrderedPool
from diptych.data.record import (
    TASK_NAMES,
    AnyRecord,
    BadRecord,
    Entailment,
    Numbered,
    Question,
    Referring,
    Source,
    TaskSource,
    first_kind,
    has_word,
)
from diptych.data.skips import SkipLedger, list_errors
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform, TrainTransform
from diptych.schema import DataConfig, Released, RunConfig
from diptych.types import PicturePairs

LONGEST_QUESTION = 50
"""Evaluation cuts questions to this many words, as in the released code. Training uses `data.max_words`."""


class PairLoader:
    """Loads training batches, epoch after epoch. The records that an epoch has beyond whole batches are left out of it.

    `ledger` counts the skipped records. Iteration raises ValueError once there are more than `config.bad_share` allows.
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
        claims: bool = False,
        phrases: bool = False,
        timeout: float = RunConfig.timeout,
    ) -> None:
        """`batch_size` counts the pairs of all `size` processes together. Process `rank` gets an equal part, in order.
        `answers`, `claims` and `phrases` are passed on to `PairDataset`. `timeout` is how many seconds to wait for a
        batch of the workers.

        Raises ValueError if the source cannot fill a batch, or if a batch cannot be divided among the processes.
        """
        if batch_size < 1:
            raise ValueError(f"run.batch_size is {batch_size}: it must be at least 1")
        check_processes(batch_size, size)
        assert 0 <= rank < size
        if len(source) < batch_size:
            lower = f"lower run.batch_size (to {max(2, len(source) // 2)}, say) or " * (len(source) > 1)
            count = "1 record" if len(source) == 1 else f"{len(source)} records"
            raise ValueError(
                f"the training split has {count}, fewer than one batch of {batch_size}: {lower}give more data"
            )
        transform = TrainTransform(config, image_size, released)
        self.dataset = PairDataset(source, transform, tokenizer, config, seed, answers, claims, phrases)
        self.rank = rank
        order = _order_of(source, config)
        self.order: Order = order(batch_size, seed, size)
        self.seed = seed
        self.workers = config.workers
        self.timeout = timeout
        lost = sum(error.count for error in source.skipped)
        self.ledger = SkipLedger(config.bad_share, len(source) + lost, source.skipped)

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def batches(self, start_step: int = 0) -> Iterator[Loaded]:
        """Yields the batches of steps `start_step`, `start_step` + 1 and so on, without end.

        Closing or dropping the iterator ends the workers. Raises PoolError if one of them has ended, or if a batch
        takes longer than `timeout`.
        """
        self.ledger.check()
        for loaded in self._fetch(start_step):
            self.ledger.note(len(loaded.records) + len(loaded.skipped), loaded.skipped)
            self.ledger.check()
            if loaded.batch is None:
                raise ValueError(f"no record of a batch could be read:\n{list_errors(loaded.skipped, most=10)}")
            yield loaded

    def keys(self, start_step: int = 0) -> Iterator[list[Key]]:
        """Yields the (epoch, index) of each batch's samples, from `start_step` on, without end."""
        return (self.order.keys(step, self.rank) for step in count(start_step))

    def _fetch(self, start_step: int) -> Iterator[Loaded]:
        if self.workers == 0:
            yield from map(self.dataset.__getitems__, self.keys(start_step))
            return
        pool = OrderedPool(self.dataset.__getitems__, self.keys(start_step), self.workers)
        # At exit Python sends one SIGTERM to the remaining workers, which ignore it, and would wait for ever. The
        # finalizer runs before that, also in a process that multiprocessing started, where atexit runs too late.
        finalizer = Finalize(None, pool.close, exitpriority=0)
        try:
            yield from pool.results(self.timeout)
        finally:
            finalizer()  # closes the pool once, also where the generator outlives the modules at exit


def _order_of(source: Source | TaskSource[Any], config: DataConfig) -> Callable[[int, int, int], Order]:
    """Chooses the order of training for a source. Raises ValueError if its texts cannot be grouped by image."""
    together = config.texts_per_image
    if together < 1:
        raise ValueError(f"data.texts_per_image is {together}: it must be at least 1")
    if isinstance(source, Ordered):  # texts about an image share it there only where they happen to meet
        return source.order
    if together == 1:
        return partial(Shuffled, len(source))
    kind = first_kind(source)
    if kind not in (Question, Entailment, None):
        raise ValueError(
            f"data.texts_per_image={together} groups questions or hypotheses, and these are {TASK_NAMES[kind]}:"
            " leave it at 1"
        )
    return partial(ByImage, _image_numbers(source), together)


def _image_numbers(source: Source | TaskSource[Any]) -> Int[np.ndarray, "n"]:
    """Numbers the images of all records: equal images have equal numbers. A record that cannot be read has its own."""
    numbers: dict[Any, int] = {}
    images = map(source.image_id, range(len(source))) if isinstance(source, Numbered) else _image_ids(source)
    return np.array([numbers.setdefault(image, len(numbers)) for image in images])


def _image_ids(source: Source | TaskSource[Any]) -> Iterator[Any]:
    """Yields the identities of each record's images, or its error."""
    for index in range(len(source)):
        try:
            yield source.record(index).image_ids
        except BadRecord as error:
            yield error


# --------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Item:
    """Holds a record of an evaluation split with the pixels of its pictures."""

    record: Any
    views: tuple[Float[Tensor, "3 H W"], ...]
    """The pixels of each picture."""
    size: tuple[int, int]
    """Width and height of the first picture; (0, 0) without one."""


@dataclass(frozen=True)
class EvaluationBatch:
    """Holds records of an evaluation split and the batch that a model sees of them. Labels are in the records only."""

    records: tuple[Any, ...]
    batch: Any
    """A `PicturePairs` for records of two pictures, a `TextBatch` for records without pictures."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each first picture in pixels; (0, 0) without one."""


def evaluation_batches(
    source: Source | TaskSource[Any], tokenizer: Tokenizer, config: DataConfig, image_size: int, batch_size: int,
    limit: int | None = None,
) -> Iterator[EvaluationBatch]:  # fmt: skip
    """Yields the first `limit` records of an evaluation split, by default all, in order and each once.

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
    """Makes an AnyBatch of records and the pixels of each of their pictures. Texts are cut as in evaluation."""
    samples = []
    for record, pixels in zip(records, views, strict=True):
        samples.append(
            Sample(
                pixels=pixels[0] if pixels else None,
                input_ids=_evaluation_ids(record, tokenizer, config) if record.texts else [],
                image_id=record.image_ids[0] if pixels else "",
                record=record.id,
                second_pixels=pixels[1] if len(pixels) > 1 else None,
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


def _evaluation_ids(record: AnyRecord, tokenizer: Tokenizer, config: DataConfig) -> list[int]:
    """Tokenizes the text of a record. Raises ValueError if it has no words.

    As in the released code, questions are cut to a number of words but never to a number of tokens.
    """
    is_question = isinstance(record, Question)
    text = clean_text(record.texts[0], record, LONGEST_QUESTION if is_question else config.max_words)
    if not has_word(text):
        raise ValueError(f"{record.id}: {record.text_name} empty")
    return tokenizer.encode([text], None if is_question else config.max_tokens_evaluation)[0]


def evaluation_items(
    source: Source | TaskSource[Any], config: DataConfig, image_size: int, limit: int | None = None
) -> Iterator[Item]:
    """Yields the first `limit` records of an evaluation split, by default all, with the pixels of their pictures.

    Raises ValueError as `items_at` does.
    """
    return items_at(source, range(len(source))[:limit], config, image_size)


def items_at(
    source: Source | TaskSource[Any], indices: Sequence[int], config: DataConfig, image_size: int
) -> Iterator[Item]:
    """Yields the records at some indices of an evaluation split with the pixels of their pictures, in that order.

    A measure must not depend on which files happen to be readable. At the first bad record the rest is read through,
    and a ValueError names all bad ones.
    """
    transform = EvaluationTransform(config, image_size)
    for number, index in enumerate(indices):
        record = source.record(index)
        try:
            images, size = _images_and_size(source, record, config)
        except BadRecord as error:
            raise _unreadable_error([error, *unreadable(source, indices[number + 1 :], config)], len(indices)) from None
        yield Item(record, tuple(transform(image) for image in images), size)


def _images_and_size(
    source: Source | TaskSource[Any], record: AnyRecord, config: DataConfig
) -> tuple[tuple[Image.Image, ...], tuple[int, int]]:
    """Returns the pictures of a record and the size of the first one. Raises BadRecord.

    Boxes are in pixels of the real picture, so the picture of a phrase is opened for its size even if a blank one is
    shown to the model.
    """
    images = pictures_of(source, record, config)
    if config.blank_images and isinstance(record, Referring):
        return images, pictures_of(source, record, replace(config, blank_images=False))[0].size
    return images, images[0].size if images else (0, 0)


def check_readable(source: Source | TaskSource[Any], indices: Sequence[int], config: DataConfig) -> None:
    """Raises the ValueError that `items_at` would raise, before a model does any work."""
    if bad := list(unreadable(source, indices, config)):
        raise _unreadable_error(bad, len(indices))


def _unreadable_error(bad: Sequence[BadRecord], total: int) -> ValueError:
    names = "\n".join(f"  {error}" for error in bad)
    return ValueError(f"{len(bad)} of {total} evaluation records cannot be read; evaluation tolerates none:\n{names}")


def unreadable(source: Source | TaskSource[Any], indices: Iterable[int], config: DataConfig) -> Iterator[BadRecord]:
    """Yields the errors of the records among `indices` whose pictures cannot be read."""
    for index in indices:
        try:
            _images_and_size(source, source.record(index), config)
        except BadRecord as error:
            yield error
