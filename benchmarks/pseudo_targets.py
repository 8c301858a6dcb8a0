"""How often pseudo-targets are better than labels: `python -m benchmarks.pseudo_targets RUN… [--to FILE]`.

ALBEF learns from noisy pairs by the momentum encoder's predictions (§3.3, Figure 2). In generated scenes the truth is
known, also where the caption is another scene's (`data.scenes.mismatch`). For each kept checkpoint of a run this
counts, over the same training pairs,

- texts: whether the pair's own caption, the label of ITC, is true of the image, and whether the text of the batch that
  the momentum encoder finds likeliest is;
- words: at masked names of things, whether the image shows the thing that stood there, the label of MLM, and whether it
  shows the one that the momentum encoder finds likeliest.

`label` and `pseudo` count the cases in which only one of them is right, in percent of all; `both` and `neither` the
others.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.nouns import print_table
from diptych.checkpoints.store import step_of
from diptych.data.dataset import PairDataset
from diptych.data.sources.scenes import Scenes, open_scenes
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import TrainTransform
from diptych.run.evaluation import OpenedTask, open_task
from diptych.synthetic.generator import Scene
from diptych.synthetic.sprites import sprite_set
from diptych.tasks.albef_pretraining import AlbefInspection
from diptych.types import Progress

BATCH = 64
"""Pairs among whose texts the momentum encoder chooses."""
RIGHT = {(True, False): "label", (False, True): "pseudo", (True, True): "both", (False, False): "neither"}
"""What is right, by whether the label is, and whether the pseudo-target is."""


def measure(run: Path, count: int) -> dict[str, float]:
    """Measures each kept checkpoint of a run on `count` training pairs: `texts.label.STEP` and so on, in percent.

    Raises ValueError for a run without a momentum encoder, and for one on other data than scenes in English.
    """
    return {
        f"{name}.{step_of(folder)}": round(share, 2)
        for folder in sorted((run / "checkpoints").glob("step-*"))
        for name, share in _measure(open_task(folder), count).items()
    }


def _measure(opened: OpenedTask, count: int) -> dict[str, float]:
    recipe = opened.recipe
    if recipe.data.source != "scenes" or recipe.data.scenes.language != "en":
        raise ValueError(f"{opened.folder} was trained on {recipe.data.source}: the truth is known of English scenes")
    source = open_scenes(recipe.data, "train")
    transform = TrainTransform(recipe.data, recipe.model.image_size, recipe.released)
    dataset = PairDataset(source, transform, opened.tokenizer, recipe.data, 0, claims=recipe.task.needs_claims)
    found = {"texts": Counter[str](), "words": Counter[str]()}
    for start in range(0, count, BATCH):
        indices = range(start, min(start + BATCH, count, len(source)))
        batch = dataset.__getitems__([(0, index) for index in indices]).batch
        assert batch is not None, "generated scenes are never bad records"
        inspection = opened.task.inspect(batch, Progress(start, opened.epoch))
        if not isinstance(inspection, AlbefInspection):
            raise ValueError(f"{opened.folder} has no momentum encoder that makes pseudo-targets")
        found["texts"].update(_texts(inspection, source, indices))
        scenes = [source.scene(index) for index in indices]
        found["words"].update(_words(inspection, scenes, opened.tokenizer, _names(source)))
    return {
        f"{kind}.{right}": 100 * counts[right] / max(1, counts.total())
        for kind, counts in found.items()
        for right in RIGHT.values()
    }


def _texts(inspection: AlbefInspection, source: Scenes, indices: range) -> Iterator[str]:
    """Says of each pair whether its caption, and the text that the momentum encoder prefers, are true of the image."""
    captions = [source.given(index) for index in indices]
    for place, index in enumerate(indices):
        label, pseudo = captions[place], captions[int(inspection.momentum_texts[place, 0])]
        scene = source.scene(index)
        yield RIGHT[label is not None and label.true_of(scene), pseudo is not None and pseudo.true_of(scene)]


def _names(source: Scenes) -> dict[str, str]:
    """Maps each form of a noun to the name of its thing."""
    nouns = [sprite.noun for sprite in sprite_set(source.config).sprites]
    return {form: noun.singular for noun in nouns for form in (noun.singular, noun.plural)}


def _words(
    inspection: AlbefInspection, scenes: list[Scene], tokenizer: Tokenizer, names: Mapping[str, str]
) -> Iterator[str]:
    """Says of each masked name of a thing whether the image shows it, and what the momentum encoder puts there."""
    masked = torch.stack([inspection.masked.pair, inspection.labels, inspection.momentum_words[:, 0]], dim=1)
    for pair, label, pseudo in masked.tolist():
        name = names.get(tokenizer.token(label))
        if name is not None:
            shown = scenes[pair].kinds
            yield RIGHT[name in shown, names.get(tokenizer.token(pseudo)) in shown]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.pseudo_targets", description="Judge pseudo-targets.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run of ALBEF that was trained on scenes")
    parser.add_argument("--count", type=int, default=1024, metavar="N", help="training pairs (default: 1024)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="JSON file for the measures of each run")
    options = parser.parse_args()
    found = {run.name: measure(run, options.count) for run in options.runs}
    print_table(found)
    if options.to:
        options.to.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
