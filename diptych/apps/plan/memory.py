"""Memory of a device by part, at the peak of a step."""

from __future__ import annotations

import os

import torch

from diptych.apps.plan.cards import Fleet
from diptych.apps.plan.count import Counted
from diptych.apps.plan.exchange import gathers
from diptych.device import find_device
from diptych.schema import Recipe


def memory_of(recipe: Recipe, counted: Counted, fleet: Fleet, pairs: int, tokens: int) -> dict[str, int]:
    """Counts the bytes of each part at the peak of a step."""
    weights, pieces, processes = counted.weights, recipe.optim.accumulate, fleet.count
    whole = processes * pairs * pieces
    all_gradients = pieces > 1 or processes > 1
    gradients, alive = counted.peak(pairs, whole, all_gradients)
    cut = processes if recipe.run.parallel == "fsdp" else 1
    memory = {
        "weights": weights.weights // cut,
        "gradients": gradients // cut,
        "optimiser": weights.optimizer // cut,
        "momentum encoder": weights.momentum_encoder // cut,
        "queue": weights.queue,
        "pictures and texts": pieces * _input_bytes(recipe, pairs, tokens),
        "activations": alive + (pieces - 1) * counted.states(pairs),
        "gathered from others": _gathered_bytes(recipe, pairs * pieces, processes, tokens),
    }
    if counted.muon:  # After the backward pass, when activations are gone, all gradients and Muon's products are there.
        beyond = weights.gradients + counted.muon.moments[0].total - gradients - memory["activations"]
        memory["Muon's products"] = max(0, beyond)
    if cut > 1:  # FSDP keeps the root gathered, and one block at a time with its gradient
        memory["gathered weights"] = weights.root + 2 * weights.largest_block
    return {name: size for name, size in memory.items() if size}


def _input_bytes(recipe: Recipe, pairs: int, tokens: int) -> int:
    return pairs * (3 * recipe.model.image_size**2 * 4 + 9 * tokens)


def _gathered_bytes(recipe: Recipe, pairs: int, processes: int, tokens: int) -> int:
    """Counts the bytes of gathered data that exist at once."""
    if processes == 1:
        return 0
    return sum(
        size * processes // (processes - 1)
        for size in gathers(recipe, pairs, processes, tokens, forward_only=True).values()
    )


def memory_here(recipe: Recipe) -> int:
    """Reads the memory of this machine's device in bytes."""
    device = find_device(recipe.run.device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
