"""Draws the figures of "ALBEF and VLMo in pictures" from trained runs: `python docs/walk.py runs/demo runs/demo-vlmo`.

A batch of unseen scenes passes through both models as in training: it is aligned, then fused. The batch is the first
pictures of the test split, so nothing is chosen by how well the models do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from diptych.apps.report.examples import pseudo_target_examples
from diptych.data.heatmap import enlarge
from diptych.predict import Predictor, load
from diptych.predict.explain import explain, last_colour
from diptych.predict.routing import expert_ways
from diptych.run import open_task
from diptych.run.splits import open_split, read_retrieval
from diptych.tasks.albef_pretraining import AlbefInspection, AlbefPretraining
from diptych.types import Batch, Progress, to_device

HERE = Path(__file__).parent
PAIRS = 8
"""Size of the batch."""
INK, FAINT, BLUE, ORANGE = "#1f2328", "#656d76", "#0b6e8f", "#c2630d"
EXPERTS = {"image": "#16916a", "text": "#2a66d9", "fusion": "#c25e06"}
STYLE = {
    "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.edgecolor": FAINT, "axes.titlesize": 10,
    "axes.titleweight": "bold", "figure.facecolor": "white", "savefig.bbox": "tight", "savefig.dpi": 110,
}  # fmt: skip


@dataclass(frozen=True)
class Walk:
    """The batch and the models that it passes through."""

    albef: Predictor
    vlmo: Predictor
    pictures: list[Image.Image]
    captions: list[str]

    @property
    def models(self) -> dict[str, Predictor]:
        return {"ALBEF": self.albef, "VLMo": self.vlmo}


def begin(albef: Path, vlmo: Path) -> Walk:
    """Loads both runs, and the first pictures of ALBEF's test split, which VLMo has not seen either."""
    predictor = load(albef, "cpu")
    source = open_split(predictor.recipe, "test")
    split = read_retrieval(predictor.recipe, source, predictor.tokenizer, PAIRS)
    pictures = [split.pictures[number] for number in range(len(split.pictures))]
    return Walk(predictor, load(vlmo, "cpu"), pictures, list(split.captions))


# --------------------------------------------------------------------------- figures


