"""ALBEF at the paper's size: a pre-training step and re-ranking, beside the plain procedure.

    python -m benchmarks.albef pretrain | memory | rerank

Both sides start from the same weights and take the same committed captions (8 to 18 tokens, mean 13). The plain side
pads texts to 25 tokens (re-ranking: 30), as published. Dropout is off, so that both compute the same numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.plain import PlainAlbef
from diptych.checkpoints.convert import from_published
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING
from diptych.recipes.albef import albef_base
from diptych.schema import AlbefConfig, SpecialIds
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.tasks.pretraining import Draws
from diptych.train.optim import build_optimizer
from diptych.types import Batch, Progress, Texts

CAPTIONS = Path(__file__).with_name("captions.json")
SPECIAL = SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
BATCH, PAD_TRAINING, PAD_RERANKING = 8, 25, 30
ALPHA = 0.4
RECIPE = albef_base()
CONFIG = replace(RECIPE.model, text=replace(RECIPE.model.text, dropout=0.0))
TARGETS = {
    "pretrain fp32": 1.18, "pretrain bf16": 2.3, "rerank fp32": 7.0, "rerank bf16": 12.0, "retrieval fp32": 7.0,
    "vlmo fp32": 1.12, "vlmo bf16": 2.0,
}  # fmt: skip


def texts(count: int, pad_to: int | None = None) -> Texts:
    """The first captions, padded to the longest or to `pad_to`."""
    ids = [entry["ids"] for entry in json.loads(CAPTIONS.read_text())[:count]]
    width = pad_to or max(map(len, ids))
    padded = torch.tensor([row + [SPECIAL.pad] * (width - len(row)) for row in ids])
    return Texts(padded, padded != SPECIAL.pad)


@dataclass
class Pair:
    """Both implementations with the same weights, their optimisers, and one batch."""

    plain: PlainAlbef
    ours: AlbefPretraining

    @classmethod
    def build(cls, config: AlbefConfig = CONFIG) -> Pair:
        torch.manual_seed(0)
        ours = AlbefPretraining(Albef(config), RECIPE.task, SPECIAL)
        plain = PlainAlbef(config, RECIPE.task.queue_size, RECIPE.task.momentum)
        copy_weights(ours, plain)
        return cls(plain, ours)


def copy_weights(ours: AlbefPretraining, plain: PlainAlbef) -> None:
    """Gives the library's model the plain one's weights and queue, teacher equal to student."""
    for name in plain.copied:
        teacher = getattr(plain, f"{name}_m")
        teacher.load_state_dict(getattr(plain, name).state_dict())
    state, _ = from_published(plain.state_dict(), PUBLISHED_PRETRAINING)
    filled = torch.tensor(RECIPE.task.queue_size)
    own = {"queue.ids": ours.queue.ids, "queue.filled": filled}
    ours.load_state_dict({name: tensor.clone() for name, tensor in state.items()} | own)


def initialise(plain: PlainAlbef) -> None:
    """Weights of a size that training meets: BERT's start, positions and class token included."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in plain.named_parameters():
        if parameter.ndim > 1 and not name.partition(".")[0].endswith("_m"):
            parameter.data.normal_(0, 0.02, generator=generator)


def models(config: AlbefConfig) -> tuple[PlainAlbef, Albef]:
    """Both implementations with the same weights, for a test."""
    pair = Pair.build(config)
    initialise(pair.plain)
    copy_weights(pair.ours, pair.plain)
    return pair.plain.eval(), pair.ours.model.eval()


def batch() -> tuple[Batch, Draws]:
    """Eight pictures of noise with the first eight captions; 15 % of the words hidden; neighbours as negatives."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, CONFIG.vision.image_size, CONFIG.vision.image_size, generator=generator)
    read = texts(BATCH)
    masked, labels = hide_words(read, RECIPE.task.mask_probability, generator)
    order = torch.arange(BATCH)
    draws = Draws(masked, labels, torch.zeros(2, BATCH), order.roll(1), order.roll(-1))
    return Batch(pixels, read, order), draws


def hide_words(read: Texts, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids with [MASK], and what stood there."""
    hidden = torch.rand(read.input_ids.shape, generator=generator) < probability
    hidden &= read.attention_mask & (read.input_ids != SPECIAL.cls)
    return read.input_ids.masked_fill(hidden, SPECIAL.mask), read.input_ids.masked_fill(~hidden, -100)


