"""From a recipe to a trained, evaluated model: the pieces put together in the order of a batch's way.

recipe → source → tokenizer → task → training → evaluation. Used by the commands; whoever builds something else puts the
same pieces together otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.loader import PairLoader, evaluation_items
from diptych.data.record import Record, Source
from diptych.data.tokenizer import Tokenizer
from diptych.device import find_device
from diptych.evaluate import RetrievalResult, contrastive_recall, evaluate_retrieval
from diptych.models.albef import Albef, AlbefPretraining
from diptych.schema import Recipe, SpecialIds
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.train import loop
from diptych.types import Texts

CAPTIONS_READ = 20_000
"""Captions from which a vocabulary is learnt, at most."""
MAXIMISED = "mean_recall"


@dataclass(frozen=True)
class Retrieval:
    """An evaluation split, decoded and encoded: I pictures, T captions."""

    records: tuple[Record, ...]
    pixels: tuple[Tensor, ...]
    """The pictures in batches [b, 3, H, W]."""
    captions: tuple[str, ...]
    texts: Texts
    image_of_text: Tensor


def make_tokenizer(recipe: Recipe, source: Source) -> Tokenizer:
    """From the vocabulary that the recipe names, or learnt from the training captions."""
    config = recipe.tokenizer
    if config.vocabulary:
        return Tokenizer.from_vocabulary(config.vocabulary, config.separator, config.lowercase)
    stride = max(1, len(source) // CAPTIONS_READ)
    records = (source.record(index) for index in range(0, len(source), stride))
    captions = [clean_caption(text, recipe.data.max_words) for record in records for text in record.captions]
    return Tokenizer.train(captions, config.size, separator=config.separator, lowercase=config.lowercase)


def make_task(recipe: Recipe, tokenizer: Tokenizer) -> AlbefPretraining:
    """The recipe's task on its device, with as many words as the tokenizer has; weights drawn from the run's seed."""
    text = replace(recipe.model.text, vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id)
    torch.manual_seed(seed_of(recipe.run.seed, "weights"))
    model = Albef(replace(recipe.model, text=text))
    special = SpecialIds(tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    return AlbefPretraining(model, recipe.task, special).to(find_device(recipe.run.device))


def read_retrieval(recipe: Recipe, source: Source, tokenizer: Tokenizer, limit: int | None = None) -> Retrieval:
    """The split in order, the first `limit` records at most. Raises ValueError naming every record that is bad."""
    items = list(evaluation_items(source, recipe.model.vision.image_size, limit))
    records = tuple(record for record, _ in items)
    pixels = torch.stack([pixels for _, pixels in items]).split(recipe.evaluation.batch_size)
    captions = tuple(clean_caption(text, recipe.data.max_words) for record in records for text in record.captions)
    owner = torch.tensor([index for index, record in enumerate(records) for _ in record.captions])
    ids = tokenizer.encode(captions, recipe.data.max_tokens_evaluation)
    return Retrieval(records, pixels, captions, pad_texts(ids, tokenizer.pad_id), owner)


def make_validation(recipe: Recipe, task: AlbefPretraining, tokenizer: Tokenizer) -> loop.Validation | None:
    """Contrastive recall on the validation split."""
    if not recipe.run.validate_every:
        return None
    source = catalog.open_source(recipe.data, "validation")
    split = read_retrieval(recipe, source, tokenizer, recipe.run.validation_items)
    device = find_device(recipe.run.device)

    def measure() -> dict[str, float]:
        return contrastive_recall(task.model, split.pixels, split.texts, split.image_of_text, device=device)

    return loop.Validation(measure, MAXIMISED)


def train(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    """Trains a recipe in its run folder. Returns the last checkpoint."""
    source = catalog.open_source(recipe.data, "train")
    tokenizer = make_tokenizer(recipe, source)
    task = make_task(recipe, tokenizer)
    image_size = recipe.model.vision.image_size
    loader = PairLoader(source, tokenizer, recipe.data, image_size, recipe.run.batch_size, recipe.run.seed)
    validation = make_validation(recipe, task, tokenizer)
    return loop.train(
        task, loader, recipe, folder, validation=validation, save_tokenizer=tokenizer.save, resume=resume
    )
