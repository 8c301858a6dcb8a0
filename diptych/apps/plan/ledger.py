"""A ledger of a simulated step: operations by part and phase, and the memory that is alive at each moment.

Parts have names that users know: image encoder, text encoder, fusion, word head, momentum encoder … Each call of a
model's contract belongs to a part, and a backward operation belongs to the part of its forward.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch._C import _current_autograd_node
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from diptych.train.flops import ATTENTION_ON_CPU

Phase = Literal["forward", "backward", "recompute"]
Key = tuple[str, Phase, str]
"""Part, phase and the operation's name."""

LOSSES = "losses"
"""The part of all operations that belong to no other part."""
CONTRAST = "contrast"
"""Those among them with a number for each pair and candidate, which grow with both."""
CALLS = {
    "image_state": "image encoder", "embed_image": "image encoder", "encode_image": "image encoder",
    "text_state": "text encoder", "embed_text": "text encoder", "encode_text": "text encoder",
    "fuse": "fusion", "match_logits": "matching head", "word_logits": "word head",
}  # fmt: skip
"""Part of each call of a model."""
CHILDREN = {"head": "task head", "tokenizer": "visual tokenizer"}
"""Parts that are networks of a task beside its model. Names that begin with `momentum_` are momentum copies."""
COUNTERS = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU).flop_registry
FREE = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "lift_fresh"))
"""Operations that neither read nor write numbers."""


@dataclass
class Sum:
    """Totals of all operations of one kind."""

    count: int = 0
    flops: int = 0
    """Operations of matrix products, convolutions and attention, as torch counts them."""
    moved: int = 0
    """Bytes read and written."""
    elements: int = 0
    """Numbers written."""


@dataclass
class Moment:
    """Peak memory, without gradients, while a certain number of parameters had their gradients."""

    contrast: int = 0
    """Bytes of tensors with a number for each pair and candidate."""
    rest: int = 0

    @property
    def total(self) -> int:
        return self.contrast + self.rest


