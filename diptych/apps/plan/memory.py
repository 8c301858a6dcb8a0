"""Memory of a device by part, at the worst moment of a step."""

from __future__ import annotations

import os

import torch

from diptych.apps.plan.cards import Fleet
from diptych.apps.plan.count import Counted
from diptych.apps.plan.exchange import gathers
from diptych.device import find_device
from diptych.schema import Recipe


def memory_of(recipe: Recipe, counted: Counted, fleet: Fleet, pairs: int, tokens: int) -> dict[str, int]:
    """Bytes by part at the worst moment of a step."""
    weights, pieces, processes = counted.weights, recipe.optim.accumulate, fleet.count
    whole = processes * pairs * pieces
    all_gradients = pieces > 1 or processes > 1
    gradients, alive = counted.peak(pairs, whole, all_gradients)
    cut = processes if recipe.run.parallel == "fsdp" else 1
    memory = {
        "weights": weights.weights // cut,
        "gradients": gradients // cut,
        "optimiser": weights.optimizer // cut,
        "teacher": weights.teacher // cut,
        "queue": weights.queue,
        "pictures and texts": pieces * _input_bytes(recipe, pairs, tokens),
        "activations": alive + (pieces - 1) * counted.states(pairs),
        "gathered from others": _gathered_bytes(recipe, pairs * pieces, processes, tokens),
    }
    if cut > 1:  # FSDP: the root stays gathered for the step; of the blocks one is, and its gradient before it is cut
        memory["gathered weights"] = weights.root + 2 * weights.largest_block
    return {name: size for name, size in memory.items() if size}


def _input_bytes(recipe: Recipe, pairs: int, tokens: int) -> int:
    return pairs * (3 * recipe.model.image_size**2 * 4 + 9 * tokens)


def _gathered_bytes(recipe: Recipe, pairs: int, processes: int, tokens: int) -> int:
    """What of all processes is there at once."""
    if processes == 1:
        return 0
    return sum(
        size * processes // (processes - 1)
        for size in gathers(recipe, pairs, processes, tokens, forward_only=True).values()
    )


def memory_here(recipe: Recipe) -> int:
    """Bytes of this machine's device."""
    device = find_device(recipe.run.device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