def widen(ids: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=fill)


class Steps:
    """One training step of either side: teacher, forward, backward, optimiser."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.batch, self.draws = batch()
        optim = replace(RECIPE.optim, lr=1e-6)
        self.optimizers = {side: build_optimizer(getattr(pair, side), optim) for side in ("plain", "ours")}

    def plain(self, recorded: bool = False) -> list[float]:
        b, d = self.batch, self.draws
        ids, mask = (widen(x, PAD_TRAINING, 0) for x in (b.texts.input_ids, b.texts.attention_mask.long()))
        masked, labels = widen(d.masked_ids, PAD_TRAINING, 0), widen(d.labels, PAD_TRAINING, -100)
        negatives = (d.negative_image, d.negative_text) if recorded else None
        losses = self.pair.plain(b.pixels, ids, mask, masked, labels, ALPHA, negatives)
        losses.total.backward()
        self._step("plain")
        return [losses.itc.item(), losses.itm.item(), losses.mlm.item()]

    def ours(self, bf16: bool = False, recorded: bool = False) -> list[float]:
        task = self.pair.ours
        task.before_step()
        draws = self.draws if recorded else replace(self.draws, negative_image=None, negative_text=None)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = task(self.batch, Progress(0, epoch=1.0), draws)
        losses.total.backward()
        self._step("ours")
        task.after_step(losses.carry)
        return [losses.terms[name][1].mean.item() for name in ("itc", "itm", "mlm")]

    def _step(self, side: str) -> None:
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()


def pretrain() -> dict[str, float]:
    """Times of a step; prints ratios beside what the FLOPs alone allow."""
    pair = Pair.build()
    initialise(pair.plain)
    copy_weights(pair.ours, pair.plain)
    steps = Steps(pair)
    counted = {"plain": machine.flops(steps.plain), "ours": machine.flops(steps.ours)}
    copy_weights(pair.ours, pair.plain)
    plain_losses, our_losses = steps.plain(recorded=True), steps.ours(recorded=True)
    copy_weights(pair.ours, pair.plain)
    reference, half = steps.plain(recorded=True), steps.ours(bf16=True, recorded=True)
    jobs = {"plain fp32": steps.plain, "ours fp32": steps.ours, "ours bf16": lambda: steps.ours(bf16=True)}
    if not machine.multiplies_bf16():
        del jobs["ours bf16"]
    found = machine.interleaved(jobs)
    difference = max(abs(a - b) for a, b in zip(plain_losses, our_losses, strict=True))
    relative = max(abs(a - b) / abs(a) for a, b in zip(reference, half, strict=True))
    print(f"pre-training step, {CONFIG.vision.image_size} px, batch {BATCH}; ITC, ITM, MLM {our_losses}")
    print(f"  losses differ by {difference:.1e} in fp32 (allowed 1e-4), by {relative:.2%} in bf16 (allowed 1 %)")
    return report("pretrain", counted, found)


def report(what: str, counted: dict[str, int], found: dict[str, machine.Measured]) -> dict[str, float]:
    """Prints times, shares of the machine's peak, and ratios."""
    peaks = {"fp32": machine.peak(torch.float32), "bf16": machine.peak(torch.bfloat16)}
    results: dict[str, float] = {f"{what} flop ratio": counted["plain"] / counted["ours"]}
    for name, taken in found.items():
        side, kind = name.split()
        rate = counted[side] / taken.seconds
        rounds = " ".join(f"{x:.2f}" for x in taken.rounds)
        print(
            f"  {name:10}  {taken.seconds:7.2f} s  {counted[side] / 1e9:7.0f} GFLOP  {rate / 1e9:6.0f} GFLOP/s"
            f" = {rate / peaks[kind]:4.0%} of {peaks[kind] / 1e9:.0f}   [{rounds}]"
        )
        results[f"{what} {name} share of peak"] = rate / peaks[kind]
    fair = (counted["plain"] / found["plain fp32"].seconds) / (counted["ours"] / found["ours fp32"].seconds)
    print(f"  plain reaches {fair:.0%} of our FLOP/s in fp32 (fair from 85 %)")
    for kind in ("fp32", "bf16"):
        if f"ours {kind}" in found:
            speed = machine.ratio(found["plain fp32"], found[f"ours {kind}"])
            target = TARGETS.get(f"{what} {kind}", "nothing")
            allowed = results[f"{what} flop ratio"]
            print(f"  {kind}: {speed:.2f}x as fast as plain fp32 (asked {target}; FLOPs alone {allowed:.2f}x)")
            results[f"{what} {kind} ratio"] = speed
    return results