def batch(walk: Walk) -> Figure:
    """Draws the pictures, their captions and the word pieces that the model reads."""
    figure, axes = plt.subplots(2, PAIRS // 2, figsize=(10, 6.4))
    for axis, picture, caption in zip(axes.flat, walk.pictures, walk.captions, strict=True):
        show(axis, picture)
        ids = walk.albef.texts(caption).input_ids[0].tolist()
        pieces = " · ".join(walk.albef.tokenizer.token(piece) for piece in ids)
        axis.set_title(fill(caption, 28), fontweight="normal", fontsize=8.5)
        axis.set_xlabel(fill(pieces, 38), fontsize=7, color=FAINT)
    figure.tight_layout()
    return figure


def aligned(walk: Walk) -> Figure:
    """Draws the cosine similarity of every picture and caption by both dual encoders, and each hardest negative."""
    return tables(
        walk,
        lambda model: (model.embed_images(walk.pictures) @ model.embed_texts(walk.captions).T).numpy(),
        "cosine similarity",
        (-1.0, 1.0),
        "{:.2f}",
    )


def fused(walk: Walk) -> Figure:
    """Draws the probability of a match of every picture and caption by both fusion encoders."""
    return tables(
        walk,
        lambda model: 100 * model.match(walk.pictures, walk.captions).numpy(),
        "probability of a match, %",
        (0.0, 100.0),
        "{:.0f}",
    )


def words(walk: Walk) -> Figure:
    """Draws which patches each word of the first caption attends to more than the other words do."""
    picture, caption = walk.pictures[0], walk.captions[0]
    maps = {name: word_maps(model, picture, caption) for name, model in walk.models.items()}
    columns = max(map(len, maps.values()))
    figure, axes = plt.subplots(2, columns, figsize=(0.95 * columns, 2.6), squeeze=False)
    for row, (name, heats) in zip(axes, maps.items(), strict=True):
        hottest = float(max(heat.max() for _, heat in heats))
        for axis in row:
            axis.axis("off")
        for axis, (word, heat) in zip(row, heats, strict=False):
            show(axis, picture.convert("L").convert("RGB"))
            end = last_colour(float(heat.max()), hottest) or 1.0
            axis.imshow(np.clip(heat / end, 0, 1), cmap="viridis", alpha=0.65, vmin=0, vmax=1)
            axis.set_title(word, fontweight="normal")
        row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right", weight="bold")
    figure.tight_layout()
    return figure


def taught(walk: Walk) -> Figure:
    """Draws the pseudo-targets of ALBEF's momentum encoder: masked words, and captions for a picture."""
    examples = pseudo_target_examples(*look(walk), clean=[None] * PAIRS, count=3)
    figure, axes = plt.subplots(
        len(examples), 3, figsize=(10, 1.9 * len(examples)), width_ratios=(1, 1, 1), layout="constrained"
    )
    for (left, middle, right), example in zip(axes, examples, strict=True):
        show(left, example.picture)
        word = example.words[0]
        bars(middle, word.guesses, word.label, fill(f"{word.before} ▢ {word.after}", 44))
        guesses = [(fill(guess.text, 34), guess.probability) for guess in example.texts]
        label = next((fill(guess.text, 34) for guess in example.texts if guess.label), "")
        bars(right, guesses, label, "captions of the batch")
    return figure


def experts(walk: Walk) -> Figure:
    """Draws the expert that each token of VLMo passes in each layer. Stronger colours mark larger changes."""
    ways = expert_ways(walk.vlmo, walk.pictures[0], walk.captions[0])
    # Patches are thin rows under one label, since there are many of them.
    heights = [[0.25 if token.startswith("patch ") else 1.0 for token in way.tokens] for way in ways]
    figure, axes = plt.subplots(1, 3, figsize=(10, 0.17 * max(map(sum, heights)) + 1.2), layout="constrained")
    for axis, way, height in zip(axes, ways, heights, strict=True):
        layers, tops = len(way.layers), np.cumsum([0.0, *height])
        for number, layer in enumerate(way.layers):
            most = max((passed.moved for passed in layer if passed), default=1.0)
            for top, tall, passed in zip(tops, height, layer, strict=False):
                if passed:
                    strength = 0.25 + 0.75 * (passed.moved / most) ** 0.5
                    size = 0.94, tall - 0.1 * (tall == 1)
                    axis.add_patch(plt.Rectangle((number, top), *size, fc=EXPERTS[passed.expert], alpha=strength))
        axis.set(xlim=(0, layers), ylim=(max(map(sum, heights)), 0), xlabel="layer", title=f"the {way.given}")
        axis.set_xticks([number + 0.47 for number in range(layers)], range(1, layers + 1), fontsize=7)
        marks = {top + tall / 2: token for top, tall, token in zip(tops, height, way.tokens, strict=False) if tall == 1}
        patches = [top for top, tall in zip(tops, height, strict=False) if tall < 1]
        if patches:
            marks[float(np.mean(patches))] = f"{len(patches)} patches"
        axis.set_yticks(list(marks), list(marks.values()), fontsize=6)
        axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axis.tick_params(length=0)
    names = [plt.Rectangle((0, 0), 1, 1, fc=colour) for colour in EXPERTS.values()]
    figure.legend(
        names, ["vision expert", "language expert", "vision-language expert"], loc="outside lower center", ncols=3
    )
    return figure


FIGURES: dict[str, Callable[[Walk], Figure]] = {
    "batch": batch,
    "aligned": aligned,
    "fused": fused,
    "words": words,
    "taught": taught,
    "experts": experts,
}


# --------------------------------------------------------------------------- parts


def tables(
    walk: Walk, score: Callable[[Predictor], np.ndarray], name: str, span: tuple[float, float], shape: str
) -> Figure:
    """Draws pictures × captions for both models. Right pairs have an outline, hardest negatives a dashed one."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.6))
    for axis, (title, model) in zip(axes, walk.models.items(), strict=True):
        table = score(model)
        axis.imshow(table, cmap="Blues", vmin=span[0], vmax=span[1])
        axis.set_title(f"{title}: {name}")
        axis.set_xticks(range(len(walk.captions)), [fill(text, 20) for text in walk.captions], rotation=90, fontsize=6)
        axis.set_yticks([])
        for row, picture in enumerate(walk.pictures):
            show(axis.inset_axes((-1.55, row - 0.45, 0.9, 0.9), transform=axis.transData), picture)
            wrong = int(np.where(np.arange(len(table)) == row, -np.inf, table[row]).argmax())
            outline(axis, row, row, BLUE, "-")
            outline(axis, wrong, row, ORANGE, (0, (2, 2)))
            for column, value in enumerate(table[row]):
                dark = value > span[0] + 0.6 * (span[1] - span[0])
                axis.text(
                    column, row, shape.format(value), ha="center", va="center", fontsize=7,
                    color="white" if dark else INK,
                )  # fmt: skip
    figure.tight_layout()
    return figure


def word_maps(model: Predictor, picture: Image.Image, caption: str) -> list[tuple[str, np.ndarray]]:
    """Returns the heat map of every word at the picture's size, as the app shows it."""
    words = explain(model, picture, caption).words
    return [(word.word, enlarge(torch.from_numpy(word.heat), picture.size).numpy()) for word in words]


def look(walk: Walk) -> tuple:
    """Passes the batch through ALBEF's pre-training, with the momentum encoder of its checkpoint."""
    opened = open_task(walk.albef.origin)
    assert isinstance(opened.task, AlbefPretraining)
    pixels = torch.stack([walk.albef.transform(picture) for picture in walk.pictures])
    numbers = torch.arange(len(walk.pictures))
    pairs = Batch(pixels, walk.albef.texts(walk.captions), numbers, rng_keys=numbers)
    inspection = opened.task.inspect(to_device(pairs, walk.albef.device), Progress(0, opened.epoch))
    assert isinstance(inspection, AlbefInspection)
    return inspection, pairs, walk.albef.tokenizer, walk.albef.recipe.data.normalise


def show(axis: Axes, picture: Image.Image) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])


