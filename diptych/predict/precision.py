"""Chooses the precision in which a trained model computes, and converts the model.

A processor may multiply bf16 or int8 several times as fast as fp32, or slower, so `auto` measures it. What it measured
is kept in `precision.json` in the library's cache folder, by processor and version of torch.
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.cache import cache_folder
from diptych.data.tokenizer import Tokenizer
from diptych.nn.blocks import Block, VisionBlock
from diptych.nn.lowered import LoweredLinear, Precision, int8_is_exact
from diptych.predict.inputs import prepare_texts
from diptych.schema import Recipe
from diptych.search.contract import evaluating
from diptych.task import Model
from diptych.timing import least_seconds
from diptych.types import to_device
from diptych.writing import write_text

PrecisionChoice = Literal["auto", "fp32", "bf16", "int8"]
PRECISION_CHOICES: tuple[PrecisionChoice, ...] = get_args(PrecisionChoice)
LEAST_COSINE = 0.999
"""The least cosine between vectors in a precision that `auto` takes and those in fp32."""
LEAST_GAIN = 1.2
"""How many times as fast as fp32 a precision must be for `auto` to take it."""
LEAST_WIDTH = 512
"""Narrower models stay fp32 under `auto`: they answer in milliseconds, of which products are a small part."""
WIDTH, HEADS, TOKENS = 768, 12, 257
"""The block that `auto` times: ViT-B/16 (ALBEF §3.1) at 256 px."""
WORDS = 12
"""The length of the text in which `auto` compares vectors."""
MEASURED = "precision.json"


def check_precision(name: str, device: torch.device) -> None:
    """Raises ValueError for an unknown precision, and for one that the device lacks."""
    if name not in PRECISION_CHOICES:
        raise ValueError(f"no precision '{name}': choose one of {', '.join(PRECISION_CHOICES)}")
    if name == "int8" and device.type != "cpu":
        raise ValueError(f"int8 runs on CPUs only, not on {device.type}: choose bf16, or the device cpu")
    if name == "int8" and not int8_is_exact():
        raise ValueError(
            "this CPU cannot multiply int8 without overflow (it lacks VNNI, or torch was built without oneDNN): "
            "choose fp32 or bf16"
        )


def use_precision(
    wanted: str, task: nn.Module, model: Model, recipe: Recipe, tokenizer: Tokenizer, device: torch.device
) -> tuple[Precision, str]:
    """Converts the transformer blocks of a task, with its model, or of a model alone, in place.

    Returns the precision and, where `auto` chose it, one line that says why. `auto` takes the fastest precision of this
    machine in which the model's vectors of a picture, a text and their pair keep a cosine of `LEAST_COSINE` to those in
    fp32. Raises ValueError as `check_precision` does.
    """
    check_precision(wanted, device)
    if wanted != "auto":
        chosen: Precision = wanted  # type: ignore[assignment]  # the others are precisions
        if chosen != "fp32":
            lower(task, chosen)
        return chosen, ""
    if recipe.model.width < LEAST_WIDTH:
        return "fp32", f"fp32, since a model of width {recipe.model.width} gains nothing from less"
    seconds = measure(device)
    gains = {name: seconds["fp32"] / taken for name, taken in seconds.items()}
    ahead = sorted((name for name in gains if gains[name] >= LEAST_GAIN), key=lambda name: -gains[name])
    slow = ", ".join(f"{name} {gain:.1f} times as fast" for name, gain in gains.items() if name != "fp32")
    if not ahead:
        return "fp32", f"fp32, the fastest here ({slow})"
    inputs = _sample(recipe, tokenizer, device)
    exact = _vectors(model, inputs)
    lost: list[str] = []
    for name in ahead:
        originals = lower(task, name)
        cosine = float(F.cosine_similarity(exact, _vectors(model, inputs), dim=1).min())
        if cosine >= LEAST_COSINE:
            return name, f"{name}, {gains[name]:.1f} times as fast as fp32 here (cosine to its vectors {cosine:.4f})"
        restore(originals)
        lost.append(f"{name} has a cosine of only {cosine:.4f} to its vectors")
    return "fp32", f"fp32: {'; '.join(lost)}"


# --------------------------------------------------------------------------- conversion

Originals = list[tuple[nn.Module, str, nn.Linear]]
"""Linear layers that were replaced, each with the module and the name that it had there."""


def lower(module: nn.Module, precision: Precision) -> Originals:
    """Replaces the linear layers within transformer blocks, in place, and returns what they were."""
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    parents = dict.fromkeys(parent for block in blocks for parent in block.modules())
    originals = [
        (parent, name, child)
        for parent in parents
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name, linear in originals:
        setattr(parent, name, LoweredLinear(linear, precision))
    return originals


def restore(originals: Originals) -> None:
    """Undoes `lower`."""
    for parent, name, linear in originals:
        setattr(parent, name, linear)


# --------------------------------------------------------------------------- measuring


def measure(device: torch.device) -> dict[Precision, float]:
    """Returns the seconds of a transformer block of base size in each precision that the device has.

    It takes about a second, once for each processor, number of threads and version of torch.
    """
    file, key = cache_folder() / MEASURED, _machine(device)
    known = _kept(file).get(key)
    if isinstance(known, dict) and isinstance(known.get("fp32"), float):
        return known
    names: list[Precision] = ["fp32", "bf16", *(["int8"] if device.type == "cpu" and int8_is_exact() else [])]  # type: ignore[list-item]
    seconds = {name: _seconds(name, device) for name in names}
    with suppress(OSError):  # a folder that cannot be written costs a second at the next call
        write_text(file, json.dumps(_kept(file) | {key: seconds}, indent=1))
    return seconds


def _seconds(precision: Precision, device: torch.device) -> float:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        block = VisionBlock(WIDTH, HEADS, 4.0, 1e-6, 0.0).to(device).eval()
        tokens = torch.randn(2 if device.type == "cpu" else 64, TOKENS, WIDTH).to(device)
        if precision != "fp32":
            lower(block, precision)
        block(tokens)  # the first call chooses kernels
        return least_seconds(lambda: block(tokens), device)


def _kept(file: Path) -> dict[str, Any]:
    """Returns what the file holds; nothing for a missing or damaged one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    return content if isinstance(content, dict) else {}


