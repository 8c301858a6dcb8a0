"""A recipe's plan: what `count` found, `Rates` and `communication` put together for some devices."""

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

ADAM = 28
"""Bytes that AdamW moves a parameter: weight, gradient and both moments read, all but the gradient written."""
NORM, AVERAGE = 4, 12
"""The gradient read for its norm; teacher and student read, teacher written."""
AFTER = 10**9
"""A step behind every beginning that a recipe can set."""


@dataclass(frozen=True)
class Wish:
    """What a user asks beside the recipe."""

    fleet: Fleet
    tokens: int | None = None
    """Of a text on average; None: as many as `data.max_tokens` allows."""
    pairs: int | None = None
    """Of the training data."""
    efficiency: float | None = None
    tf32: bool = False
    price: float | None = None
    """Of a device for an hour."""
    network: float | None = None
    """Bytes/s of a device to other machines, in one direction."""


@dataclass(frozen=True)
class Part:
    """FLOPs of a device and step, and its seconds with all that is not a product."""

    name: str
    forward: int
    backward: int
    recompute: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Bytes, FLOPs and seconds are of one device and one optimiser step, unless said otherwise."""

    recipe: str
    devices: str
    count: int
    pairs: int
    """Of a device, in one piece."""
    pieces: int
    tokens: int
    parameters: Mapping[str, int]
    memory: Mapping[str, int]
    total: int
    capacity: int
    parts: tuple[Part, ...]
    seconds: Mapping[str, float]
    """Of a step, by what it is spent on."""
    step: float
    exchanged: Mapping[str, int]
    """Bytes that a device sends in a step."""
    checkpoint: int
    """Bytes, of all devices together."""
    checkpoint_every: float
    """Seconds."""
    pictures: float
    """A second that each device must be given."""
    steps: int | None
    """Of the whole training; None: the number of pairs is not known."""
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
    """Raises ValueError where the batch cannot be shared out, or the network between machines is not known."""
    recipe, fleet = plannable(recipe), wish.fleet
    pairs = _share(recipe, fleet)
    _network(fleet, wish)
    tokens = wish.tokens or recipe.data.max_tokens
    rates = rates_of(recipe, wish, pairs, tokens)
    counted = count(recipe, pairs, tokens, AFTER)
    found = assemble(recipe, wish, counted, rates, tokens)
    whole = _duration(recipe, wish, found, rates, tokens)
    cost = None if wish.price is None or whole is None else whole / 3600 * fleet.count * wish.price
    found = replace(found, total_seconds=whole, cost=cost)
    return found if found.fits else replace(found, advice=advise(recipe, wish, rates, tokens))


def rates_of(recipe: Recipe, wish: Wish, pairs: int, tokens: int) -> Rates:
    """Of one device."""
    if wish.fleet.card is not None:
        return of_card(wish.fleet.card, recipe.run.precision, wish.efficiency, wish.tf32)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    return measured(
        recipe.run.precision, _attention(recipe, pairs, tokens), wish.efficiency, find_device(recipe.run.device)
    )


def assemble(recipe: Recipe, wish: Wish, counted: Counted, rates: Rates, tokens: int) -> Plan:
    """The plan of a step in the state that the training reaches."""
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
        parameters={"in all": weights.parameters, "trained": weights.trained, "of the teacher": weights.teacher // 4},
        memory=memory,
        total=sum(memory.values()),
        capacity=fleet.card.memory if fleet.card else memory_here(recipe),
        parts=parts,
        seconds=seconds,
        step=step,
        exchanged=sent,
        checkpoint=weights.weights + weights.teacher + weights.queue + weights.optimizer,
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
    """FLOPs and seconds of a step by part. In several pieces, all but teacher and losses are computed again."""
    pieces = recipe.optim.accumulate
    flops: dict[tuple[str, Phase], int] = {}
    seconds: dict[str, float] = {}
    for (part, phase, name), total in counted.sums(pairs, processes * pairs * pieces).items():
        again = 2 if pieces > 1 and phase == "forward" and part not in ("teacher", LOSSES, CONTRAST) else 1
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
    """Of a step by what it is spent on. Gradients travel while the way back is computed; gathers keep all waiting."""
    computing = sum(part.seconds for part in parts)
    products = sum(part.forward + part.backward + part.recompute for part in parts) / rates.products
    weights, cut = counted.weights, wish.fleet.count if recipe.run.parallel == "fsdp" else 1
    moved = ((ADAM + NORM) * weights.trained + AVERAGE * weights.teacher // 4) // cut
    found = {
        "matrix products": min(products, computing),
        "other operations": max(0.0, computing - products),
        "optimiser and teacher": moved / rates.traffic_at(12 << 20),
    }
    if sent:
        link = _link(wish)
        hidden = computing * _share_of_backward(parts)
        shared = next(iter(sent.values())) / link
        found["exchange of gradients" if recipe.run.parallel == "ddp" else "exchange of weights and gradients"] = max(
            0.0, shared - (hidden if recipe.run.parallel == "ddp" else computing)
        )
        found["gathering from others"] = sum(list(sent.values())[1:]) / link
    return found


def _share_of_backward(parts: tuple[Part, ...]) -> float:
    whole = sum(part.forward + part.backward + part.recompute for part in parts)
    return sum(part.backward + part.recompute for part in parts) / max(whole, 1)


def _link(wish: Wish) -> float:
    """Bytes/s between devices: the slowest on the way of a ring."""
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
            "say what connects them, in GB/s of a device in one direction, as in --network 12.5"
        )
    return rate


def _bottleneck(seconds: Mapping[str, float]) -> str:
    name = max(seconds, key=lambda one: seconds[one])
    return f"{name}: {seconds[name] / sum(seconds.values()):.0%} of a step"


# --------------------------------------------------------------------------- the whole training


def _share(recipe: Recipe, fleet: Fleet) -> int:
    """Pairs of a device in one piece. Raises ValueError."""
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
    """Steps before which less is computed (`fuse_start`, `momentum_start`), in order."""
    found = {getattr(recipe.task, name, 0) for name in ("fuse_start", "momentum_start")}
    return sorted(step for step in found if step > 0)


def _duration(recipe: Recipe, wish: Wish, found: Plan, rates: Rates, tokens: int) -> float | None:
    """Seconds of the training, its cheaper beginnings included; without validations and checkpoints."""
    if found.steps is None:
        return None
    whole, before = 0.0, 0
    for end in beginnings(recipe):
        end = min(end, found.steps)
        if end > before:
            counted = count(recipe, found.pairs, tokens, before)
            whole += (end - before) * assemble(recipe, wish, counted, rates, tokens).step
            before = end
    return whole + (found.steps - before) * found.step


# --------------------------------------------------------------------------- what is said beside it


def advise(recipe: Recipe, wish: Wish, rates: Rates, tokens: int) -> tuple[str, ...]:
    """Changes that lower the memory, the mildest first, with what the plan is then; until one fits."""
    found = []
    for said, changed in alternatives(recipe, wish.fleet):
        counted = count(changed, _share(changed, wish.fleet), tokens, AFTER)
        other = assemble(changed, wish, counted, rates, tokens)
        verdict = "fits" if other.fits else "does not fit yet"
        found.append(f"{said}: {other.total / 2**30:.1f} GiB, {other.step:.3g} s a step: {verdict}")
        if other.fits and len(found) >= 3:
            break
    return tuple(found)


def alternatives(recipe: Recipe, fleet: Fleet) -> list[tuple[str, Recipe]]:
    """Cheaper ways to the same step."""
    run, optim = recipe.run, recipe.optim
    saving = {"run.activation_checkpointing=true": replace(recipe, run=replace(run, activation_checkpointing=True))}
    found = [] if run.activation_checkpointing else list(saving.items())
    if fleet.count > 1 and run.parallel == "ddp":
        found.append(("run.parallel=fsdp", replace(recipe, run=replace(run, parallel="fsdp"))))
    pieces = 2
    while run.batch_size % (pieces * fleet.count) == 0 and pieces <= 64:
        cut = replace(run, batch_size=run.batch_size // pieces)
        more = replace(optim, accumulate=optim.accumulate * pieces)
        said = f"run.batch_size={cut.batch_size} optim.accumulate={more.accumulate}"
        found.append((said, replace(recipe, run=cut, optim=more)))
        pieces *= 2
    return found


def _notes(recipe: Recipe, wish: Wish, rates: Rates, tokens: int) -> tuple[str, ...]:
    """Where the numbers come from, and what they leave out."""
    run, card = recipe.run, wish.fleet.card
    found = list(rates.origin)
    given = "as given" if wish.tokens else "data.max_tokens; --tokens N for what they have on average"
    found.append(f"texts of {tokens} tokens ({given})")
    if run.compile:
        found.append("run.compile fuses operations between products: the plan is without, and an upper bound")
    if card and card.half_kind != "bf16" and run.precision == "bf16":
        found.append(f"{card.name} multiplies fp16, not bf16: its fp16 peak stands for what the library would emulate")
    if card:
        found.append("activations as torch's processor kernels keep them; a card's driver and fragmentation take more")
    return tuple(found)


def _attention(recipe: Recipe, pairs: int, tokens: int) -> tuple[int, int, int, int]:
    """Groups, heads, length and head width of the image encoder's attention; a sixteenth of it at most is timed."""
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
