"""What an answer decoder begins with. D width."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diptych.schema import VlmoConfig

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
