"""The interfaces of models and tasks: what a task calls on any model, and what the training loop calls on any task.

I images, B texts, P pairs, S images of one text, R tokens, E embedding width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.schema import ModelConfig, Recipe, Released, TaskConfig
from diptych.types import Joint, Losses, OutputPositions, Progress, Texts


class Network(nn.Module):
    """A network that a task trains."""

    keep_padding: bool = False
    """Compute padded text tokens too, as `Released.keep_padding` says."""
    pieces: int = 1
    """Pieces that a batch is computed in. With more than one, the backward pass recomputes each (nn/recompute.py)."""

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """Fits a stored state of a task to this network; names begin with `model.` or `teacher.`.

        `origin` is the configuration of the network that stored it.
        """
        return dict(state)

    def freeze(self, names: Sequence[str]) -> None:
        """Excludes parts that no loss reaches from training; the optimiser never sees them."""
        for name, parameter in self.named_parameters():
            if any(name == part or name.startswith(f"{part}.") for part in names):
                parameter.requires_grad_(False)


class Model(Network, ABC):
    """Encoders of images and texts, and a fusion encoder of pairs. Each model has its own types of states."""

    call_parts: Mapping[str, tuple[str, ...]]
    """Names of parameters and modules that some calls of this interface use and others do not, by the call's name.

    Beside calls there are keys for outputs of `fuse` that have parts of their own, `pooled` and `all_tokens`, and for
    further uses of one model, such as `vl`."""
    embed_dim: int
    """E."""
    fused_image_tokens: int = 0
    """Tokens that an image adds to each pair it is fused in. 0 where the text cross-attends to the image."""
    map_layers: range
    """Layers of `fuse` that can return attention maps from text to image (`maps`)."""

    @abstractmethod
    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), rng_keys: Int[Tensor, "I"] | None = None
    ) -> Any:
        """Computes what can be kept of images, whatever they are used for. `rng_keys`: as in `Texts`, of each image."""

    def distinct_images(self, pixels: Float[Tensor, "I 3 H W"]) -> tuple[Any, Int[Tensor, "I"]]:
        """Encodes images, equal ones once where no gradient is needed. Returns the state and each image's index in it.

        Most evaluations ask several questions about one image.
        """
        index = torch.arange(len(pixels), device=pixels.device)
        if len(pixels) > 1 and not (self.training or torch.is_grad_enabled()):
            first = _first_of_equals(pixels)
            distinct, distinct_index = first.unique(return_inverse=True)
            if len(distinct) < len(pixels) and torch.equal(pixels[first], pixels):
                return self.image_state(pixels[distinct]), distinct_index
        return self.image_state(pixels), index

    @abstractmethod
    def text_state(self, texts: Texts) -> Any:
        """Computes what can be kept of texts, whatever they are used for."""

    @abstractmethod
    def embed_image(self, state: Any, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "I E"]]:
        """Embeds images for contrastive losses and search: normalised vectors by branch."""

    @abstractmethod
    def embed_text(self, state: Any, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "B E"]]:
        """Embeds texts: normalised vectors by branch."""

    @abstractmethod
    def temperature(self, branch: str = "main") -> Float[Tensor, ""]:
        """Returns the temperature by which similarities of a branch are divided."""

    @abstractmethod
    def fuse(
        self,
        texts: Any,
        images: Any,
        text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
        positions: OutputPositions = None,
        maps: Sequence[int] = (),
    ) -> Joint:
        """Fuses text text_index[p] with image image_index[p], or with the S images image_index[p], for P pairs."""

    @abstractmethod
    def match_logits(self, joint: Joint) -> Float[Tensor, "P 2"]:
        """Scores image-text matching (ITM): no match, match."""

    @abstractmethod
    def word_logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Scores each word at each token, for masked language modelling (MLM)."""

    @abstractmethod
    def joint_width(self, images: int = 1) -> int:
        """Returns the width of `Joint.pooled` when each text is fused with `images` images."""

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Makes the initial weights of an answer decoder from the stored state of such a model; by default none.

        Their names begin with `head.` and, for the decoder's momentum copy, `teacher_head.`.
        """
        return {}

    def parts_unused_by(self, *calls: str) -> tuple[str, ...]:
        """Lists the `call_parts` that none of these calls uses."""
        used = {name for call in calls for name in self.call_parts.get(call, ())}
        others = (name for call, names in self.call_parts.items() if call not in calls for name in names)
        return tuple(dict.fromkeys(name for name in others if name not in used))


def _first_of_equals(pixels: Float[Tensor, "I 3 H W"]) -> Int[Tensor, "I"]:
    """Finds for each image the first one with the same weighted sum of pixels, so that equal images have the same."""
    height, width = pixels.shape[-2:]
    weights = torch.linspace(1, 2, height * width, dtype=torch.float64, device=pixels.device).view(height, width)
    sums = (pixels.sum(1, dtype=torch.float64) * weights).sum((1, 2))
    return (sums[:, None] == sums).int().argmax(1)


class Task(nn.Module, ABC):
    """A network with its losses; subclasses hold it as `self.model`.

    Only `before_step` and `after_step` change state beside the optimiser.
    """

    model: Network
    config: TaskConfig
    released: Released = Released()
    """Defects of the released code that the task reproduces; by default none."""

    @classmethod
    def trained(cls, config: Any) -> tuple[str, ...]:
        """Names the `call_parts` of the model that this task trains; by default none."""
        return ()

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Selects what this task can start with from the state that a run of recipe `origin` stored.

        Model and momentum encoder are fitted by `Network.adapt`. Heads come from the same kind of task only.
        """
        prefixes = ("model.", "teacher.") + ("head.", "teacher_head.") * isinstance(origin.task, type(self.config))
        fitted = self.model.adapt(state, origin.model)
        return {name: value for name, value in fitted.items() if name.startswith(prefixes)}

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """Names parts of the model that a run of recipe `origin` stored but did not train; by default none.

        Their stored weights are withheld from `adapt`. They keep their initial weights unless `adapt` supplies others.
        If the model's `text` is among them, the two runs may use different tokenizers.
        """
        return ()

    def borrowed(self) -> Mapping[str, str]:
        """Names parts that are networks of other runs, with the run or checkpoint of each; by default none.

        They are loaded once, when training begins, and from then on stored with the task.
        """
        return {}

    def before_step(self) -> None:
        """Runs before each optimiser step's first forward: clamps the temperature, updates the momentum encoder."""

    @abstractmethod
    def forward(self, batch: Any, progress: Progress) -> Losses:
        """Computes the losses of a batch, without changing state.

        Random draws are a pure function of `progress` and the batch.
        """

    def after_step(self, carry: Any) -> None:
        """Runs after each optimiser step with its `Losses.carry`: adds features to the queue."""
