"""The records of a recipe: an opened split, the answers of its training data, an evaluation split for retrieval.

I pictures, T captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from diptych import catalog
from diptych.console import say
from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.labels import warnings_of
from diptych.data.loader import EvaluationBatch, Item, check_readable, evaluation_batches, items_at
from diptych.data.phrases import check_shares
from diptych.data.record import TASK_NAMES, AnyRecord, BadRecord, Picture, Record, Source
from diptych.data.sources.files import FileSource
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import to_picture
from diptych.schema import Recipe, Split
from diptych.types import Texts

QUESTIONS_READ = 100_000
"""The most generated questions whose answers are counted; in files all are."""
AnySource = Any
"""A Source of captions, or a TaskSource."""


def open_split(recipe: Recipe, split: Split) -> AnySource:
    """Opens the records of the recipe's task. Prints the names of entries that could not become a record."""
    source: AnySource = catalog.open_source(recipe.data, split, catalog.record_kind(recipe.task))
    _print_skipped(split, source.skipped)
    if split == "train" and (seen := getattr(source, "passed_over", None)):  # sources of files only have it
        print(f"the {split} data: {seen}")
    return source


def warn_of_shared(training: AnySource, source: AnySource, split: str) -> None:
    """Prints how many images of an evaluation split are images of the training data, too, where both are lists."""
    if isinstance(training, FileSource) and isinstance(source, FileSource):
        images = {image_id for record in source.records for image_id in record.image_ids}
        trained = (image_id for record in training.records for image_id in record.image_ids)  # may be millions
        if shared := len(images.intersection(trained)):
            say(
                f"warning: {shared:,} of the {len(images):,} {split} images are training images, so that it measures "
                "memory, too"
            )


def warn_of_faults(recipe: Recipe, training: AnySource) -> None:
    """Prints what `diptych data validate` would refuse and training does not: labels that leave nothing to learn, and
    training images in a test split that the data or the recipe names."""
    if not isinstance(training, FileSource):
        return
    for fault in warnings_of(training.records):
        say(f"warning: the training data: {fault}")
    if training.has_test or recipe.data.test_path:
        with suppress(ValueError, OSError):  # a test split that cannot be read is the evaluation's matter
            test = catalog.open_source(recipe.data, "test", catalog.record_kind(recipe.task))
            warn_of_shared(training, test, "test")


def warn_of_training_data(recipe: Recipe, split: Split) -> None:
    """Prints that the place of an evaluation split is that of the training data, if it is."""
    place, training = getattr(recipe.data, f"{split}_path", None), recipe.data.path
    if place and training and Path(place).exists() and Path(training).exists() and Path(place).samefile(training):
        say(f"warning: data.{split}_path is the training data, which the model has seen")


def _print_skipped(split: str, skipped: Sequence[BadRecord], shown: int = 5) -> None:
    if not skipped:
        return
    say(f"left out of the {split} data, {len(skipped)} in all:")
    for error in skipped[:shown]:
        say(f"  {error}")
    if len(skipped) > shown:
        say(f"  and {len(skipped) - shown} more")


def accepted_records(source: AnySource, indices: Iterable[int]) -> Iterator[AnyRecord]:
    """Yields the records at `indices` that can be used. What is derived from data is derived from these alone."""
    for index in indices:
        try:
            yield source.record(index)
        except BadRecord:  # a streamed source finds it only now; training will count and name it
            continue


