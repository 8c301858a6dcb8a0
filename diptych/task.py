"""The contracts of a model and of a task: what a task may ask of any model, and what all others may ask of a task.

I images, B texts, P pairs, R rows, E embedding width, V vocabulary.
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
from diptych.schema import ModelConfig, Recipe, TaskConfig
from diptych.types import Joint, Losses, Progress, Rows, Texts


class Network(nn.Module):
    """What a task trains."""

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
    """A model, or another network, with its losses, its evaluation and the facts that others need of it.

    Subclasses hold the network as `self.model`. `before_step` and `after_step` are the only places where anything but
    the optimiser moves state. A task that is not the library's states the same facts in its own file and is made known
    by one line, `diptych.catalog.add_task` (examples/captioning.py).
    """

    model: Network
    config: TaskConfig

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
    ranks_pairs: ClassVar[bool] = False
    """Whether the task is measured as retrieval, over all pictures and captions of a split at once. Every other task
    overrides `evaluate`."""
    fails_early: ClassVar[bool] = False
    """Whether one record is evaluated before training begins, since settings may turn out to be impossible there."""
    submission: ClassVar[Submission | None] = None
    """The file format of an evaluation server, if there is one."""
    report: ClassVar[TaskReport | None] = None
    """How an evaluation is shown; None for tasks that are measured as retrieval."""
    changeable: ClassVar[tuple[str, ...]] = ()
    """Fields of the configuration on which no weight depends, so that an evaluation may change them."""
    keeps_teacher: ClassVar[bool] = False
    """Whether a checkpoint's momentum encoder can be asked for its pseudo-targets (`diptych.predict.teaching`)."""
    inspectable: ClassVar[bool] = False
    """Whether `inspect` shows something."""

    @classmethod
    def trained(cls, config: Any) -> tuple[str, ...]:
        """Calls of the model, beside encoding, whose `parts` this task trains; by default none."""
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
    def filled(cls, config: Any, records: Callable[[], Iterable[Any]]) -> Any:
        """The configuration with the settings that follow from the training records (VQA: the answers)."""
        return config

    @classmethod
    def unfilled(cls, config: Any) -> Any:
        """The configuration without the settings that `filled` adds."""
        return config

    @classmethod
    def sketched(cls, config: Any) -> Any:
        """The configuration with stand-ins for the settings of `filled` that the size of the task depends on."""
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
        """Selects the weights that this task starts with from the state that a run of recipe `origin` stored.

        These are the model and its momentum copy, as the model makes them fit, under the names of this task. Heads are
        taken from the same kind of task only.
        """
        kept = ("model.", "teacher.") + ("head.", "teacher_head.") * isinstance(origin.task, type(self.config))
        start = self.model.adapt(state, origin.model)
        return {name: value for name, value in start.items() if name.startswith(kept)}

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a stored model that fit an answer decoder which is this task's `head` (ALBEF §5)."""
        assert isinstance(self.model, Model), "only models have a decoder to start"
        own, start = self.state_dict(), self.model.decoder_start(state)
        return {name: value for name, value in start.items() if name in own and own[name].shape == value.shape}

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """Names the parts of the model that a run of recipe `origin` stored untrained; by default none.

        They start with new weights, or as `adapt` says, which does not see the stored ones. If the model's `text` is
        among them, the vocabulary may differ from that run's.
        """
        return ()

    def borrowed(self) -> Mapping[str, str]:
        """Maps parts that are networks of other runs to the runs or checkpoints that they come from; by default none.

        They are loaded once, when training begins, and are stored with the task from then on.
        """
        return {}

    # ------------------------------------------------------------------ training

    def before_step(self) -> None:
        """Prepares an optimiser step: clamps the temperature, updates the momentum encoder."""

    @abstractmethod
    def forward(self, batch: Any, progress: Progress) -> Losses:
        """Computes the losses of a batch that a loader made of the task's records.

        It changes no state, and its random draws are a pure function of `progress` and the batch.
        """

    def after_step(self, carry: Any) -> None:
        """Finishes an optimiser step, with its `Losses.carry`: feeds the queue."""

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
