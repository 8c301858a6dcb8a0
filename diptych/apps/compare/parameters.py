"""How many parameters each use of a model depends on: those that its result has a gradient for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diptych.apps.report.compared import Parameters
from diptych.predict import Predictor
from diptych.task import Model
from diptych.types import Texts


def parameters(predictors: Sequence[Predictor | None]) -> tuple[Parameters, ...]:
    """Rows: a picture alone, a text alone, a pair, all that the model has."""
    counted = [None if one is None else _counted(one) for one in predictors]
    names = next((list(one) for one in counted if one), [])
    return tuple(Parameters(name, tuple(None if one is None else one[name] for one in counted)) for name in names)


def _counted(predictor: Predictor) -> dict[str, int]:
    model, texts = predictor.model, predictor.texts(["a text"])
    size = predictor.recipe.model.image_size
    pixels = torch.zeros(1, 3, size, size, device=predictor.device)
    words = Texts(texts.input_ids.to(predictor.device), texts.attention_mask.to(predictor.device))
    first = torch.zeros(1, dtype=torch.long, device=predictor.device)

    def pair() -> Tensor:
        state = model.text_state(words), model.image_state(pixels)
        return model.match_logits(model.fuse(*state, text_index=first, image_index=first))

    return {
        "a picture alone": reached(model, lambda: model.embed_image(model.image_state(pixels))["main"]),
        "a text alone": reached(model, lambda: model.embed_text(model.text_state(words))["main"]),
        "a pair": reached(model, pair),
        "all": sum(parameter.numel() for parameter in model.parameters()),
    }


def reached(model: Model, call: Callable[[], Tensor]) -> int:
    """The size of all parameters, each counted whole, that the result of a call depends on."""
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    own = list(model.parameters())
    try:
        for parameter in own:
            parameter.requires_grad_(True)
        found = torch.autograd.grad(call().sum(), own, allow_unused=True)
    finally:
        for parameter, before in zip(own, trainable, strict=True):
            parameter.requires_grad_(before)
    return sum(parameter.numel() for parameter, slope in zip(own, found, strict=True) if slope is not None)