def _machine(device: torch.device) -> str:
    """Names the processor, and what else the speed depends on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    # A virtual machine's processor may have a name that tells little, so its instructions count too.
    instructions = hashlib.blake2b(facts.get("flags", "").encode(), digest_size=4).hexdigest()
    model = facts.get("model name") or platform.processor() or platform.machine()
    return f"{model} ({instructions}), {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _sample(recipe: Recipe, tokenizer: Tokenizer, device: torch.device) -> tuple[Tensor, Any]:
    """Makes a picture of smooth colours and a text of the vocabulary's words, always the same."""
    coarse = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(coarse, size=2 * [recipe.model.image_size], mode="bicubic").to(device)
    words = [word for word in tokenizer.vocabulary if word.isalpha()]
    text = " ".join(words[:: max(1, len(words) // WORDS)])
    return pixels, to_device(prepare_texts([text], tokenizer, recipe.data), device)


def _vectors(model: Model, inputs: tuple[Tensor, Any]) -> Float[Tensor, "3 D"]:
    """Computes the vectors of a picture and of a text, and the fused vector of the pair, padded to one width."""
    with evaluating(model):
        image, text = model.image_state(inputs[0]), model.text_state(inputs[1])
        first = torch.zeros(1, dtype=torch.long, device=inputs[0].device)
        fused = model.fuse(text, image, text_index=first, image_index=first).pooled
        vectors = [model.embed_image(image)["main"][0], model.embed_text(text)["main"][0], fused[0]]
    return nn.utils.rnn.pad_sequence(vectors, batch_first=True)
