"""Exports a trained model as a folder to share: weights, recipe, tokenizer, evaluation and model card.

    README.md            the model card
    config.json          a summary for the Hub
    model.safetensors    the weights of model and head
    recipe.json          the recipe that trained it
    state.json           its checkpoint and number of steps
    tokenizer/           as in a checkpoint
    manifest.json        size and sha256 of the four above
    eval.json            the evaluation of the checkpoint, if there is one
    calibration.json     how its match logits become probabilities, if it was evaluated

`diptych.load`, `init_from` and `diptych evaluate` accept the folder like a checkpoint. Momentum encoder, queue and
optimiser are left out: only training needs them, and they make up most of a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import diptych
from diptych.apps.export.card import Evaluation, model_card
from diptych.checkpoints import store
from diptych.predict import Predictor, load
from diptych.reading import expand_home, read_stored
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.writing import is_free, whole_folder

Source = Predictor | str | Path
"""A model in memory, a run, a checkpoint, an exported folder, or a name on the Hub."""


def export_folder(source: Source, folder: str | Path, license: str = "unknown") -> Path:
    """Writes a model into a new folder, atomically, and returns the folder.

    `license` is that of the weights, by the Hub's names (`apache-2.0`, `cc-by-4.0` …). Raises ValueError if the folder
    is not empty, and if `diptych.load` cannot load the source; WriteError, with nothing written, if the disk refuses.
    """
    folder = expand_home(folder)
    require_new(folder)
    predictor = source if isinstance(source, Predictor) else load(source, "cpu")
    predictor.check_exact()
    state, evaluation = _state(predictor), find_evaluation(predictor)
    with whole_folder(folder) as unfinished:
        recipe = without_folders(to_dict(predictor.recipe))
        save = predictor.tokenizer.save
        store.save_shared(unfinished, store.CheckpointState(weights_of(predictor), {}, state, recipe, save))
        if evaluation.results is not None:
            _write_json(unfinished / "eval.json", evaluation.results)
        if predictor.calibration is not None:
            store.save_calibration(unfinished, predictor.calibration.to_json())
        _write_json(unfinished / "config.json", _config(predictor.recipe))
        (unfinished / "README.md").write_text(model_card(predictor, evaluation, license), encoding="utf-8")
    return folder


def require_new(folder: Path) -> None:
    """Raises ValueError for a path that exists, unless it is an empty folder."""
    if not is_free(folder):
        raise ValueError(f"{folder} already exists: name a new folder")


def weights_of(predictor: Predictor) -> dict[str, Tensor]:
    """Returns the weights of the model and of its head, if it has one, by their names in a checkpoint."""
    if predictor.task is None:
        return {f"model.{name}": value for name, value in predictor.model.state_dict().items()}
    state = predictor.task.state_dict()
    return {name: value for name, value in state.items() if name.startswith(("model.", "head."))}


def without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Cuts the absolute paths of a stored recipe to their last part, because folders of a machine are private."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        if isinstance(value, str) and any(part.startswith(("/", "~")) for part in value.split(",")):
            return ",".join(Path(part).name for part in value.split(","))
        return value

    result: dict[str, Any] = cut(recipe)
    return result


def find_evaluation(predictor: Predictor) -> Evaluation:
    """Finds the evaluation of this very checkpoint, and that of the same recipe trained on blank pictures."""
    origin = predictor.origin
    run = origin.parent.parent if origin.parent.name == "checkpoints" else origin
    results = _read(run / "eval.json")
    names = {origin.name, (_read(origin / "state.json") or {}).get("checkpoint")}
    if results is not None and results.get("checkpoint") not in names:
        results = None
    return Evaluation(results, _blind(run, predictor.recipe) if results else None)


def _blind(run: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Returns the evaluation of the same recipe on blank pictures, if `diptych demo --all-tasks` left exactly one."""
    twins = []
    for file in run.parent.parent.glob("blind/*/eval.json"):
        other = _read(file.parent / "recipe.json") or {}
        if other.get("name") == recipe.name and other.get("data", {}).get("blank_images"):
            twins.append(file)
    return _read(twins[0]) if len(twins) == 1 and not recipe.data.blank_images else None


def _state(predictor: Predictor) -> dict[str, Any]:
    """Returns the state of the checkpoint that the model comes from. A published file has no steps."""
    stored = _read(predictor.origin / "state.json") or {}
    return {
        "step": stored.get("step", 0),
        "epoch": stored.get("epoch", 0.0),
        "measure": stored.get("measure"),
        "fresh": sorted(predictor.untrained),
        "checkpoint": stored.get("checkpoint", predictor.origin.name),
    }


def _config(recipe: Recipe) -> dict[str, Any]:
    return {
        "library_name": "diptych",
        "library_version": diptych.__version__,
        "model_type": type(recipe.model).__name__.removesuffix("Config").lower(),
        "recipe": recipe.name,
        "task": type(recipe.task).__name__,
        "image_size": recipe.model.image_size,
    }


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    return read_stored(file)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
