"""A VLMo's weights made to fit another configuration: picture size, text length, pictures a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.nn.embeddings import resize_positions
from diptych.nn.relative import entry_count, resize_table
from diptych.schema import ModelConfig, VlmoConfig

Fit = Callable[[Tensor, VlmoConfig, VlmoConfig], Tensor]


def fit_state(state: Mapping[str, Tensor], origin: ModelConfig, config: VlmoConfig) -> dict[str, Tensor]:
    """The state of a task with a VLMo of `origin`, its names beginning with `model.` or `teacher.`, as `config` has it.

    What depends on neither picture size, text length nor the number of pictures stays. Raises ValueError for a state
    of another kind of model, other experts or attention, and for texts longer than learnt absolute positions.
    """
    if not isinstance(origin, VlmoConfig):
        raise ValueError(f"a VLMo starts from a VLMo: this checkpoint's model is {type(origin).__name__}")
    for name in ("experts", "attention"):
        theirs, ours = getattr(origin, name), getattr(config, name)
        if theirs != ours:
            raise ValueError(
                f"model.{name}={ours} does not start from a checkpoint whose model has {name}={theirs}: "
                f"set model.{name}={theirs}, or init_from=null"
            )
    fitted = dict(state)
    for name, tensor in state.items():
        owner, _, part = name.partition(".")
        if owner in ("model", "teacher") and part in _FITS:
            fitted[name] = _FITS[part](tensor, origin, config)
    return fitted


def with_text_rows(
    table: Float[Tensor, "D H"], receiver: Float[Tensor, "E C"], config: VlmoConfig
) -> Float[Tensor, "E C"]:
    """A BEiT's relative positions, of all layers or one for all, with the `receiver`'s of texts behind them."""
    texts = entry_count(grid_side(config), config.max_positions) - len(table)
    if texts != 2 * config.max_positions + 2:
        raise ValueError(f"{len(table)} relative positions are not those of {config.image_size} px")
    return torch.cat([table.repeat(1, receiver.shape[1] // table.shape[1]), receiver[-texts:].to(table)])


def grid_side(config: VlmoConfig) -> int:
    """Patches a side."""
    return config.image_size // config.patch_size


def _relative(table: Float[Tensor, "E C"], origin: VlmoConfig, config: VlmoConfig) -> Float[Tensor, "E2 C"]:
    return resize_table(table, grid_side(origin), grid_side(config), origin.max_positions, config.max_positions)


def _image(table: Float[Tensor, "1 T D"], origin: VlmoConfig, config: VlmoConfig) -> Float[Tensor, "1 T2 D"]:
    return resize_positions(table, grid_side(config))


def _text(table: Float[Tensor, "L D"], origin: VlmoConfig, config: VlmoConfig) -> Float[Tensor, "L2 D"]:
    if config.max_positions > len(table):
        raise ValueError(
            f"texts of {config.max_positions} tokens are longer than the {len(table)} positions that were learnt: "
            f"ask for {len(table)} at most"
        )
    return table[: config.max_positions]


def _types(table: Float[Tensor, "S1 D"], origin: VlmoConfig, config: VlmoConfig) -> Float[Tensor, "S2 D"]:
    """Of the text and of each of its pictures; a further picture begins as the first (VLMo's NLVR2)."""
    pictures = range(1, 1 + config.images_per_text)
    return table[[0, *(number if number < len(table) else 1 for number in pictures)]]


_FITS: dict[str, Fit] = {
    "positions.table": _relative,
    "image.positions": _image,
    "text.positions.weight": _text,
    "types.weight": _types,
}
