"""Embedding and re-ranking at ALBEF's base size in lower precision, beside fp32; and what it loses on generated scenes.

    python -m benchmarks.inference [RUN]

Speed is that of random weights, from pictures to vectors and from encoded pictures and texts to match probabilities.
Loss is that of a trained model: RUN, by default runs/demo, else a short training of `albef_tiny`, which is kept in the
library's cache folder. The precision is the one that `auto` measures as the fastest here. The last line is
`ratio R loss L`: the smaller of both ratios, and the points of recall@1 lost on the scenes of the test split.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks import machine
from diptych import catalog
from diptych.cache import cache_folder
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.evaluate import evaluate_retrieval
from diptych.metrics.intervals import bootstrap_means, interval
from diptych.nn.lowered import Precision
from diptych.predict import Predictor, load
from diptych.predict.precision import lower, measure
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.splits import open_split, read_retrieval

RECIPE = "albef_base"
PICTURES, TEXTS = 4, 8
SIZE = (640, 480)
DEMO = Path("runs/demo")
STEPS = 300


def main(arguments: list[str], recipe: str = RECIPE) -> None:
    device = torch.device("cpu")
    seconds = measure(device)
    name = min(seconds, key=lambda precision: seconds[precision])
    print("a block of base size: " + ", ".join(f"{one} {1000 * taken:.0f} ms" for one, taken in seconds.items()))
    if name == "fp32":
        print("nothing is faster than fp32 here")
        print("ratio 1.00 loss 0.00")
        return
    fast = speed(recipe, name)
    lost = loss(Path(arguments[0]) if arguments else _trained(), name)
    print(f"ratio {fast:.2f} loss {lost:.2f}")


def speed(recipe: str, name: Precision) -> float:
    """Prints pictures and pairs a second in fp32 and in `name`; returns the smaller of the two ratios."""
    texts = [f"a photo of {number} red foxes to the left of a small blue car" for number in range(TEXTS)]
    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, 12, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize(SIZE, Image.Resampling.BICUBIC) for one in noise]
    models = {one: _untrained(recipe, texts, one) for one in ("fp32", name)}
    states = {one: model.encode(pictures) for one, model in models.items()}
    vectors = {one: model.embed_images(pictures) for one, model in models.items()}
    cosine = float(F.cosine_similarity(vectors["fp32"], vectors[name]).min())
    counts = {"embed": PICTURES, "re-rank": PICTURES * TEXTS}
    jobs = {}
    for one, model in models.items():
        jobs[f"embed {one}"] = lambda model=model: model.embed_images(pictures)  # type: ignore[misc]
        jobs[f"re-rank {one}"] = lambda model=model, one=one: model.match_encoded(states[one], texts)  # type: ignore[misc]
    times = machine.interleaved(jobs)
    ratios = []
    for what, count in counts.items():
        ratios.append(machine.ratio(times[f"{what} fp32"], times[f"{what} {name}"]))
        rates = ", ".join(f"{one} {count / times[f'{what} {one}'].seconds:.2f}" for one in models)
        print(f"{what:8} a second: {rates}: {ratios[-1]:.2f} times")
    print(f"least cosine between vectors of a picture: {cosine:.5f}")
    return min(ratios)


def loss(run: Path, name: Precision) -> float:
    """Prints recall@1 (the mean of both directions) of a run in fp32 and in `name`; returns the points lost."""
    recalls = []
    for one in ("fp32", name):
        model = load(run, "cpu", precision=one)
        read = read_retrieval(model.recipe, open_split(model.recipe, "test"), model.tokenizer)
        result = evaluate_retrieval(
            model.model, read.pictures, read.texts, read.image_of_text, model.recipe.evaluation, model.device
        )
        right = (result.text_to_image.ranks == 0).double()
        by_image = torch.zeros(result.images).double().index_add(0, read.image_of_text, right)
        by_image /= read.image_of_text.bincount(minlength=result.images)
        recalls.append(50 * ((result.image_to_text.ranks == 0).double() + by_image).numpy())
    difference = (recalls[0] - recalls[1])[:, None]
    ends = interval(bootstrap_means(difference, np.ones_like(difference))[:, 0])
    print(
        f"recall@1 of {run} on {len(difference):,} pictures: fp32 {recalls[0].mean():.2f}, {name} "
        f"{recalls[1].mean():.2f} (lost {ends.low:.2f} … {ends.high:.2f}, paired)"
    )
    return float(difference.mean())


def _untrained(recipe_name: str, texts: list[str], name: Precision) -> Predictor:
    recipe, tokenizer = catalog.find_recipe(recipe_name), Tokenizer.train(texts, size=300)
    torch.manual_seed(0)
    model = catalog.build_model(recipe.model, tokenizer, recipe.released).eval()
    if name != "fp32":
        lower(model, name)
    transform = EvaluationTransform(recipe.data, recipe.model.image_size)
    return Predictor(model, tokenizer, transform, recipe, torch.device("cpu"), Path("random weights"), precision=name)


def _trained() -> Path:
    """Finds the demo's run, or trains for some minutes."""
    if DEMO.exists():
        return DEMO
    folder = cache_folder() / "benchmarks" / "inference"
    if not (folder / "checkpoints").exists():
        train(override(catalog.find_recipe("albef_tiny"), {"run.steps": STEPS}), folder)
    return folder


if __name__ == "__main__":
    main(sys.argv[1:])
