"""The contracts of a model and of a task: what a task may ask of any model, and what the loop may ask of a task.

I images, B texts, P pairs, R rows, E embedding width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.schema import ModelConfig, Recipe, Released, TaskConfig
from diptych.types import Joint, Losses, Progress, Rows, Texts


class Network(nn.Module):
    """What a task trains."""

    keep_padding: bool = False
    """Compute padded text tokens too, as `Released.keep_padding` says."""
    pieces: int = 1
    """Pieces that a batch is computed in, each computed again on the way back (nn/pieces.py)."""

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """The state of a task with such a network (names begin with `model.` or `teacher.`), as it fits this one.

        `origin`: the network that stored it.
        """
        return dict(state)

    def freeze(self, names: Sequence[str]) -> None:
        """Parts that no loss reaches: to the optimiser they are not there."""
        for name, parameter in self.named_parameters():
            if any(name == part or name.startswith(f"{part}.") for part in names):
                parameter.requires_grad_(False)


class Model(Network, ABC):
    """Two encoders, and a fusion encoder over pairs of what they give. States are each model's own."""

    parts: Mapping[str, tuple[str, ...]]
    """Parameters and modules that some calls of this contract use and others do not, by the call's name, or another use
    of the model; of what `fuse` gives, `pooled` and `all_rows` may have some of their own."""
    embed_dim: int
    """E."""
    image_rows: int = 0
    """Rows that an image brings into each pair that it is fused in, beside the text's; 0 where it is attended to."""
    map_layers: range
    """Layers of `fuse` whose attention from text to image can be asked for (`maps`)."""

    @abstractmethod
    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), keys: Int[Tensor, "I"] | None = None
    ) -> Any:
        """What of images can be computed once and kept. `keys`: of each, for dropout, as those of `Texts`."""

    def distinct_images(self, pixels: Float[Tensor, "I 3 H W"]) -> tuple[Any, Int[Tensor, "I"]]:
        """A state of images, and where in it each of them is. Where nothing is learnt, equal ones are encoded once.

        Several questions are asked of a picture in most evaluations.
        """
        place = torch.arange(len(pixels), device=pixels.device)
        if len(pixels) > 1 and not (self.training or torch.is_grad_enabled()):
            first = _first_of_equals(pixels)
            chosen, where = first.unique(return_inverse=True)
            if len(chosen) < len(pixels) and torch.equal(pixels[first], pixels):
                return self.image_state(pixels[chosen]), where
        return self.image_state(pixels), place

    @abstractmethod
    def text_state(self, texts: Texts) -> Any:
        """What of texts can be computed once and kept."""

    @abstractmethod
    def embed_image(self, state: Any, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "I E"]]:
        """Normalised vectors by branch."""

    @abstractmethod
    def embed_text(self, state: Any, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "B E"]]:
        """Normalised vectors by branch."""

    @abstractmethod
    def temperature(self, branch: str = "main") -> Float[Tensor, ""]:
        """What similarities of a branch are divided by."""

    @abstractmethod
    def fuse(
        self,
        texts: Any,
        images: Any,
        text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
        rows: Rows = None,
        maps: Sequence[int] = (),
    ) -> Joint:
        """Fuse text text_index[p] with image image_index[p], or with S images, for P pairs."""

    @abstractmethod
    def match_logits(self, joint: Joint) -> Float[Tensor, "P 2"]:
        """No match, match."""

    @abstractmethod
    def word_logits(self, rows: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Scores of each word at each row."""

    @abstractmethod
    def joint_width(self, images: int = 1) -> int:
        """Width of `Joint.pooled` where each text is fused with so many images."""

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of such a state an answer decoder (`head.`, and its teacher `teacher_head.`) begins with; here nothing.

        The state is of the other model, as it was stored.
        """
        return {}

    def unused(self, *calls: str) -> tuple[str, ...]:
        """The `parts` of all calls but these, without what these use too."""
        used = {name for call in calls for name in self.parts.get(call, ())}
        others = (name for call, names in self.parts.items() if call not in calls for name in names)
        return tuple(dict.fromkeys(name for name in others if name not in used))


def _first_of_equals(pixels: Float[Tensor, "I 3 H W"]) -> Int[Tensor, "I"]:
    """The first image with the same weighted sum of pixels as each: of equal images the same one."""
    height, width = pixels.shape[-2:]
    weights = torch.linspace(1, 2, height * width, dtype=torch.float64, device=pixels.device).view(height, width)
    sums = (pixels.sum(1, dtype=torch.float64) * weights).sum((1, 2))
    return (sums[:, None] == sums).int().argmax(1)


class Task(nn.Module, ABC):
    """A model, or another network, with its losses. Subclasses hold it as `self.model`.

    `before_step` and `after_step` are the only places where anything but the optimiser moves state.
    """

    model: Network
    config: TaskConfig
    released: Released = Released()
    """Defects of the released code that the task reproduces; by default none."""

    @classmethod
    def trained(cls, config: Any) -> tuple[str, ...]:
        """Calls of the model, beside encoding, whose `parts` this task trains; by default none."""
        return ()

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """What this task can start with, by its own names, of the state that a run of recipe `origin` stored.

        Student and teacher, as the model makes them fit. Heads come from the same kind of task only.
        """
        kept = ("model.", "teacher.") + ("head.", "teacher_head.") * isinstance(origin.task, type(self.config))
        found = self.model.adapt(state, origin.model)
        return {name: value for name, value in found.items() if name.startswith(kept)}

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """Parts of the model that a run of recipe `origin` stored without having taught them.

        They begin afresh, or as `adapt` says, which is not shown what was stored of them. Where the model's `text` is
        among them, words may have other numbers than they had there. By default none.
        """
        return ()

    def borrowed(self) -> Mapping[str, str]:
        """Parts that are the networks of other runs, each with the run or checkpoint it comes from; by default none.

        They are taken over once, when training begins, and then are stored with the task.
        """
        return {}

    def before_step(self) -> None:
        """Once an optimiser step, before its first forward: clamp the temperature, move the teacher."""

    @abstractmethod
    def forward(self, batch: Any, progress: Progress) -> Losses:
        """The losses of a batch of the kind that the records make. Changes nothing; random draws are a pure function of
        `progress` and the batch."""

    def after_step(self, carry: Any) -> None:
        """Once an optimiser step, with its `Losses.carry`: feed the queue."""
