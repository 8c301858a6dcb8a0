"""Measures a model on a folder of classes: zero-shot, and by a linear probe on its frozen vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.classes import ClassPictures, read_classes
from diptych.data.record import BadRecord
from diptych.evaluate.linear_probe import cross_predict, predict, train_probe
from diptych.metrics.accuracy import Accuracy, Estimate, accuracy, estimate
from diptych.nn.lowered import Precision
from diptych.predict import Strings, load, unknown_words
from diptych.predict.predictor import TEMPLATES, Predictor
from diptych.run.evaluation import folder_of

NEAREST = 5
"""The number of classes among which the second measure looks for the right one, if there are more."""


@dataclass(frozen=True)
class EvaluatedClasses:
    """A model, measured on a folder of classes."""

    folder: Path
    """The run's folder."""
    source: Path
    checkpoint: str
    names: tuple[str, ...]
    templates: tuple[str, ...]
    zero_shot: Accuracy
    zero_shot_of_five: Estimate | None
    """How often the right class is among the five nearest; None for five classes or fewer."""
    probe: Accuracy | None
    trained_on: int | None
    """Number of pictures that the probe was trained on; None where it was measured in five folds."""
    skipped: tuple[BadRecord, ...]
    unknown_words: tuple[str, ...]
    """Words of the names that the model's vocabulary lacks."""
    precision: Precision = "fp32"
    """The precision of the products in the model's transformer blocks."""

    def scores(self) -> dict[str, Estimate]:
        """Names the measures as in the file."""
        scores = {"zero_shot.accuracy": self.zero_shot.overall}
        if self.zero_shot_of_five is not None:
            scores["zero_shot.accuracy@5"] = self.zero_shot_of_five
        return scores | ({} if self.probe is None else {"linear_probe.accuracy": self.probe.overall})

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "checkpoint": self.checkpoint, "source": str(self.source), "unit": "percent",
            "pictures": self.zero_shot.overall.count, "skipped": len(self.skipped), "classes": len(self.names),
            "unknown_words": list(self.unknown_words), "templates": list(self.templates),
            "chance.accuracy": round(100 / len(self.names), 6),
        }  # fmt: skip
        for name, score in self.scores().items():
            content |= {name: round(score.value, 6), f"{name}.interval": [round(end, 6) for end in score.interval]}
        for kind, measured in (("zero_shot", self.zero_shot), ("linear_probe", self.probe)):
            if measured is not None:
                content[f"{kind}.accuracy_by_class"] = {
                    name: round(100 * count.right / count.labelled, 6)
                    for name, count in measured.classes.items()
                    if count.labelled
                }
        if self.trained_on is not None:
            content["linear_probe.trained_on"] = self.trained_on
        if self.precision != "fp32":
            content["precision"] = self.precision
        return content

    @property
    def file(self) -> Path:
        return self.folder / "eval-classes.json"

    def write(self) -> Path:
        """Writes the measures as `eval-classes.json` into the run's folder."""
        self.file.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
        return self.file


def evaluate_classes(
    path: Path | str,
    source: Path,
    probe: bool = False,
    templates: Strings = TEMPLATES,
    names: Mapping[str, str] | None = None,
    resamples: int = 1000,
    device: str = "auto",
    precision: str = "fp32",
) -> EvaluatedClasses:
    """Measures how well a run's best checkpoint, or the checkpoint given, tells the classes of a folder.

    Zero-shot, the class is the one whose name is nearest (`Predictor.classify`). With `probe`, logistic regression on
    the vectors of pictures is trained too: on the folder's `train`, or else in five folds, in which each picture is
    predicted by a probe that has not seen it. Pictures that cannot be read are left out and counted.

    Raises ValueError for a model without trained embeddings, for a folder without class folders, and for a probe where
    a class has a single picture.
    """
    measured, trained = read_classes(source, names)
    predictor = load(path, device, precision=precision)
    wanted = (templates,) if isinstance(templates, str) else tuple(templates)
    labelled = predictor.embed_labels(measured.names, wanted)
    vectors, labels, skipped = _embed(predictor, measured)
    similarity = vectors @ labelled.T
    zero_shot = accuracy(similarity.argmax(dim=1), labels, measured.names, resamples=resamples)
    of_five = None
    if len(measured.names) > NEAREST:
        near = (similarity.topk(NEAREST, dim=1).indices == labels[:, None]).any(dim=1)
        of_five = estimate(near.double().numpy(), resamples=resamples)
    by_probe, trained_on = None, None
    if probe:
        if trained is None:
            _check_folds(measured, labels)
            predictions = cross_predict(vectors, labels, len(measured.names))
        else:
            known, known_labels, also = _embed(predictor, trained)
            _check_folds(trained, known_labels)
            skipped, trained_on = [*skipped, *also], len(known)
            predictions = predict(vectors, train_probe(known, known_labels, len(measured.names)))
        by_probe = accuracy(predictions, labels, measured.names, resamples=resamples)
    return EvaluatedClasses(
        folder_of(predictor.origin), source, predictor.origin.name, measured.names, wanted, zero_shot, of_five,
        by_probe, trained_on, tuple(skipped), unknown_words(" ".join(measured.names), predictor.tokenizer),
        predictor.precision,
    )  # fmt: skip


def _embed(predictor: Predictor, pictures: ClassPictures) -> tuple[Tensor, Tensor, list[BadRecord]]:
    """Embeds the readable pictures. Returns their vectors [N, E], their labels [N] and the errors of the others."""
    places, vectors, skipped = predictor.embed_readable(pictures.files)
    if not places:
        raise ValueError(f"none of the {len(pictures.files)} pictures can be read; the first: {skipped[0]}")
    return vectors, torch.tensor(pictures.labels)[places], skipped


def _check_folds(pictures: ClassPictures, labels: Tensor) -> None:
    """Raises ValueError for a class of which no picture would be left to train on."""
    counts = labels.bincount(minlength=len(pictures.names))
    if few := [name for name, count in zip(pictures.names, counts.tolist(), strict=True) if count < 2]:
        raise ValueError(f"a linear probe needs two pictures of each class that can be read; {few[0]!r} has fewer")