def with_answers(recipe: Recipe, source: AnySource) -> Recipe:
    """Adds the settings that follow from the training data, such as the most frequent answers to choose from."""
    stride = max(1, len(source) // QUESTIONS_READ) if recipe.data.source == "scenes" else 1
    task = catalog.task_class(recipe.task).with_data_settings(
        recipe.task, lambda: accepted_records(source, range(0, len(source), stride))
    )
    return recipe if task is recipe.task else replace(recipe, task=task)


def check_lengths(recipe: Recipe) -> None:
    """Raises ValueError if texts may exceed the model's positions: at once, not at the first such text."""
    longest = recipe.model.max_positions
    if longest is None or catalog.record_kind(recipe.task) is Picture:
        return
    for name in ("max_tokens", "max_tokens_evaluation"):
        length = getattr(recipe.data, name)
        if length > longest:
            raise ValueError(
                f"data.{name}={length}: the model has positions for texts of {longest} tokens. "
                f"Set data.{name}={longest} or less, so that longer ones are cut, or build it with more positions"
            )


def check_partial(recipe: Recipe) -> None:
    """Raises ValueError if parts of captions should be shown where texts are no captions, or in impossible shares."""
    check_shares(recipe.data)
    kind = catalog.record_kind(recipe.task)
    if kind is not Record and (recipe.data.partial_captions or recipe.data.single_phrases):
        raise ValueError(
            "data.partial_captions and data.single_phrases show parts of captions, but this task learns from "
            f"{TASK_NAMES[kind]}, which must stay whole: set both to 0"
        )


def batches_of(
    recipe: Recipe, source: AnySource, tokenizer: Tokenizer, limit: int | None = None
) -> Iterator[EvaluationBatch]:
    """Yields the records of an evaluation split in batches and in order, the first `limit` records at most."""
    size, batch = recipe.model.image_size, recipe.evaluation.batch_size
    return evaluation_batches(source, tokenizer, recipe.data, size, batch, limit)


# --------------------------------------------------------------------------- for retrieval


def measured_as_retrieval(recipe: Recipe) -> bool:
    """Tells whether the recipe is measured as retrieval: over all pictures and captions of a split at once."""
    return catalog.task_class(recipe.task).measured_as_retrieval


@dataclass(frozen=True)
class Pictures:
    """The I pictures of a split, decoded anew at each walk, so that memory holds one batch of them."""

    recipe: Recipe
    source: Source
    places: tuple[int, ...]
    """The place of one record for each picture."""

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields batches [b, 3, H, W] in order. Raises ValueError naming every bad picture."""
        items = self._items(self.places)
        while chunk := list(islice(items, self.recipe.evaluation.batch_size)):
            yield torch.stack([item.views[0] for item in chunk])

    def __getitem__(self, index: int) -> Image:
        """Returns one picture as the model sees it."""
        (item,) = self._items((self.places[index],))
        return to_picture(item.views[0], self.recipe.data.normalise)

    def check(self) -> None:
        """Raises ValueError naming every bad picture."""
        check_readable(self.source, self.places, self.recipe.data)

    def _items(self, places: Sequence[int]) -> Iterator[Item]:
        return items_at(self.source, places, self.recipe.data, self.recipe.model.image_size)


@dataclass(frozen=True)
class RetrievalSplit:
    """An evaluation split for retrieval. Records with the same picture identity share a picture."""

    pictures: Pictures
    captions: tuple[str, ...]
    texts: Texts
    image_of_text: Tensor
    """The picture [T] of each caption."""


def read_retrieval(recipe: Recipe, source: Source, tokenizer: Tokenizer, limit: int | None = None) -> RetrievalSplit:
    """Reads the captions of a split in order, of the first `limit` records at most."""
    records = [source.record(index) for index in range(len(source))[:limit]]
    places: dict[str, int] = {}
    for index, record in enumerate(records):
        places.setdefault(record.image_id, index)
    number = {identity: picture for picture, identity in enumerate(places)}
    captions = tuple(clean_caption(text, recipe.data.max_words) for record in records for text in record.captions)
    image_of_text = torch.tensor([number[record.image_id] for record in records for _ in record.captions])
    ids = tokenizer.encode(captions, recipe.data.max_tokens_evaluation)
    pictures = Pictures(recipe, source, tuple(places.values()))
    return RetrievalSplit(pictures, captions, pad_texts(ids, tokenizer.pad_id), image_of_text)