def outline(axis: Axes, column: int, row: int, colour: str, line: object) -> None:
    axis.add_patch(
        plt.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec=colour, lw=1.8, ls=line)  # type: ignore[arg-type]
    )


def bars(axis: Axes, guesses: Sequence[tuple[str, float]], label: str, title: str) -> None:
    """Draws probabilities, with that of the label in another colour."""
    names = [name for name, _ in guesses][::-1]
    values = [100 * value for _, value in guesses][::-1]
    axis.barh(names, values, color=[BLUE if name == label else ORANGE for name in names], height=0.7)
    axis.set_title(title + ("" if label in names else f"\n(label: {label})"), fontweight="normal", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.set_xlim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("albef", type=Path, help="a run of ALBEF's pre-training")
    parser.add_argument("vlmo", type=Path, help="a run of VLMo's pre-training")
    parser.add_argument(
        "--to", type=Path, default=HERE / "pictures", help="folder of the figures (default: docs/pictures)"
    )
    options = parser.parse_args()
    options.to.mkdir(exist_ok=True, parents=True)
    mpl.use("agg")
    mpl.rcParams.update(STYLE)
    walk = begin(options.albef, options.vlmo)
    for name, draw in FIGURES.items():
        figure = draw(walk)
        figure.savefig(options.to / f"walk-{name}.png")
        plt.close(figure)


if __name__ == "__main__":
    main()