def rerank() -> dict[str, float]:
    """128 captions for one picture at 384 px: the fusion encoder's part of a retrieval test."""
    count, size = 128, 384
    plain_model, model = models(CONFIG)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    short, padded = texts(count), texts(count, PAD_RERANKING)
    index, image_index = torch.arange(count), torch.zeros(count, dtype=torch.long)
    with torch.no_grad():
        image, words = model.image_state(pixels), model.text_state(short)
        plain_words = plain_model.text_encoder.bert.text(padded.input_ids, padded.attention_mask.long())

    @torch.no_grad()
    def ours(bf16: bool = False) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model.match_logits(model.fuse(words, image, index, image_index))[:, 1]

    def plain() -> Tensor:
        return plain_model.rerank(image.tokens[0], plain_words, padded.attention_mask.long())

    counted = {"plain": machine.flops(plain), "ours": machine.flops(ours)}
    difference = (plain() - ours()).abs().max().item()
    jobs = {"plain fp32": plain, "ours fp32": ours, "ours bf16": lambda: ours(bf16=True)}
    if not machine.multiplies_bf16():
        del jobs["ours bf16"]
    found = machine.interleaved(jobs)
    print(f"re-ranking {count} captions for one picture at {size} px")
    half = (plain() - ours(True)).abs().max().item()
    print(f"  scores differ by {difference:.1e} in fp32 (allowed 1e-4), by {half:.1e} in bf16")
    return report("rerank", counted, found)


def memory() -> dict[str, float]:
    """Memory of a step above weights, gradients, Adam, teacher and queue: each side in a process of its own."""
    grown = {}
    for side in ("plain", "ours"):
        command = [sys.executable, "-m", "benchmarks.albef", f"memory-{side}"]
        grown[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    share = grown["ours"] / grown["plain"]
    print(f"memory of a pre-training step in fp32 above what must be there, batch {BATCH}")
    print(f"  plain {grown['plain'] / 1e9:.2f} GB, ours {grown['ours'] / 1e9:.2f} GB: {share:.2f}x (asked at most 0.5)")
    return {"memory ratio": share}


def memory_of(side: str) -> None:
    """Runs a step so that everything that lasts is there, then watches the next one. Gradients stay allocated."""
    pair = Pair.build()
    setattr(pair, {"plain": "ours", "ours": "plain"}[side], None)
    steps = Steps.__new__(Steps)
    steps.pair, (steps.batch, steps.draws) = pair, batch()
    optimizer = build_optimizer(getattr(pair, side), replace(RECIPE.optim, lr=1e-6))
    zero = optimizer.zero_grad
    optimizer.zero_grad = lambda: zero(set_to_none=False)  # type: ignore[method-assign, assignment]
    steps.optimizers = {side: optimizer}
    getattr(steps, side)()
    with machine.PeakMemory() as watched:
        getattr(steps, side)()
    print(watched.grown)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name.startswith("memory-"):
            memory_of(name.removeprefix("memory-"))
        else:
            {"pretrain": pretrain, "rerank": rerank, "memory": memory}[name]()
