"""The interfaces of models and tasks: what a task calls on any model, and what all others call on any task.

I images, B texts, P pairs, S images of one text, R tokens, E embedding width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.data.loader import EvaluationBatch
from diptych.data.record import AnyRecord
from diptych.data.tokenizer import Tokenizer
from diptych.facts import Ability, Submission, TaskReport
from diptych.metrics.task_evaluation import TaskEvaluation
from diptych.schema import ModelConfig, Recipe, Released, TaskConfig
from diptych.types import Joint, Losses, OutputPositions, Progress, Repeats, Texts


class Network(nn.Module):
    """A network that a task trains."""

    keep_padding: bool = False
    """Compute padded text tokens too, as `Released.keep_padding` says."""
    pieces: int = 1
    """Pieces that a batch is computed in. With more than one, the backward pass recomputes each (nn/recompute.py)."""

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """Fits a stored state of a task to this network; names begin with `model.` or `momentum_encoder.`.

        `origin` is the configuration of the network that stored it.
        """
        return dict(state)

    def freeze(self, names: Sequence[str]) -> None:
        """Excludes parts that no loss reaches from training; the optimiser never sees them."""
        for name, parameter in self.named_parameters():
            if any(name == part or name.startswith(f"{part}.") for part in names):
                parameter.requires_grad_(False)


CALLS = frozenset({
    "image_state", "text_state", "embed_image", "embed_text", "encode_text", "temperature", "fuse", "match_logits",
    "word_logits", "pooled", "all_tokens", "vl",
})  # fmt: skip
"""Names by which tasks say what they train and use of a model: methods of `Model`, outputs of `fuse` that may have
parts of their own (`pooled`, `all_tokens`), VLMo's `encode_text`, and its contrast by vision-language experts (`vl`).
"""


class Model(Network, ABC):
    """Encoders of images and texts, and a fusion encoder of pairs. Each model has its own types of states."""

    call_parts: Mapping[str, tuple[str, ...]]
    """Names of parameters and modules that some calls of this interface use and others do not, by a name in `CALLS`."""
    embed_dim: int
    """E."""
    vocab_size: int
    """V, the number of scores that `word_logits` gives."""
    fused_image_tokens: int = 0
    """Tokens that an image adds to each pair it is fused in. 0 where the text cross-attends to the image."""
    map_layers: range
    """Layers of `fuse` that can return attention maps from text to image (`maps`)."""
    image_layers: range
    """Blocks in which `image_state` can record the attention of [CLS] to the patches (`maps`)."""

    @abstractmethod
    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), rng_keys: Int[Tensor, "I"] | None = None
    ) -> Any:
        """Computes what can be kept of images, whatever they are used for. `rng_keys`: as in `Texts`, of each image."""

    def distinct_images(
        self, pixels: Float[Tensor, "B 3 H W"], repeats: Repeats | None = None
    ) -> tuple[Any, Int[Tensor, "B"]]:
        """Encodes images, equal ones once. Returns the state and each row's index in it.

        Equal rows are those that `repeats` lists. Without it they are searched for, but only where no gradient is
        needed: most evaluations ask several questions about one image, and few trainings do.
        """
        if repeats is not None:
            return self.image_state(pixels[repeats.rows]), repeats.image_of
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
        """Fuses text text_index[p] with image image_index[p], or with the S images image_index[p], for P pairs.

        `texts` and `images` are states of `text_state` and `image_state`. `positions` says of which tokens the result
        holds hidden states, by default of none, and `maps` from which layers it holds attention. Raises ValueError for
        an S that the model is not built for (`model.images_per_text`).
        """

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

        Their names begin with `head.` and, for the decoder's momentum copy, `momentum_head.`.
        """
        return {}

    def parts_unused_by(self, *calls: str) -> tuple[str, ...]:
        """Lists the `call_parts` that none of these calls uses. Raises ValueError for a call that is not in `CALLS`."""
        if unknown := sorted(set(calls) - CALLS):
            raise ValueError(f"{', '.join(unknown)}: not among the calls of a model, {', '.join(sorted(CALLS))}")
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
    """A network with its losses, its evaluation and the facts that others need of it.

    Subclasses hold the network as `self.model`. Only `before_step` and `after_step` change state beside the optimiser.
    A task that is not the library's states the same facts in its own file and is registered by one line,
    `diptych.catalog.add_task` (examples/captioning.py).
    """

    model: Network
    config: TaskConfig
    released: Released = Released()
    """Defects of the released code that the task reproduces; by default none."""

    # ------------------------------------------------------------------ facts

    record: ClassVar[type[AnyRecord]]
    """The record type that the task trains on and is evaluated by."""
    purpose: ClassVar[str | None] = None
    """Completes "trained for …" in a model card; None stands for the configuration's name."""
    hub_tag: ClassVar[str | None] = None
    """The Hugging Face Hub's name of the task, if it has one."""
    abilities: ClassVar[tuple[Ability, ...]] = ()
    """The abilities that a model gets, or gets better at, by this task."""
    headed: ClassVar[bool] = True
    """Whether a trained model is used through a head of the task's own, which `diptych.load` then builds."""
    measured_as_retrieval: ClassVar[bool] = False
    """Whether the task is measured as retrieval, over all pictures and captions of a split at once. Every other task
    overrides `evaluate`."""
    fails_early: ClassVar[bool] = False
    """Whether one record is evaluated before training begins, since settings may turn out to be impossible there."""
    submission: ClassVar[Submission | None] = None
    """The file format of an evaluation server, if there is one."""
    report: ClassVar[TaskReport | None] = None
    """How an evaluation is shown; None for tasks that are measured as retrieval."""
    changeable: ClassVar[tuple[str, ...]] = ()
    """Dotted names of the recipe's fields on which no weight depends, so that an evaluation may change them."""
    keeps_momentum_encoder: ClassVar[bool] = False
    """Whether a checkpoint keeps a momentum encoder that predicts pseudo-targets (predict/pseudo_targets.py)."""
    inspectable: ClassVar[bool] = False
    """Whether `inspect` shows something."""

    @classmethod
    def trained(cls, config: Any) -> tuple[str, ...]:
        """Names the `call_parts` of the model that this task trains; by default none."""
        return ()

    @classmethod
    def closed_set(cls, config: Any) -> tuple[str, ...]:
        """The answers that each question is scored against in training; by default none."""
        return ()

    @classmethod
    def classes(cls, config: Any) -> tuple[tuple[str, ...], str] | None:
        """Names of the logits of a classifier and the function that turns them into probabilities, if there is one."""
        return None

    @classmethod
    def with_data_settings(cls, config: Any, records: Callable[[], Iterable[Any]]) -> Any:
        """The configuration with the settings that follow from the training records (VQA: the answers)."""
        return config

    @classmethod
    def without_data_settings(cls, config: Any) -> Any:
        """The configuration without the settings that `with_data_settings` adds."""
        return config

    @classmethod
    def with_placeholders(cls, config: Any) -> Any:
        """The configuration with stand-ins for those settings of the data that the size of the task depends on."""
        return config

    @classmethod
    def for_use(cls, config: Any) -> Any:
        """The configuration of a trained task that is only used: without what training alone needs."""
        return config

    @classmethod
    def relinked(cls, config: Any, link: Callable[[str], str]) -> Any:
        """The configuration with `link` applied to the path of every run whose network the task borrows."""
        return config

    @classmethod
    def resolved(cls, recipe: Recipe) -> Recipe:
        """The recipe with the settings that other runs determine. Raises ValueError where such a run is missing."""
        return recipe

    @classmethod
    def meaning(cls, config: Any, **options: Any) -> str:
        """Says in one sentence what the probabilities of a result are of, given the options of the call."""
        return ""

    # ------------------------------------------------------------------ starting weights

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Selects what this task can start with from the state that a run of recipe `origin` stored.

        Model and momentum encoder are fitted by `Network.adapt`. Heads come from the same kind of task only.
        """
        prefixes = ("model.", "momentum_encoder.") + ("head.", "momentum_head.") * isinstance(
            origin.task, type(self.config)
        )
        fitted = self.model.adapt(state, origin.model)
        return {name: value for name, value in fitted.items() if name.startswith(prefixes)}

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a stored model that fit an answer decoder which is this task's `head` (ALBEF §5)."""
        assert isinstance(self.model, Model), "only models have a decoder to start"
        own, start = self.state_dict(), self.model.decoder_start(state)
        return {name: value for name, value in start.items() if name in own and own[name].shape == value.shape}

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

    # ------------------------------------------------------------------ training

    def before_step(self) -> None:
        """Runs before each optimiser step's first forward: clamps the temperature, updates the momentum encoder."""

    @abstractmethod
    def forward(self, batch: Any, progress: Progress) -> Losses:
        """Computes the losses of a batch, without changing state.

        Random draws are a pure function of `progress` and the batch.
        """

    def after_step(self, carry: Any) -> None:
        """Runs after each optimiser step with its `Losses.carry`: adds features to the queue."""

    # ------------------------------------------------------------------ a trained task

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures the task on records, in evaluation mode and on its own device (`diptych.evaluate.evaluate_task`).

        `resamples` are those of the bootstrap behind the intervals. Raises ValueError for a task that is measured as
        retrieval.
        """
        raise ValueError(f"{type(self).__name__} is not judged record by record")

    def responder(self, tokenizer: Tokenizer, **options: Any) -> Callable[[Any], Sequence[Any]]:
        """Gives the function that answers the task's ability: from a batch to one result for each of its rows.

        `options` are those that the ability states. Raises ValueError for options that the task cannot follow.
        """
        raise ValueError(f"{type(self).__name__} has no head to ask")

    def views(self, batch: Any) -> Mapping[str, Float[Tensor, "B 3 H W"]]:
        """Pictures that show what the model sees and predicts, by their names; for reports."""
        return {}

    def heat(self, batch: Any) -> Float[Tensor, "B h w"]:
        """A heat map of each text on its picture; for reports."""
        raise ValueError(f"{type(self).__name__} has no heat maps")

    def inspect(self, batch: Any, progress: Progress) -> Any:
        """The hard negatives, and the momentum encoder's pseudo-targets if there is one, of training pairs."""
        return None
