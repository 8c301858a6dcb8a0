"""Fits stored VLMo weights to another image size, text length or number of images a text, and to an answer decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.nn.embeddings import resize_positions
from diptych.nn.relative import entry_count, resize_table
from diptych.schema import ModelConfig, TaskConfig, VlmoConfig

Fit = Callable[[Tensor, VlmoConfig, VlmoConfig], Tensor]


def fit_state(state: Mapping[str, Tensor], origin: ModelConfig, config: VlmoConfig) -> dict[str, Tensor]:
    """Fits the state of a task with a VLMo of `origin` to `config`. Names begin with `model.` or `momentum_encoder.`.

    Weights that depend on neither image size, text length nor the number of images are kept. Raises ValueError for a
    state of another kind of model, other experts or attention, and for texts longer than learnt absolute positions.
    """
    if not isinstance(origin, VlmoConfig):
        raise ValueError(f"a VLMo starts from a VLMo: this checkpoint's model is {type(origin).__name__}")
    for name in ("experts", "attention"):
        stored, wanted = getattr(origin, name), getattr(config, name)
        if stored != wanted:
            raise ValueError(
                f"model.{name}={wanted} does not start from a checkpoint whose model has {name}={stored}: "
                f"set model.{name}={stored}, or init_from=null"
            )
    fitted = dict(state)
    for name, tensor in state.items():
        owner, _, part = name.partition(".")
        if owner in ("model", "momentum_encoder") and part in _FITS:
            fitted[name] = _FITS[part](tensor, origin, config)
    return fitted


def with_text_rows(
    table: Float[Tensor, "D H"], receiver: Float[Tensor, "E C"], config: VlmoConfig
) -> Float[Tensor, "E C"]:
    """Appends the `receiver`'s rows of texts to a BEiT's relative positions, which are per layer or shared by all."""
    text_rows = entry_count(grid_side(config), config.max_positions) - len(table)
    if text_rows != 2 * config.max_positions + 2:
        raise ValueError(f"{len(table)} relative positions are not those of {config.image_size} px")
    return torch.cat([table.repeat(1, receiver.shape[1] // table.shape[1]), receiver[-text_rows:].to(table)])


def grid_side(config: VlmoConfig) -> int:
    """Returns the number of patches a side."""
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
    """Fits the types of a text and of each of its images; a further image starts as the first (VLMo's NLVR2)."""
    images = range(1, 1 + config.images_per_text)
    return table[[0, *(number if number < len(table) else 1 for number in images)]]


_FITS: dict[str, Fit] = {
    "positions.table": _relative,
    "image.positions": _image,
    "text.positions.weight": _text,
    "types.weight": _types,
}

_BLOCK = re.compile(r"(?P<owner>model|momentum_encoder)\.blocks\.(?P<number>\d+)\.norm1\.weight")
_OWNERS = {"model": "head", "momentum_encoder": "momentum_head"}


def start_of_answer_decoder(state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
    """Starts decoder layer n as the top block `fusion_start` + n. Its cross-attention keeps its initial weights.

    Names in `state` begin with `model.` or `momentum_encoder.`, returned ones with `head.` or `momentum_head.`. The
    decoder must have `norm="pre"` and the model's `norm_eps`. Layer scale is folded into the matrices behind it, so
    that a layer whose cross-attention gives zeros computes what the block computes, but for the relative positions,
    which a decoder does not have. Words are embedded as in the model, before their norm. The word head keeps its
    initial weights.
    """
    started: dict[str, Tensor] = {}
    for name in state:
        if (match := _BLOCK.fullmatch(name)) and int(match["number"]) >= config.fusion_start:
            prefix = f"{match['owner']}.blocks.{match['number']}."
            layer = f"{_OWNERS[match['owner']]}.layers.{int(match['number']) - config.fusion_start}."
            block = {part.removeprefix(prefix): value for part, value in state.items() if part.startswith(prefix)}
            started |= {layer + part: value for part, value in _layer(block).items()}
    for owner, decoder in _OWNERS.items():
        if f"{owner}.text.words.weight" in state:
            started |= {f"{decoder}.{part}": value for part, value in _around_layers(state, owner).items()}
    return started


def _layer(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes a decoder layer's weights from a block's."""
    attention = "text_attention" if "text_attention.qkv.weight" in block else "attention"
    q_bias, v_bias, out = block[f"{attention}.q_bias"], block[f"{attention}.v_bias"], f"{attention}.out"
    ffn = "ffn" if "ffn.fc1.weight" in block else "vl_ffn"
    return {
        "attention_norm.weight": block["norm1.weight"],
        "attention_norm.bias": block["norm1.bias"],
        "attention.qkv.weight": block[f"{attention}.qkv.weight"],
        "attention.qkv.bias": torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]),
        "attention.out.weight": _scaled(block[f"{out}.weight"], block.get("gamma_1")),
        "attention.out.bias": _scaled(block[f"{out}.bias"], block.get("gamma_1")),
        "mlp_norm.weight": block[f"{ffn}.norm.weight"],
        "mlp_norm.bias": block[f"{ffn}.norm.bias"],
        "fc1.weight": block[f"{ffn}.fc1.weight"],
        "fc1.bias": block[f"{ffn}.fc1.bias"],
        "fc2.weight": _scaled(block[f"{ffn}.fc2.weight"], block.get("gamma_2")),
        "fc2.bias": _scaled(block[f"{ffn}.fc2.bias"], block.get("gamma_2")),
    }


def _scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    """Multiplies the rows of a matrix, or a bias, by a layer scale."""
    return weight if gamma is None else weight * gamma.view(-1, *[1] * (weight.ndim - 1))


def _around_layers(state: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Makes the decoder's embeddings, in which the model's two type embeddings are added up, and its final norm."""
    return {
        "embedding.words.weight": state[f"{owner}.text.words.weight"],
        "embedding.types.weight": state[f"{owner}.text.types.weight"] + state[f"{owner}.types.weight"][0],
        "norm.weight": state[f"{owner}.norm.weight"],
        "norm.bias": state[f"{owner}.norm.bias"],
    }


PAIR_HEADS = (
    "pooler", "match_head", "image_proj", "text_proj", "vl_image_proj", "vl_text_proj", "log_scale", "vl_log_scale",
)  # fmt: skip
"""What only training on pairs teaches, beside the VL-FFNs."""


def untrained_parts(stage: TaskConfig, depth: int) -> tuple[str, ...]:
    """Names parts of a VLMo with `depth` blocks that neither this stage of one modality nor an earlier one trains.

    After the vision stage these are the text side, the VL-FFNs and the heads of pairs; after the language stage, the
    VL-FFNs and the heads of pairs. For other tasks there are none.
    """
    if stage.learns_from == "pairs":
        return ()
    vl = tuple(f"blocks.{number}.vl_ffn" for number in range(depth))
    if stage.learns_from == "texts":
        return (*PAIR_HEADS, *vl)
    language = tuple(
        f"blocks.{number}.{part}" for number in range(depth) for part in ("language_ffn", "text_attention")
    )
    return ("text", "word_head", *language, *PAIR_HEADS, *vl)
