"""How well a model tells mismatched pairs: `python -m benchmarks.audit RUN [--mismatch 0.2 0.4] [--to FILE]`.

Plants captions of other scenes among training scenes of the run (`data.scenes.mismatch`), scores all pairs as
`diptych data audit` does, and prints for each score the area under the ROC curve, and precision and recall of the pairs
that score below 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.apps.audit.scores import SCORES, score_pairs
from diptych.data.cleanup import clean_caption
from diptych.data.sources.scenes import open_scenes
from diptych.metrics.roc import roc_areas
from diptych.predict.predictor import Predictor


def measure(predictor: Predictor, share: float, count: int) -> dict[str, dict[str, float]]:
    """Scores `count` training scenes, of which this share has the caption of another one.

    Returns for each score `roc_area`, 0..1, and `precision` and `recall`, 0..1, of what scores below 0.
    """
    scenes = replace(predictor.recipe.data.scenes, mismatch=share, noise=0.0)
    source = open_scenes(replace(predictor.recipe.data, scenes=scenes), "train")
    records = [source.record(index) for index in range(count)]
    pictures = [source.picture(record) for record in records]
    captions = [clean_caption(record.captions[0], predictor.recipe.data.max_words) for record in records]
    wrong = torch.tensor([bool(record.clean) for record in records])
    vectors = predictor.embed_images(pictures)
    scores = score_pairs(predictor, pictures, vectors, captions, range(count), "both")
    measured: dict[str, dict[str, float]] = {}
    for name in SCORES:
        score = scores.by(name)
        found = score < 0
        measured[name] = {
            "roc_area": roc_areas(-score[None], wrong[None]).item(),
            "precision": (found & wrong).sum().item() / max(1, found.sum().item()),
            "recall": (found & wrong).sum().item() / wrong.sum().item(),
        }
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.audit", description="Measure the audit on planted pairs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run that was trained on scenes")
    parser.add_argument("--mismatch", nargs="+", type=float, default=[0.2, 0.4], metavar="SHARE")
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="pairs (default: 2000)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="JSON file for the measures of each run")
    options: Any = parser.parse_args(arguments)
    kept: dict[str, dict[str, float]] = {}
    for run in options.runs:
        predictor = diptych.load(run)
        measures = kept.setdefault(Path(run).name, {})
        for share in options.mismatch:
            print(f"{run}, {share:.0%} of {options.count} captions are another scene's")
            for name, found in measure(predictor, share, options.count).items():
                measures |= {f"{share:g}.{name}.{figure}": round(value, 4) for figure, value in found.items()}
                print(
                    f"  {name:8}  area {found['roc_area']:.3f}  below 0: precision {found['precision']:.3f}  "
                    f"recall {found['recall']:.3f}"
                )
    if options.to:
        options.to.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
