"""The number of parameters that each use of a model depends on, which are those with a gradient of its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diptych.apps.report.compared import Parameters
from diptych.predict import Predictor
from diptych.task import Model
from diptych.types import Texts


def parameters(predictors: Sequence[Predictor | None]) -> tuple[Parameters, ...]:
    """Counts the parameters that a picture alone, a text alone and a pair depend on, and all of them."""
    counts = [None if predictor is None else _counts(predictor) for predictor in predictors]
    names = next((list(by_name) for by_name in counts if by_name), [])
    return tuple(Parameters(name, tuple(by_name[name] if by_name else None for by_name in counts)) for name in names)


def _counts(predictor: Predictor) -> dict[str, int]:
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
    """Sums the sizes of all parameters that the result of a call depends on. Each parameter counts whole."""
    parameters = list(model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(call().sum(), parameters, allow_unused=True)
    finally:
        for parameter, before in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(before)
    pairs = zip(parameters, gradients, strict=True)
    return sum(parameter.numel() for parameter, gradient in pairs if gradient is not None)
