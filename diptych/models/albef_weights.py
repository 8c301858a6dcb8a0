"""Fits stored ALBEF weights to another configuration: two images a text (NLVR2), and the answer decoder of VQA."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from diptych.schema import AlbefConfig

_LAYER = re.compile(r"(?P<before>(?:.*\.)?text\.layers\.)(?P<number>\d+)\.(?P<part>.*)")


def repeat_fusion_layers(state: Mapping[str, Tensor], config: AlbefConfig) -> dict[str, Tensor]:
    """Makes the start of a model with `config.images_per_text` images from one with a single image (§5, NLVR2).

    Each fusion layer is copied for each image. A name may begin with `model.` or the like. A state whose fusion
    layers are repeated already is returned as it is.
    """
    start, times = config.text.fusion_start, config.images_per_text
    layers = {name: match for name in state if (match := _LAYER.fullmatch(name))}
    if max((int(match["number"]) for match in layers.values()), default=0) >= config.text.layers:
        return dict(state)
    repeated: dict[str, Tensor] = {}
    for name, value in state.items():
        number = int(layers[name]["number"]) if name in layers else 0
        if number < start:
            repeated[name] = value
            continue
        before, part = layers[name]["before"], layers[name]["part"]
        copies = 1 if part.startswith("cross.kv.") else times
        for turn in range(copies):
            repeated[f"{before}{start + (number - start) * times + turn}.{part}"] = value
    return repeated


def start_of_answer_decoder(state: Mapping[str, Tensor], config: AlbefConfig) -> dict[str, Tensor]:
    """Starts an answer decoder as the fusion layers, embeddings and word head of a pre-trained state (§5, VQA).

    Names in `state` begin with `model.` or `momentum_encoder.`, returned ones with `head.` or `momentum_head.`. Where
    images and texts differ in width, the projections of cross-attention do not fit and are left out.
    """
    owners, start = {"model": "head", "momentum_encoder": "momentum_head"}, config.text.fusion_start
    fits = config.vision.width == config.text.width
    started: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, _, part = name.partition(".")
        if match := _LAYER.fullmatch(part):
            number = int(match["number"]) - start
            part = f"layers.{number}.{match['part']}" if number >= 0 else ""
            part = "" if match["part"].startswith("cross.kv.") and not fits else part
        elif part.startswith("text.fusion_norm."):
            part = part.replace("text.fusion_norm.", "norm.")
        elif part.startswith("text.embedding."):
            part = part.removeprefix("text.")
        elif not part.startswith("word_head."):
            part = ""
        if owner in owners and part:
            started[f"{owners[owner]}.{part}"] = value
    return started
