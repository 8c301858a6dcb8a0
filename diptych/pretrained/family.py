"""What the published files of one system have in common, and what each system says of its own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from diptych import catalog
from diptych.pretrained.formats import Contents, Layout
from diptych.schema import ModelConfig, Recipe

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Options:
    """What files cannot tell."""

    vocabulary: Path | str | None = None
    """A vocab.txt, or a folder that holds one; a BERT's own folder needs none."""
    image_size: int | None = None
    """Positions are resized to it; None keeps the file's."""
    heads: tuple[int, int] | None = None
    """Attention heads of image and text encoder; of a VLMo, the first. None: as a BERT's config.json or a table of
    relative positions says, else as published."""
    separator: bool = False
    """Close texts with [SEP]; for ALBEF's start weights only, since released ALBEF had none (docs/released_code.md,
    defect 11)."""
    text_length: int | None = None
    """VLMo: the longest text in tokens; positions are cut or continued to it. None keeps the file's."""
    trained_image_size: int | None = None
    """VLMo: what the file's relative positions are for, where it lacks the index tables that tell."""
    answers: Path | str | None = None
    """VLMo, fine-tuned for VQA: a JSON list of the answers, one a class."""


class Family(ABC):
    """The published files of one system."""

    config: ClassVar[type]
    """Of its models."""
    layouts: ClassVar[Mapping[str, Layout]]
    """The first that fits a file is it."""
    base: ClassVar[str]
    """The recipe of its published size; those of the same beginning are its fine-tunings."""
    separator: ClassVar[bool]
    """Whether its texts were closed with [SEP]."""
    starts: ClassVar[frozenset[str]] = frozenset()
    """Layouts of start weights: several of them make one model."""

    @abstractmethod
    def sizes(
        self, state: State, layout: Layout, base: ModelConfig, options: Options, contents: Sequence[Contents]
    ) -> ModelConfig:
        """The model that published tensors are of, told by their shapes; `base` where they tell nothing.

        Raises ValueError for shapes that no such model has.
        """

    @abstractmethod
    def resized(self, model: ModelConfig, options: Options) -> ModelConfig:
        """The model that is wanted, from the file's."""

    @abstractmethod
    def filled(self, recipe: Recipe, state: State, options: Options) -> Recipe:
        """A recipe of the wanted model, with the sizes that its task and its data have in the files."""

    @abstractmethod
    def fit(
        self, ours: dict[str, Tensor], fresh: State, model: ModelConfig, wanted: ModelConfig
    ) -> tuple[dict[str, Tensor], str | None]:
        """The file's tensors, of `model`, as the `wanted` one has them; and in words what was resized.

        `fresh`: what the wanted task begins with.
        """

    @abstractmethod
    def lines(self, state: State, layout: Layout) -> list[str]:
        """What a file holds, for `diptych inspect`."""

    @abstractmethod
    def run_lines(self, recipe: Recipe, state: State) -> list[str]:
        """And a checkpoint of ours."""

    def together(self, names: Sequence[str]) -> Layout:
        """The layout of start weights that make one model."""
        return self.layouts[names[0]]

    def recipe(self, layout: Layout, state: State) -> Recipe:
        """The published recipe that trains the layout's task; that of pre-training with this task, if none."""
        made = (make() for name, make in catalog.RECIPES.items() if name.startswith(self.base))
        fallback = replace(catalog.find_recipe(self.base), task=layout.task)
        return next((recipe for recipe in made if type(recipe.task) is type(layout.task)), fallback)

    def released_layout(self, recipe: Recipe) -> Layout | None:
        """The layout that a recipe's runs are published in, if such a task was ever released."""
        return next((layout for layout in self.layouts.values() if isinstance(recipe.task, type(layout.task))), None)

    def released(self, weights: State, recipe: Recipe) -> State:
        """A run's weights as the released code computes with them."""
        return weights

    def completed(self, published: State, recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, str]]:
        """An export with all that a published file has, and why what stands there is not ours.

        Raises ValueError for a model that the released code computes otherwise.
        """
        return dict(published), {}


def word_count(state: State) -> int | None:
    """Words of a file's text encoder; None if it has none."""
    return next((len(tensor) for name, tensor in state.items() if name.endswith("word_embeddings.weight")), None)


def shape(state: State, name: str) -> torch.Size:
    """Raises ValueError where there is no such tensor."""
    if name not in state:
        raise ValueError(f"the checkpoint lacks {name}, without which its sizes are not known")
    return state[name].shape


def numbers(names: Iterable[str], pattern: str) -> set[int]:
    """The layers that are named."""
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}
