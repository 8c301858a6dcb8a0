"""A VLMo's weights made to fit another configuration: picture size, text length, pictures a text."""

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


_BLOCK = re.compile(r"(?P<owner>model|teacher)\.blocks\.(?P<number>\d+)\.norm1\.weight")
_OWNERS = {"model": "head", "teacher": "teacher_head"}


def start_of_answer_decoder(state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
    """Decoder layer n begins as the vision-language block `fusion_start` + n; its cross-attention is fresh.

    Names in `state` begin with `model.` or `teacher.`, those returned with `head.` or `teacher_head.`. For a decoder
    with `norm="pre"` and the model's `norm_eps`: layer scale is folded into the matrices behind it, so that a layer
    whose cross-attention is silent gives what the block gives, but for the relative positions, which a decoder does not
    have. It reads words as the model does, before their norm; where it predicts words it is fresh.
    """
    taken: dict[str, Tensor] = {}
    for name in state:
        if (found := _BLOCK.fullmatch(name)) and int(found["number"]) >= config.fusion_start:
            block = f"{found['owner']}.blocks.{found['number']}."
            layer = f"{_OWNERS[found['owner']]}.layers.{int(found['number']) - config.fusion_start}."
            own = {part.removeprefix(block): value for part, value in state.items() if part.startswith(block)}
            taken |= {layer + part: value for part, value in _layer(own).items()}
    for owner, decoder in _OWNERS.items():
        if f"{owner}.text.words.weight" in state:
            taken |= {f"{decoder}.{part}": value for part, value in _around(state, owner).items()}
    return taken


def _layer(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder layer's weights from a block's."""
    attention = "text_attention" if "text_attention.qkv.weight" in block else "attention"
    q_bias, v_bias, out = block[f"{attention}.q_bias"], block[f"{attention}.v_bias"], f"{attention}.out"
    expert = "experts.all" if "experts.all.fc1.weight" in block else "experts.fusion"
    last = f"{expert}.fc2"
    return {
        "attention_norm.weight": block["norm1.weight"],
        "attention_norm.bias": block["norm1.bias"],
        "attention.qkv.weight": block[f"{attention}.qkv.weight"],
        "attention.qkv.bias": torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]),
        "attention.out.weight": _scaled(block[f"{out}.weight"], block.get("gamma_1")),
        "attention.out.bias": _scaled(block[f"{out}.bias"], block.get("gamma_1")),
        "mlp_norm.weight": block[f"{expert}.norm.weight"],
        "mlp_norm.bias": block[f"{expert}.norm.bias"],
        "fc1.weight": block[f"{expert}.fc1.weight"],
        "fc1.bias": block[f"{expert}.fc1.bias"],
        "fc2.weight": _scaled(block[f"{last}.weight"], block.get("gamma_2")),
        "fc2.bias": _scaled(block[f"{last}.bias"], block.get("gamma_2")),
    }


def _scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    """The rows of a matrix, or a bias, times a layer scale."""
    return weight if gamma is None else weight * gamma.view(-1, *[1] * (weight.ndim - 1))


def _around(state: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Words as they enter the transformer, where both tables of types are added to them, and the last norm."""
    return {
        "embedding.words.weight": state[f"{owner}.text.words.weight"],
        "embedding.types.weight": state[f"{owner}.text.types.weight"] + state[f"{owner}.types.weight"][0],
        "norm.weight": state[f"{owner}.norm.weight"],
        "norm.bias": state[f"{owner}.norm.bias"],
    }


HEADS = (
    "pooler", "match_head", "image_proj", "text_proj", "vl_image_proj", "vl_text_proj", "log_scale", "vl_log_scale",
)  # fmt: skip


def untrained_parts(stage: TaskConfig, depth: int) -> tuple[str, ...]:
    """Parts of a VLMo of so many layers that a stage does not train, nor one before it; none for other tasks.

    Vision: the text side. Both: the vision-language experts, and the heads on what these give.
    """
    if stage.learns_from == "pairs":
        return ()
    fusion = tuple(f"blocks.{number}.experts.fusion" for number in range(depth))
    if stage.learns_from == "texts":
        return (*HEADS, *fusion)
    texts = tuple(f"blocks.{number}.{part}" for number in range(depth) for part in ("experts.text", "text_attention"))
    return ("text", "word_head", *texts, *HEADS, *fusion)
