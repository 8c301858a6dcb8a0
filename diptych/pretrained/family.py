"""Defines what each system says of its published files, and reads the sizes that both systems have in common."""

from __future__ import annotations

import math
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
    """Facts that files do not tell, and sizes that the model should be resized to."""

    vocabulary: Path | str | None = None
    """A vocab.txt, or a folder that holds one. The folder of a BERT holds its own."""
    image_size: int | None = None
    """The image size that positions are resized to; None keeps the file's."""
    heads: tuple[int, int] | None = None
    """Attention heads of image and text encoder; of a VLMo, the first. None takes what a BERT's config.json or a table
    of relative positions says, or else heads of width 64, as published."""
    separator: bool = False
    """Whether texts end with [SEP]. It is for ALBEF's start weights only: released ALBEF had none
    (docs/released_code.md, defect 11)."""
    text_length: int | None = None
    """VLMo: the longest text in tokens. Positions are cut or continued to it; None keeps the file's."""
    trained_image_size: int | None = None
    """VLMo: the image size of the file's relative positions, where it lacks the index tables that tell it."""
    answers: Path | str | None = None
    """VLMo, fine-tuned for VQA: a JSON list of the answers, one for each class."""

    def __post_init__(self) -> None:
        """Raises ValueError for an image size below 1."""
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"--image-size {self.image_size}: an image has at least one pixel")


class Family(ABC):
    """The published files of one system. `assemble` calls the methods in the order in which they stand here."""

    config: ClassVar[type]
    """The configuration of the system's models."""
    layouts: ClassVar[Mapping[str, Layout]]
    """The layouts of its files, by name. A file is of the first one that fits it."""
    base: ClassVar[str]
    """The recipe of its published size. Recipes whose names begin so are its fine-tunings."""
    separator: ClassVar[bool]
    """Whether its texts ended with [SEP]."""
    starts: ClassVar[frozenset[str]] = frozenset()
    """Layouts of start weights, of which several files together make one model."""

    def joint_layout(self, names: Sequence[str]) -> Layout:
        """Returns the layout of the file, or of several files of start weights that make one model."""
        return self.layouts[names[0]]

    def recipe(self, layout: Layout, state: State) -> Recipe:
        """Returns the published recipe that trains the layout's task, or else the base recipe with this task."""
        recipes = (make() for name, make in catalog.RECIPES.items() if name.startswith(self.base))
        fallback = replace(catalog.find_recipe(self.base), task=layout.task)
        return next((recipe for recipe in recipes if type(recipe.task) is type(layout.task)), fallback)

    @abstractmethod
    def file_model(
        self, state: State, layout: Layout, base: ModelConfig, options: Options, contents: Sequence[Contents]
    ) -> ModelConfig:
        """Reads the configuration of the file's model off the shapes, and takes `base` where these do not tell it.

        Raises ValueError for shapes that no such model has.
        """

    @abstractmethod
    def wanted_model(self, model: ModelConfig, options: Options) -> ModelConfig:
        """Returns the file's model with the image size and text length of the options."""

    @abstractmethod
    def fill_recipe(self, recipe: Recipe, state: State, options: Options) -> Recipe:
        """Gives a recipe of the wanted model the sizes that the files' task and data have."""

    @abstractmethod
    def fit_weights(
        self, ours: dict[str, Tensor], fresh: State, model: ModelConfig, wanted: ModelConfig
    ) -> tuple[dict[str, Tensor], str | None]:
        """Resizes the file's tensors from its `model` to the `wanted` one. Also says in words what was resized.

        `fresh`: the state that the wanted task is built with.
        """

    @abstractmethod
    def describe_file(self, state: State, layout: Layout) -> list[str]:
        """Describes a file's model in lines, for `diptych inspect`."""

    @abstractmethod
    def describe_run(self, recipe: Recipe, state: State) -> list[str]:
        """Describes the model of a checkpoint of ours in lines, for `diptych inspect`."""

    def released_layout(self, recipe: Recipe) -> Layout | None:
        """Returns the layout that runs of a recipe are exported in; None where such a task was never released."""
        return next((layout for layout in self.layouts.values() if isinstance(recipe.task, type(layout.task))), None)

    def as_released(self, weights: State, recipe: Recipe) -> State:
        """Changes a run's weights into those with which the released code computes the same."""
        return weights

    def complete(self, published: State, recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Adds what published files hold and we do not, and says why each addition is not ours.

        Raises ValueError for a model that the released code computes differently.
        """
        return dict(published), {}


def word_count(state: State) -> int | None:
    """Returns the vocabulary size of a file's text encoder; None where it has no text encoder."""
    return next((len(tensor) for name, tensor in state.items() if name.endswith("word_embeddings.weight")), None)


def shape(state: State, name: str) -> torch.Size:
    """Returns a tensor's shape. Raises ValueError where there is no such tensor."""
    if name not in state:
        raise ValueError(f"the checkpoint lacks {name}, without which its sizes are not known")
    return state[name].shape


def numbers(names: Iterable[str], pattern: str) -> set[int]:
    """Returns the layer numbers that the pattern's group matches in the names."""
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def square_side(count: int, what: str) -> int:
    """Returns the side of a square of `count` patches. Raises ValueError where it is no square."""
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} {what} are no square grid: another kind of model")
    return side


def heads_of_64(width: int, encoder: str) -> int:
    """Returns the number of heads of width 64, as published. Raises ValueError where these do not divide the width."""
    if width % 64:
        raise ValueError(
            f"the {encoder} is {width} wide, which heads of 64 do not divide: say with --heads how many it has"
        )
    return width // 64


def resized_positions(old: int, new: int, image_size: int) -> str:
    """Says in words how a grid of positions was resized."""
    return f"positions resized from {old} × {old} to {new} × {new} patches: {image_size} px"