@dataclass
class Ledger:
    """The ledger of one step."""

    pairs: int
    candidates: int
    """Candidates that each pair is contrasted with: the batch, and the queue."""
    sums: dict[Key, Sum] = field(default_factory=lambda: defaultdict(Sum))
    moments: list[Moment] = field(default_factory=lambda: [Moment()])
    """Entry k is the peak while k parameters had their gradients."""
    gradients: list[int] = field(default_factory=list)
    """Bytes of each parameter's gradient, in the order of the backward pass."""
    states: int = 0
    """Bytes of the encoded images and texts, which fusion uses."""
    kept: int = 0
    """Bytes alive at the start of the backward pass."""
    products: Counter[tuple[str, tuple[int, ...]]] = field(default_factory=Counter)
    """FLOPs by operation and shape, so that the commonest shapes can be measured."""
    parts: list[str] = field(default_factory=lambda: [LOSSES])
    backward: bool = False
    recomputing: int = 0
    _marks: list[tuple[int, str]] = field(default_factory=lambda: [(0, LOSSES)])
    _alive: Counter[bool] = field(default_factory=Counter)
    """Bytes alive of the contrast (True) and of all else (False)."""
    _owners: dict[int, tuple[bool, int]] = field(default_factory=dict)

    # ------------------------------------------------------------------ operations

    def on_operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Enters an operation (pretend.OnOperation)."""
        inputs = [leaf for leaf in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not outputs:
            return
        part, phase = self._where()
        if part == LOSSES and any(map(self._is_contrast, (*inputs, *outputs))):
            part = CONTRAST
        old = {id(tensor.untyped_storage()) for tensor in inputs}
        for tensor in outputs:
            self._allocate(tensor)
        if not func._schema.is_mutable and all(id(tensor.untyped_storage()) in old for tensor in outputs):
            return  # a view
        name = func.overloadpacket.__name__
        total = self.sums[part, phase, name]
        total.count += 1
        if (counter := COUNTERS.get(func.overloadpacket)) is not None:
            total.flops += (flops := counter(*args, **kwargs, out_val=result))
            shape = tuple(size for tensor in inputs for size in tensor.shape)
            self.products[name, shape] += flops
        if name not in FREE:
            total.elements += sum(tensor.numel() for tensor in outputs)
            total.moved += sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))

    def _where(self) -> tuple[str, Phase]:
        if not self.backward:
            return self.parts[-1], "forward"
        if self.recomputing:
            return self.parts[-1] if len(self.parts) > 1 else self._part_of_node(), "recompute"
        return self._part_of_node(), "backward"

    def _part_of_node(self) -> str:
        """Finds the part in whose forward the current autograd node was made."""
        node = _current_autograd_node()
        number = node._sequence_nr() if node is not None else 0
        return self._marks[bisect_right(self._marks, number, key=lambda mark: mark[0]) - 1][1]

    def _is_contrast(self, tensor: Tensor) -> bool:
        return tuple(tensor.shape) in ((self.pairs, self.candidates), (self.candidates, self.pairs))

    # ------------------------------------------------------------------ memory

    def _allocate(self, tensor: Tensor) -> None:
        """Enters the memory of a tensor, unless it is known already."""
        if not isinstance(tensor, FakeTensor):
            return
        storage = tensor.untyped_storage()
        if id(storage) in self._owners:
            return
        size = storage.nbytes()
        contrast = self._is_contrast(tensor)
        self._owners[id(storage)] = (contrast, size)
        self._alive[contrast] += size
        weakref.finalize(storage, self._free, id(storage))
        self._note()

    def known(self, module: nn.Module) -> None:
        """Excludes parameters and buffers, which exist before the step."""
        for tensor in [*module.parameters(), *module.buffers()]:
            self.known_tensor(tensor)

    def known_tensor(self, tensor: Tensor) -> None:
        self._owners[id(tensor.untyped_storage())] = (False, 0)

    def _free(self, name: int) -> None:
        contrast, size = self._owners.pop(name, (False, 0))
        self._alive[contrast] -= size

    def _note(self) -> None:
        moment = self.moments[-1]
        if self._alive.total() > moment.total:
            moment.contrast, moment.rest = self._alive[True], self._alive[False]

    def on_gradient(self, parameter: Tensor) -> None:
        """Counts a finished gradient as one from now on, and begins a new moment."""
        assert parameter.grad is not None
        name = id(parameter.grad.untyped_storage())
        contrast, size = self._owners.get(name, (False, 0))
        self._alive[contrast] -= size
        self._owners[name] = (contrast, 0)
        self.gradients.append(parameter.grad.nbytes)
        self.moments.append(Moment(self._alive[True], self._alive[False]))

    # ------------------------------------------------------------------ parts

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Assigns all operations within the block to a part. In the backward pass, they are recomputation."""
        recomputed = self.backward
        self.parts.append(name)
        self.recomputing += recomputed
        if not recomputed:
            self._marks.append((_get_sequence_nr(), name))
        try:
            yield
        finally:
            self.parts.pop()
            self.recomputing -= recomputed
            if not recomputed:
                self._marks.append((_get_sequence_nr(), self.parts[-1]))

    def repeated(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a call that the backward pass makes again, so that it counts as recomputation."""

        def again(*args: Any, **kwargs: Any) -> Any:
            self.recomputing += (backward := self.backward)
            try:
                return call(*args, **kwargs)
            finally:
                self.recomputing -= backward

        return again

    def begin_backward(self) -> None:
        self.backward, self.kept = True, self._alive.total()

    def watch(self, task: nn.Module) -> None:
        """Wraps the calls of a task, so that each enters its part."""
        for name, child in task.named_children():
            if name.startswith("momentum_"):
                self._watch_calls(child, dict.fromkeys([*CALLS, "forward"], "momentum encoder"))
            elif name == "model":
                self._watch_calls(child, CALLS)
            elif name in CHILDREN:
                self._watch_calls(
                    child, {"forward": CHILDREN[name], "word_logits": CHILDREN[name], "codes": CHILDREN[name]}
                )
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.on_gradient)

    def _watch_calls(self, module: nn.Module, calls: dict[str, str]) -> None:
        for call, part in calls.items():
            if (original := getattr(module, call, None)) is not None:
                setattr(
                    module, call, self._watched(original, part, call.endswith("_state") and part != "momentum encoder")
                )

    def _watched(self, call: Callable[..., Any], part: str, is_state: bool) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                result = call(*args, **kwargs)
            if is_state and not self.backward:
                self.states += result.nbytes
            return result

        return watched


def _bytes(tensor: Tensor) -> int:
    """Counts the bytes to read or write a tensor. Of an expanded tensor only its storage counts."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
