"""Times the optimiser's step alone, Muon beside AdamW: `python -m benchmarks optim`

Three optimisers move the weights of the same task by random gradients, in alternating rounds: AdamW for all of them;
ours, which is `optim.kind=muon`; and torch's Muon for the same matrices (fused projections cut into theirs) with AdamW
for the others. `ours bf16` is the one of `run.precision=bf16`. It is slow on processors that only emulate bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from diptych import catalog
from diptych.apps.plan.count import plain_tokenizer
from diptych.schema import OptimConfig, Recipe
from diptych.train.flops import counted
from diptych.train.optim import build_optimizer, parameter_groups

RECIPES = ("albef_tiny", "vlmo_tiny")
THREADS = (1, 2)
ROUNDS = 7


def ours(recipe: Recipe, kind: Any, precision: str = "fp32", device: str = "cpu") -> Callable[[], object]:
    """Builds the recipe's task with random gradients. Returns the step of its optimiser."""
    task = catalog.build_task(recipe, plain_tokenizer(recipe)).to(device)
    _fill_gradients([weight for weight in task.parameters() if weight.requires_grad])
    return build_optimizer(task, replace(recipe.optim, kind=kind), precision=precision).step


def torchs(recipe: Recipe) -> Callable[[], object]:
    """Returns the step of torch's Muon for the matrices that ours trains, and of AdamW for the other weights."""
    task = catalog.build_task(recipe, plain_tokenizer(recipe))
    groups = parameter_groups(task, OptimConfig.weight_decay, "repaired", muon=True)
    matrices = [
        torch.nn.Parameter(piece.detach().clone())
        for group in groups
        for weight in group["params"]
        if "muon_pieces" in group
        for piece in weight.chunk(group["muon_pieces"])
    ]
    others = [weight for group in groups if "muon_pieces" not in group for weight in group["params"]]
    _fill_gradients([*matrices, *others])
    parts = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(others, fused=True)
    return lambda: [part.step() for part in parts]


def _fill_gradients(weights: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.device)


def main() -> None:
    """Prints milliseconds of a step, and ratios, for each recipe and number of threads."""
    for name in RECIPES:
        recipe = catalog.find_recipe(name)
        jobs = {
            "adamw": ours(recipe, "adamw"),
            "ours": ours(recipe, "muon"),
            "torch": torchs(recipe),
            "ours bf16": ours(recipe, "muon", "bf16"),
        }
        work = counted(jobs["ours"])[0], counted(jobs["torch"])[0]
        print(f"{name}: {work[0] / 1e9:.1f} GFLOP a step of ours, {work[1] / 1e9:.1f} of torch's")
        for threads in THREADS:
            torch.set_num_threads(threads)
            times = machine.interleaved(jobs, ROUNDS)
            said = ", ".join(f"{job} {1000 * times[job].seconds:.1f} ms" for job in times)
            print(f"  {threads} threads: {said}")
            torch_by, adamw_by = (machine.ratio(times[job], times["ours"]) for job in ("torch", "adamw"))
            print(f"    ours is {torch_by:.2f}x as fast as torch's Muon, and takes {1 / adamw_by:.1f}x AdamW's time")


if __name__ == "__main__":
    main()
