"""The plan of a recipe on some devices: the counted step, the devices' rates and their communication combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from diptych.apps.plan.cards import PER_MACHINE, Fleet
from diptych.apps.plan.count import Counted, count, plannable
from diptych.apps.plan.exchange import exchanged
from diptych.apps.plan.ledger import CONTRAST, LOSSES, Phase
from diptych.apps.plan.memory import memory_here, memory_of
from diptych.apps.plan.rates import Rates, measured, of_card
from diptych.device import find_device
from diptych.schema import AlbefConfig, Recipe, VlmoConfig
from diptych.train.optim import check_optimizer

ADAM = 28
"""Bytes that AdamW moves for a parameter: weight, gradient and both moments read, all but the gradient written."""
MUON = 32
"""Bytes that Muon's additions in place move for a parameter. Its products and their bytes are counted."""
NORM, AVERAGE = 4, 12
"""Bytes for a parameter to compute the gradient's norm, and to update the momentum encoder from the model."""
AFTER = 10**9
"""A step after all starts that a recipe can set."""


@dataclass(frozen=True)
class Wish:
    """The wishes of a user beside the recipe."""

    fleet: Fleet
    tokens: int | None = None
    """Tokens of a text on average; None for as many as `data.max_tokens` allows."""
    pairs: int | None = None
    """Pairs of the training data."""
    efficiency: float | None = None
    tf32: bool = False
    price: float | None = None
    """Price of a device for an hour."""
    network: float | None = None
    """Rate of a device to other machines in bytes/s, in one direction."""


