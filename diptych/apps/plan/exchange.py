"""Bytes that the processes of a recipe exchange in a step, by the formulas of `communication`."""

from __future__ import annotations

from diptych.apps.plan import communication
from diptych.apps.plan.count import Counted
from diptych.schema import AlbefConfig, Recipe, VlmoConfig


def exchanged(recipe: Recipe, counted: Counted, processes: int, pairs: int, tokens: int) -> dict[str, int]:
    """Counts the bytes that a process sends in a step."""
    if processes == 1:
        return {}
    weights, pieces = counted.weights, recipe.optim.accumulate
    if recipe.run.parallel == "fsdp":
        shared = communication.fsdp(weights.weights, weights.gradients, weights.momentum_encoder, processes, pieces)
        sent = {"weights and gradients (fsdp)": shared}
    else:
        sent = {"gradients (ddp)": communication.ddp(weights.gradients, processes)}
    return sent | gathers(recipe, pairs * pieces, processes, tokens)


def gathers(recipe: Recipe, pairs: int, processes: int, tokens: int, forward_only: bool = False) -> dict[str, int]:
    """Counts the bytes that a process sends about its `pairs` of a step to the others."""
    contrast, model = recipe.task.contrast, recipe.model
    if contrast is None:
        return {}
    assert isinstance(model, AlbefConfig | VlmoConfig)
    embedding = model.embed_dim if isinstance(model, AlbefConfig) else model.width
    with_gradient = not (contrast.keys == "momentum" or forward_only)
    gathered = {"features": communication.features(pairs, embedding, processes, contrast.branches, with_gradient)}
    if contrast.fuses and contrast.negatives == "all":
        if isinstance(model, VlmoConfig):
            gathered["pictures and texts"] = communication.pixels(pairs, model.image_size, tokens, processes)
        else:
            rows = (model.image_size // model.vision.patch_size) ** 2 + 1 + tokens
            whole = processes * pairs * rows * model.width * communication.FP32
            sent = communication.all_gather(whole, processes)
            gathered["image and text tokens"] = (
                sent if forward_only else communication.tokens(pairs, rows, model.width, processes)
            )
    return gathered
