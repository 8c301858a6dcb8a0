"""Checks and times the library on one graphics card, unattended, in at most eight minutes: `python -m benchmarks gpu`

    python -m benchmarks.gpu [PART …] [--seconds N] [--folder DIR] [--device cpu] [--tiny]

Parts run in turn, each in a process of its own with a time limit, so that one that fails or hangs leaves the others
alone. Every figure is printed and written to `DIR/gpu.json` as soon as it is measured, and `DIR/gpu.html` shows them.
Nothing needs to be installed beyond torch, numpy, pillow, tokenizers and safetensors.

fp32 is multiplied in TF32 where times are measured, and exactly where numbers are compared. FLOPs are counted by
torch's formulas, as `diptych plan` counts them. `--tiny` takes models of a few thousand weights, to test this file.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks import albef, machine, optim, steps, vlmo
from benchmarks.gpu_report import Outcome, Report
from diptych import catalog
from diptych.apps.plan.cards import find_fleet
from diptych.apps.plan.check import real_step, timed
from diptych.apps.plan.predict import Wish, plan
from diptych.checkpoints.convert import to_published
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING
from diptych.schema import AlbefConfig, Recipe, TextConfig, VisionConfig, VlmoConfig
from diptych.task import Network, Task
from diptych.train.parallel import compile_blocks
from diptych.types import Losses, Progress, to_device
from tests.parity import pretraining as albef_golden
from tests.parity.golden import Golden
from tests.parity.vlmo import golden as vlmo_golden
from tests.parity.vlmo import stage3

TOTAL = 480.0
"""Seconds of all parts together."""
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
FAMILIES: dict[str, Any] = {"albef": albef, "vlmo": vlmo}
PAIRS, TINY_PAIRS = (64, 32, 16, 8), (4,)
"""Pairs of a step: the first number whose steps of both sides fit into memory."""
TOKENS = 13
"""Mean tokens of the committed captions, for the plan and the steps that it is compared with."""
SQUARES, TINY_SQUARES = (4096, 8192, 16384), (256,)
CAPTIONS = 128
FP32_ALLOWED, BF16_ALLOWED = 1e-4, 0.02
"""Differences from the released numbers: absolute or relative, whichever is smaller, and relative for bf16's losses."""
TINY: dict[str, Any] = {
    "albef": AlbefConfig(
        VisionConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2),
        TextConfig(width=24, layers=4, fusion_start=2, heads=3, intermediate=32),
        embed_dim=8,
    ),
    "vlmo": VlmoConfig(image_size=32, patch_size=8, width=24, depth=3, heads=3, fusion_start=2, mlp_ratio=2.0),
}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Bench:
    """What a part needs: the device, the sizes, the place for its figures, and how long it may take."""

    device: str
    tiny: bool
    record: Callable[[str, Mapping[str, float]], None]
    limit: float
    peaks: Mapping[str, float]
    """Best FLOP/s of matrix products by precision, as the part `device` has measured them. May be empty."""

    @property
    def on_card(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def timed(self, jobs: Mapping[str, Callable[[], object]], parts: int) -> dict[str, machine.Measured]:
        """Times jobs in turn, in a share of the part's time: the `parts`-th."""
        rounds = 1 if self.tiny else machine.ROUNDS
        return machine.interleaved(jobs, rounds, self.device, self.limit / parts)

    def recipe(self, family: str, pairs: int, precision: Any = "fp32") -> Recipe:
        """Returns the recipe of base size, or a tiny one, for the device."""
        recipe = catalog.find_recipe(f"{family}_base")
        run = replace(recipe.run, device=self.device, batch_size=pairs, precision=precision)
        return replace(recipe, run=run, model=TINY[family] if self.tiny else recipe.model)

    def config(self, family: str) -> Any:
        """Returns the model's configuration without dropout, as both sides are compared."""
        model: Any = self.recipe(family, 1).model
        if isinstance(model, AlbefConfig):
            return replace(model, text=replace(model.text, dropout=0.0, attention_dropout=0.0))
        return replace(model, dropout=0.0, drop_path=0.0)

    def fitting(self, job: Callable[[int], Result]) -> Result:
        """Runs a job of so many pairs, and again with half as many where memory does not suffice."""
        sizes = TINY_PAIRS if self.tiny else PAIRS
        for pairs in sizes[:-1]:
            try:
                return job(pairs)
            except torch.OutOfMemoryError:
                print(f"  {pairs} pairs do not fit into memory", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
        return job(sizes[-1])

    def share(self, flops: float, seconds: float, precision: str) -> dict[str, float]:
        """Returns the rate, and its share of the measured peak where there is one."""
        rate = {"TFLOP/s": flops / seconds / 1e12}
        if precision in self.peaks:
            rate["share of peak"] = flops / seconds / self.peaks[precision]
        return rate


def exact() -> None:
    """Makes torch multiply fp32 exactly."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def fast() -> None:
    """Lets torch multiply fp32 in TF32, on cards that have it."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def autocast(bench: Bench, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(torch.device(bench.device).type, torch.bfloat16, enabled=precision == "bf16")


# --------------------------------------------------------------------------- parts


def device(bench: Bench) -> None:
    """Names the device, and measures the best rate of its matrix products."""
    if bench.on_card:
        card = torch.cuda.get_device_properties(0)
        print(f"  {card.name}, CUDA {torch.version.cuda}, {machine.describe()}")
        bench.record(card.name, {"GB of memory": card.total_memory / 1e9})
    shapes = [(size,) * 3 for size in (TINY_SQUARES if bench.tiny else SQUARES)]
    exact()
    rates = {"fp32 exact": machine.peak(torch.float32, shapes[:1], bench.device)}
    fast()
    rates["fp32"] = machine.peak(torch.float32, shapes, bench.device)
    rates["bf16"] = machine.peak(torch.bfloat16, shapes, bench.device)
    for name, rate in rates.items():
        bench.record(name, {"TFLOP/s": rate / 1e12})


def parity(bench: Bench) -> None:
    """Compares losses and gradients on the golden folders. Raises ValueError where one differs by too much."""
    exact()
    failed = []
    for family, compared in (("albef", albef_step), ("vlmo", vlmo_step)):
        for precision, allowed in (("fp32", FP32_ALLOWED), ("bf16", BF16_ALLOWED)):
            losses, gradients = compared(bench, precision)
            figures = {"loss": difference(losses), "gradient": difference(gradients), "allowed": allowed}
            bench.record(f"{family} {precision}", figures)
            judged = [figures["loss"]] if precision == "bf16" else [figures["loss"], figures["gradient"]]
            if not all(value <= allowed for value in judged):
                failed.append(f"{family} {precision}")
    if failed:
        raise ValueError(f"differs from the released numbers by more than is allowed: {', '.join(failed)}")


Compared = list[tuple[Tensor, Tensor]]
"""Tensors of ours, each with the stored one."""


def difference(compared: Compared) -> float:
    """Returns the largest difference, beside the larger of 1 and the largest entry of its stored tensor."""
    return max(
        ((ours.detach().float().cpu() - stored).abs().max() / stored.abs().max().clamp(min=1)).item()
        for ours, stored in compared
    )


def albef_step(bench: Bench, precision: str) -> tuple[Compared, Compared]:
    """Takes ALBEF's recorded step. Returns its losses and its gradients beside the released ones."""
    golden = Golden(GOLDEN / "albef", "pretrain")
    task = albef_golden.build(golden.folder, keep_padding=False).to(bench.device)
    batch, draws = (to_device(x(golden), bench.device) for x in (albef_golden.batch_of, albef_golden.draws_of))
    losses = backward(bench, task, precision, lambda: task(batch, Progress(0, epoch=0.0), draws))
    terms = {"ita": "itc", "itm": "itm", "mlm": "mlm"}
    compared = [(losses.terms[term][1].mean, golden[f"a00.loss_{name}"]) for name, term in terms.items()]
    trained = {name: value.grad for name, value in task.model.named_parameters() if value.grad is not None}
    ours = {f"model.{name}": gradient.cpu() for name, gradient in trained.items()}
    gradients, prefix = to_published(ours, PUBLISHED_PRETRAINING), "a00.grad."
    return compared, [(gradients[key.removeprefix(prefix)], golden[key]) for key in golden.keys(prefix)]


def vlmo_step(bench: Bench, precision: str) -> tuple[Compared, Compared]:
    """Takes VLMo's recorded step. Returns its losses and its gradients beside the released ones."""
    inputs, stored, stored_gradients = (
        vlmo_golden.Golden(GOLDEN / "vlmo", name) for name in ("inputs", "losses", "grads_pretrain")
    )
    task = stage3.build_task(inputs.folder, keep_padding=False).to(bench.device)
    negatives = (stored[f"pretrain/itm_neg_{kind}_index"] for kind in ("image", "text"))
    batch = to_device(stage3.pairs(inputs, "vl"), bench.device)
    draws = to_device(stage3.recorded(inputs, "vl", *negatives), bench.device)
    losses = backward(bench, task, precision, lambda: task(batch, Progress(0, epoch=0.0), draws))
    compared = [(value, stored[f"pretrain/{name}"]) for name, value in stage3.weighted(losses).items()]
    ours = {name: value.grad.cpu() for name, value in task.named_parameters() if value.grad is not None}
    gradients = stage3.published(task, ours)
    return compared, [
        (gradients[key.removeprefix("total/")], stored_gradients[key]) for key in stored_gradients.keys("total/")
    ]


def backward(bench: Bench, task: Task, precision: str, forward: Callable[[], Losses]) -> Losses:
    task.before_step()
    with autocast(bench, precision):
        losses = forward()
    losses.total.backward()
    return losses


def train(family: str, compiled: bool) -> Callable[[Bench], None]:
    """Builds the part that times a pre-training step beside the plain procedure, with the same weights and batch."""

    def part(bench: Bench) -> None:
        pair, run = bench.fitting(lambda pairs: ready(bench, family, pairs, compiled))
        pairs, mode = len(pair.batch), " compiled" if compiled else ""
        flops = {"plain": machine.flops(run.plain), "ours": machine.flops(run.ours)}
        if compiled:  # counted before, because compiled blocks hide their products from the counter
            compile_blocks(pair.ours, backend="eager" if bench.tiny else "inductor")
        # By the more telling precision first, because compiling may take all the time that there is.
        for precision in ("bf16", "fp32") if compiled else ("fp32", "bf16"):
            jobs = {
                f"plain {precision}": partial(run.plain, precision == "bf16"),
                f"ours{mode} {precision}": partial(run.ours, precision == "bf16"),
            }
            grown = {name: memory_of(bench, job) for name, job in jobs.items()}
            times = bench.timed(jobs, 6)
            for name, taken in times.items():
                side = name.split()[0]
                figures = {
                    "pairs": pairs, "seconds": taken.seconds, "pairs/s": pairs / taken.seconds,
                    "as fast as plain": machine.ratio(times[f"plain {precision}"], taken),
                    "GFLOP/pair": flops[side] / pairs / 1e9,
                }  # fmt: skip
                bench.record(name, figures | bench.share(flops[side], taken.seconds, precision) | grown[name])

    return part


def ready(bench: Bench, family: str, pairs: int, compiled: bool) -> tuple[Any, steps.Steps]:
    """Builds both sides and takes a step of each, which shows whether they fit, and by how much losses differ."""
    exact()
    pair = FAMILIES[family].Pair.build(bench.config(family), pairs).to(bench.device)
    run = steps.Steps(pair)
    losses = run.plain(recorded=True), run.ours(recorded=True)
    fast()
    if not compiled:
        apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
        bench.record("losses of both sides", {"pairs": pairs, "difference in exact fp32": apart})
    return pair, run


def memory_of(bench: Bench, job: Callable[[], object]) -> dict[str, float]:
    """Runs a job. On a card, returns how much memory it needs beside what is allocated already."""
    if not bench.on_card:
        job()
        return {}
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    job()
    return {"GB beside weights": (torch.cuda.max_memory_allocated() - before) / 1e9}


def planned(bench: Bench) -> None:
    """Compares memory and time of a step, optimiser included, with what `diptych plan` says of them."""
    exact()  # as a run multiplies, which is what a plan is about
    fleet = find_fleet("A100-40G" if bench.tiny else "this")  # measuring this machine takes longer than tiny steps
    for precision in ("fp32", "bf16"):
        for family in FAMILIES:

            def compare(pairs: int, family: str = family, precision: str = precision) -> None:
                recipe = bench.recipe(family, pairs, precision)
                seconds, peak = whole_step(bench, recipe)
                wanted = plan(recipe, Wish(fleet, tokens=TOKENS))
                memory = {"GB measured": peak / 1e9, "memory planned/measured": wanted.total / peak} if peak else {}
                bench.record(f"{family} {precision}", {
                    "pairs": pairs, "GB planned": wanted.total / 1e9, "seconds": seconds,
                    "seconds planned": wanted.step, "time planned/measured": wanted.step / seconds,
                    "GFLOP/pair": wanted.flops / pairs / 1e9,
                } | memory)  # fmt: skip

            bench.fitting(compare)


def whole_step(bench: Bench, recipe: Recipe) -> tuple[float, int]:
    """Takes steps of the recipe. Returns the median seconds and, on a card, the peak of allocated bytes, else 0."""
    gc.collect()  # what an earlier step left in circles of references
    before = torch.cuda.memory_allocated() if bench.on_card else 0
    if bench.on_card:
        torch.cuda.reset_peak_memory_stats()
    _, step = real_step(recipe, TOKENS)
    seconds = timed(step, 3, torch.device(bench.device))["wall"]
    return seconds, torch.cuda.max_memory_allocated() - before if bench.on_card else 0


def use(bench: Bench) -> None:
    """Times what a trained model is used for: embedding images and texts, and re-ranking texts of an image."""
    fast()
    images, count = (4, 8) if bench.tiny else (128, CAPTIONS)
    queries = min(8, images)
    captions = to_device(steps.texts(count), bench.device)
    text_index = torch.arange(count, device=bench.device).repeat(queries)
    image_index = torch.arange(queries, device=bench.device).repeat_interleave(count)
    for family in FAMILIES:
        recipe = bench.recipe(family, 1)
        torch.manual_seed(0)
        model: Network = catalog.build_task(recipe, optim.plain_tokenizer(recipe)).get_submodule("model")  # type: ignore[assignment]
        model = model.to(bench.device).eval()
        side = recipe.model.image_size
        pixels = torch.randn(images, 3, side, side, device=bench.device)
        with torch.no_grad():
            image_state, text_state = model.image_state(pixels[:queries]), model.text_state(captions)

        def embed_images(model: Any = model, pixels: Tensor = pixels) -> None:
            model.embed_image(model.image_state(pixels))

        def embed_texts(model: Any = model) -> None:
            model.embed_text(model.text_state(captions))

        def rerank(model: Any = model, images: Any = image_state, texts: Any = text_state) -> None:
            model.match_logits(model.fuse(texts, images, text_index, image_index))

        amounts: dict[str, tuple[Callable[[], None], int]] = {
            "images/s": (embed_images, images),
            "texts/s": (embed_texts, count),
        }
        amounts["re-ranked pairs/s"] = (rerank, count * queries)
        for unit, (job, amount) in amounts.items():
            jobs = {precision: inference(bench, job, precision) for precision in ("fp32", "bf16")}
            flops = machine.flops(jobs["fp32"])
            times = bench.timed(jobs, 12)
            for precision, taken in times.items():
                figures = {unit: amount / taken.seconds} | bench.share(flops, taken.seconds, precision)
                bench.record(f"{family} {precision}, {unit.removesuffix('/s')}", figures)


def inference(bench: Bench, job: Callable[[], None], precision: str) -> Callable[[], None]:
    """Wraps a job, which then runs without gradients in a precision."""

    def run() -> None:
        with torch.no_grad(), autocast(bench, precision):
            job()

    return run


def muon(bench: Bench) -> None:
    """Times Muon's own step, AdamW's, and a whole training step with Muon in bf16."""
    fast()
    for family in FAMILIES:

        def share(pairs: int, family: str = family) -> None:
            recipe = bench.recipe(family, pairs, "bf16")
            jobs = {kind: optim.ours(recipe, kind, "bf16", bench.device) for kind in ("adamw", "muon")}
            times = bench.timed(jobs, 6)
            jobs.clear()
            whole = whole_step(bench, replace(recipe, optim=replace(recipe.optim, kind="muon")))[0]
            alone = {f"ms {kind}": 1000 * taken.seconds for kind, taken in times.items()}
            shares = {"Muon's share of a step": times["muon"].seconds / whole}
            bench.record(family, {"pairs": pairs, "ms of a step": 1000 * whole} | alone | shares)

        bench.fitting(share)


PARTS: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "device": (30, device),
    "parity": (40, parity),
    "albef": (65, train("albef", compiled=False)),
    "vlmo": (65, train("vlmo", compiled=False)),
    "use": (40, use),
    "plan": (50, planned),
    "muon": (30, muon),
    "albef-compiled": (80, train("albef", compiled=True)),
    "vlmo-compiled": (80, train("vlmo", compiled=True)),
}
"""Parts, each with the most seconds that it may take. They make `TOTAL`."""


# --------------------------------------------------------------------------- running them


def work(part: Callable[[Bench], None], bench: Bench, told: Connection) -> None:
    """Runs a part in this process. Sends its figures, and at the end None or the error with its traceback."""
    try:
        if bench.on_card and not torch.cuda.is_available():
            raise ValueError("torch finds no card here: install torch with CUDA, or try --device cpu --tiny")
        part(replace(bench, record=lambda name, figures: told.send((name, dict(figures)))))
        told.send((None, None))
    except Exception as error:
        told.send((None, (f"{type(error).__name__}: {error}", traceback.format_exc())))


def run(name: str, bench: Bench, report: Report) -> Outcome:
    """Runs a part in a new process until its limit, and puts its figures into the report as they come."""
    outcome = report.begin(name)
    if bench.limit <= 0:
        report.end(name, "no time is left for it", 0.0)
        return outcome
    began, error = time.monotonic(), f"out of time after {bench.limit:.0f} s"
    # Forked, so that nothing is imported again. The parent never touches the card, which a child could not use then.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(PARTS[name][1], bench, sender))
    process.start()
    sender.close()
    while receiver.poll(max(0.0, began + bench.limit - time.monotonic())):
        try:
            figure, content = receiver.recv()
        except EOFError:
            process.join()
            error = f"the process died (exit status {process.exitcode})"
            break
        if figure is None:
            error, outcome.traceback = content or ("", "")
            break
        report.add(name, figure, content)
    process.join(timeout=0 if error.startswith("out of time") else 5)
    if process.is_alive():
        process.kill()
        process.join()
    report.end(name, error, time.monotonic() - began)
    return outcome


def main(arguments: Sequence[str]) -> int:
    """Runs the parts in turn. Returns 1 where one has failed."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="Check and time the library on a card.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), metavar="DIR", help="place of the results")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="time for all parts (default: %(default).0f)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand weights, to test the benchmark")
    wish = parser.parse_args(arguments)
    if unknown := set(wish.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    wish.folder.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()  # what was imported is not looked through again between the jobs, and stays shared with the parts
    report, began = Report(wish.folder, machine.describe()), time.monotonic()
    for name in wish.parts or PARTS:
        limit, left = PARTS[name][0] * wish.seconds / TOTAL, wish.seconds - (time.monotonic() - began)
        peaks = {figure: 1e12 * numbers["TFLOP/s"] for figure, numbers in report.figures("device", "TFLOP/s").items()}
        bench = Bench(wish.device, wish.tiny, lambda *_: None, min(limit, left), peaks)
        outcome = run(name, bench, report)
        if name == "device" and outcome.error and not report.figures("device", "TFLOP/s"):
            break  # without a card, the other parts would all say the same
    print(f"{report.page()} and {report.file}")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