@dataclass(frozen=True)
class Part:
    """FLOPs of a part of the model in a device's step, and its seconds with all other operations."""

    name: str
    forward: int
    backward: int
    recompute: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The plan. Bytes, FLOPs and seconds are of one device and one optimiser step, unless a field says otherwise."""

    recipe: str
    devices: str
    count: int
    pairs: int
    """Pairs of a device in one piece."""
    pieces: int
    tokens: int
    parameters: Mapping[str, int]
    memory: Mapping[str, int]
    total: int
    capacity: int
    parts: tuple[Part, ...]
    seconds: Mapping[str, float]
    """Seconds of a step by their use."""
    step: float
    exchanged: Mapping[str, int]
    """Bytes that a device sends in a step."""
    checkpoint: int
    """Bytes of a checkpoint, of all devices together."""
    checkpoint_every: float
    """Seconds from checkpoint to checkpoint."""
    pictures: float
    """Pictures a second that the loader must give each device."""
    steps: int | None
    """Steps of the whole training; None where the number of pairs is not known."""
    total_seconds: float | None
    cost: float | None
    bottleneck: str
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity

    @property
    def flops(self) -> int:
        return sum(part.forward + part.backward + part.recompute for part in self.parts)


def plan(recipe: Recipe, wish: Wish) -> Plan:
    """Plans a recipe. Raises ValueError for a batch that devices cannot share, or an unknown network."""
    check_optimizer(recipe)
    recipe, fleet = plannable(recipe), wish.fleet
    pairs = _share(recipe, fleet)
    _network(fleet, wish)
    tokens = wish.tokens or recipe.data.max_tokens
    rates = rates_of(recipe, wish, pairs, tokens)
    counted = count(recipe, pairs, tokens, AFTER)
    step_plan = assemble(recipe, wish, counted, rates, tokens)
    whole = _duration(recipe, wish, step_plan, rates, tokens)
    cost = None if wish.price is None or whole is None else whole / 3600 * fleet.count * wish.price
    full = replace(step_plan, total_seconds=whole, cost=cost)
    return full if full.fits else replace(full, advice=advise(recipe, wish, rates, tokens))


def rates_of(recipe: Recipe, wish: Wish, pairs: int, tokens: int) -> Rates:
    """Finds the rates of one device, by its data sheet or by measuring this machine."""
    if wish.fleet.card is not None:
        return of_card(wish.fleet.card, recipe.run.precision, wish.efficiency, wish.tf32)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    return measured(
        recipe.run.precision, _attention(recipe, pairs, tokens), wish.efficiency, find_device(recipe.run.device)
    )


def assemble(recipe: Recipe, wish: Wish, counted: Counted, rates: Rates, tokens: int) -> Plan:
    """Assembles the plan of a step from its counts."""
    fleet, pieces = wish.fleet, recipe.optim.accumulate
    pairs = _share(recipe, fleet)
    memory = memory_of(recipe, counted, fleet, pairs, tokens)
    parts = parts_of(recipe, counted, rates, pairs, fleet.count)
    sent = exchanged(recipe, counted, fleet.count, pairs, tokens)
    seconds = _seconds(recipe, wish, counted, rates, parts, sent)
    weights, step = counted.weights, sum(seconds.values())
    steps = _steps(recipe, wish)
    return Plan(
        recipe=recipe.name,
        devices=str(fleet),
        count=fleet.count,
        pairs=pairs,
        pieces=pieces,
        tokens=tokens,
        parameters={
            "in all": weights.parameters,
            "trained": weights.trained,
            "of the momentum encoder": weights.momentum_encoder // 4,
        },
        memory=memory,
        total=sum(memory.values()),
        capacity=fleet.card.memory if fleet.card else memory_here(recipe),
        parts=parts,
        seconds=seconds,
        step=step,
        exchanged=sent,
        checkpoint=weights.weights + weights.momentum_encoder + weights.queue + weights.optimizer,
        checkpoint_every=recipe.run.checkpoint_every * step,
        pictures=pairs * pieces / step,
        steps=steps,
        total_seconds=None,
        cost=None,
        bottleneck=_bottleneck(seconds),
        advice=(),
        notes=_notes(recipe, wish, rates, tokens),
    )


# --------------------------------------------------------------------------- time


def parts_of(recipe: Recipe, counted: Counted, rates: Rates, pairs: int, processes: int) -> tuple[Part, ...]:
    """Computes FLOPs and seconds of each part. Several pieces compute all but momentum encoder and losses twice."""
    pieces = recipe.optim.accumulate
    flops: dict[tuple[str, Phase], int] = {}
    seconds: dict[str, float] = {}
    for (part, phase, name), total in counted.sums(pairs, processes * pairs * pieces).items():
        again = 2 if pieces > 1 and phase == "forward" and part not in ("momentum encoder", LOSSES, CONTRAST) else 1
        flops[part, phase] = flops.get((part, phase), 0) + pieces * total.flops
        if again == 2:
            flops[part, "recompute"] = flops.get((part, "recompute"), 0) + pieces * total.flops
        seconds[part] = seconds.get(part, 0.0) + pieces * again * rates.seconds(name, total)
    ordered = sorted(seconds, key=lambda part: -seconds[part])
    return tuple(
        Part(
            part,
            forward=flops.get((part, "forward"), 0),
            backward=flops.get((part, "backward"), 0),
            recompute=flops.get((part, "recompute"), 0),
            seconds=seconds[part],
        )
        for part in ordered
    )


def _seconds(
    recipe: Recipe, wish: Wish, counted: Counted, rates: Rates, parts: tuple[Part, ...], sent: Mapping[str, int]
) -> dict[str, float]:
    """Splits the seconds of a step by their use. The backward pass hides the exchange of gradients, but no gather."""
    computing = sum(part.seconds for part in parts)
    products = sum(part.forward + part.backward + part.recompute for part in parts) / rates.products
    weights, cut = counted.weights, wish.fleet.count if recipe.run.parallel == "fsdp" else 1
    moved = (ADAM + NORM) * weights.trained + (MUON - ADAM) * weights.by_muon
    moved = (moved + AVERAGE * weights.momentum_encoder // 4) // cut
    muon = counted.muon.sums.items() if counted.muon else ()
    seconds = {
        "matrix products": min(products, computing),
        "other operations": max(0.0, computing - products),
        "optimiser and momentum encoder": moved / rates.traffic_at(12 << 20)
        + sum(rates.seconds(name, total) for (_, _, name), total in muon),
    }
    if sent:
        link = _link(wish)
        hidden = computing * _share_of_backward(parts)
        shared = next(iter(sent.values())) / link
        seconds["exchange of gradients" if recipe.run.parallel == "ddp" else "exchange of weights and gradients"] = max(
            0.0, shared - (hidden if recipe.run.parallel == "ddp" else computing)
        )
        seconds["gathering from others"] = sum(list(sent.values())[1:]) / link
    return seconds


def _share_of_backward(parts: tuple[Part, ...]) -> float:
    whole = sum(part.forward + part.backward + part.recompute for part in parts)
    return sum(part.backward + part.recompute for part in parts) / max(whole, 1)


def _link(wish: Wish) -> float:
    """Finds the rate between devices in bytes/s, which is the slowest link of their ring."""
    card = wish.fleet.card
    assert card is not None, "this machine is one device"
    return card.link if wish.fleet.count <= PER_MACHINE else _network(wish.fleet, wish)


def _network(fleet: Fleet, wish: Wish) -> float:
    if fleet.count <= PER_MACHINE:
        return 0.0
    assert fleet.card is not None
    rate = wish.network or fleet.card.network
    if rate is None:
        raise ValueError(
            f"{fleet} are several machines of {PER_MACHINE}, and {fleet.card.name} has no network of its vendor's: "
            "give the rate between them in GB/s of a device, in one direction, as in --network 12.5"
        )
    return rate


def _bottleneck(seconds: Mapping[str, float]) -> str:
    name = max(seconds, key=seconds.__getitem__)
    return f"{name}: {seconds[name] / sum(seconds.values()):.0%} of a step"


# --------------------------------------------------------------------------- the whole training


def _share(recipe: Recipe, fleet: Fleet) -> int:
    """Counts the pairs of a device in one piece. Raises ValueError where devices cannot share the batch equally."""
    pairs, rest = divmod(recipe.run.batch_size, fleet.count)
    if rest or not pairs:
        near = max(1, round(recipe.run.batch_size / fleet.count)) * fleet.count
        raise ValueError(
            f"run.batch_size={recipe.run.batch_size} cannot be shared equally by {fleet.count} devices: "
            f"set run.batch_size={near}, or take another number of devices"
        )
    return pairs


def _steps(recipe: Recipe, wish: Wish) -> int | None:
    run, pairs = recipe.run, wish.pairs or (recipe.data.scenes.count if recipe.data.source == "scenes" else None)
    if run.steps is not None:
        return run.steps
    return None if pairs is None else run.epochs * (pairs // run.batch_size // recipe.optim.accumulate)


def beginnings(recipe: Recipe) -> list[int]:
    """Lists the steps before which less is computed (`fuse_start`, `momentum_start`), in order."""
    starts = {getattr(recipe.task, name, 0) for name in ("fuse_start", "momentum_start")}
    return sorted(step for step in starts if step > 0)


def _duration(recipe: Recipe, wish: Wish, full: Plan, rates: Rates, tokens: int) -> float | None:
    """Computes the seconds of the training with its cheaper beginnings, without validations and checkpoints."""
    if full.steps is None:
        return None
    seconds, before = 0.0, 0
    for end in beginnings(recipe):
        end = min(end, full.steps)
        if end > before:
            counted = count(recipe, full.pairs, tokens, before)
            seconds += (end - before) * assemble(recipe, wish, counted, rates, tokens).step
            before = end
    return seconds + (full.steps - before) * full.step


# --------------------------------------------------------------------------- advice and notes


def advise(recipe: Recipe, wish: Wish, rates: Rates, tokens: int) -> tuple[str, ...]:
    """Lists changes that need less memory, the mildest first, with their plans, until one fits."""
    lines: list[str] = []
    for changes, changed in alternatives(recipe, wish.fleet):
        counted = count(changed, _share(changed, wish.fleet), tokens, AFTER)
        other = assemble(changed, wish, counted, rates, tokens)
        verdict = "fits" if other.fits else "does not fit yet"
        lines.append(f"{changes}: {other.total / 2**30:.1f} GiB, {other.step:.3g} s a step: {verdict}")
        if other.fits and len(lines) >= 3:
            break
    return tuple(lines)


def alternatives(recipe: Recipe, fleet: Fleet) -> list[tuple[str, Recipe]]:
    """Lists recipes that compute the same step with less memory, with the fields that they change."""
    run, optim = recipe.run, recipe.optim
    saving = {"run.activation_checkpointing=true": replace(recipe, run=replace(run, activation_checkpointing=True))}
    recipes = [] if run.activation_checkpointing else list(saving.items())
    if fleet.count > 1 and run.parallel == "ddp" and optim.kind == "adamw":  # Muon needs whole matrices
        recipes.append(("run.parallel=fsdp", replace(recipe, run=replace(run, parallel="fsdp"))))
    pieces = 2
    while run.batch_size % (pieces * fleet.count) == 0 and pieces <= 64:
        cut = replace(run, batch_size=run.batch_size // pieces)
        more = replace(optim, accumulate=optim.accumulate * pieces)
        changes = f"run.batch_size={cut.batch_size} optim.accumulate={more.accumulate}"
        recipes.append((changes, replace(recipe, run=cut, optim=more)))
        pieces *= 2
    return recipes


def _notes(recipe: Recipe, wish: Wish, rates: Rates, tokens: int) -> tuple[str, ...]:
    """Lists the sources of the numbers, and what they leave out."""
    run, card = recipe.run, wish.fleet.card
    notes = list(rates.origin)
    source = "as given" if wish.tokens else "data.max_tokens; give their average as --tokens N"
    notes.append(f"texts of {tokens} tokens ({source})")
    if run.compile:
        notes.append("run.compile fuses operations between products: the plan ignores it and is an upper bound")
    if card and card.half_kind != "bf16" and run.precision == "bf16":
        notes.append(f"{card.name} multiplies fp16, not bf16: the plan takes its fp16 peak")
    if card:
        notes.append("activations are those of torch's CPU kernels; a card's driver and fragmentation take more")
    return tuple(notes)


def _attention(recipe: Recipe, pairs: int, tokens: int) -> tuple[int, int, int, int]:
    """Gives groups, heads, length and head width of the image encoder's attention, for 64 pictures at most."""
    model: Any = recipe.model
    side = (model.image_size // model.patch_size) if isinstance(model, VlmoConfig) else None
    if isinstance(model, AlbefConfig):
        vision = model.vision
        return (
            min(pairs, 64),
            vision.heads,
            (vision.image_size // vision.patch_size) ** 2 + 1,
            vision.width // vision.heads,
        )
    if side is not None:
        return min(pairs, 64), model.heads, side**2 + 1, model.width // model.heads
    return 1, 1, 64, 64
