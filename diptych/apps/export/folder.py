"""A trained model as a folder to hand on: weights, recipe, tokenizer, measures and a card that says what it is.

    README.md            the model card
    config.json          what it is in a few words, for the Hub
    model.safetensors    the weights of model and head
    recipe.json          the recipe that trained it
    state.json           of which checkpoint, after how many steps
    tokenizer/           as in a checkpoint
    manifest.json        size and sha256 of the four above
    eval.json            what was measured, if anything

`diptych.load`, `init_from` and `diptych evaluate` take it as they take a checkpoint. Teacher, queue and optimiser stay
behind: they serve training only, and are most of a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import diptych
from diptych.apps.export.card import Measured, model_card
from diptych.checkpoints import store
from diptych.predict import Predictor, load
from diptych.schema import Recipe
from diptych.serialize import to_dict

Source = Predictor | str | Path
"""A model in memory, a run, a checkpoint, an exported folder or its name on the Hub."""


def export_folder(source: Source, folder: str | Path, license: str = "unknown") -> Path:
    """Writes a model into a new folder, whole or not at all, and returns it.

    `license` of the weights, by the Hub's names (`apache-2.0`, `cc-by-4.0` …). Raises ValueError for a folder that
    holds something, and as `diptych.load` does.
    """
    folder = Path(folder)
    require_new(folder)
    predictor = source if isinstance(source, Predictor) else load(source, "cpu")
    state, measured = _state(predictor), find_measured(predictor)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{store.TEMPORARY}{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        recipe = without_places(to_dict(predictor.recipe))
        save = predictor.tokenizer.save
        store.save_shared(unfinished, store.CheckpointState(weights_of(predictor), {}, state, recipe, save))
        if measured.found is not None:
            _write_json(unfinished / "eval.json", measured.found)
        _write_json(unfinished / "config.json", _config(predictor.recipe))
        (unfinished / "README.md").write_text(model_card(predictor, measured, license), encoding="utf-8")
        if folder.exists():  # empty, as was required
            folder.rmdir()
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def require_new(folder: Path) -> None:
    """Raises ValueError for what is there already and is no empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: name a new folder")


def weights_of(predictor: Predictor) -> dict[str, Tensor]:
    """Of the model and, where there is one, of its head: by the names that a checkpoint has for them."""
    if predictor.task is None:
        return {f"model.{name}": value for name, value in predictor.model.state_dict().items()}
    own = predictor.task.state_dict()
    return {name: value for name, value in own.items() if name.startswith(("model.", "head."))}


def without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe whose absolute paths are cut to their last part: where a machine keeps its files is no one's
    business."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        if isinstance(value, str) and any(part.startswith(("/", "~")) for part in value.split(",")):
            return ",".join(Path(part).name for part in value.split(","))
        return value

    found: dict[str, Any] = cut(recipe)
    return found


def find_measured(predictor: Predictor) -> Measured:
    """What was measured of this very checkpoint, and of the same recipe on blank pictures."""
    origin = predictor.origin
    run = origin.parent.parent if origin.parent.name == "checkpoints" else origin
    found = _read(run / "eval.json")
    own = {origin.name, (_read(origin / "state.json") or {}).get("checkpoint")}
    if found is not None and found.get("checkpoint") not in own:
        found = None
    return Measured(found, _blind(run, predictor.recipe) if found else None)


def _blind(run: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What was measured of the run's twin that saw blank pictures, where `diptych demo --all-tasks` left one."""
    twins = []
    for file in run.parent.parent.glob("blind/*/eval.json"):
        other = _read(file.parent / "recipe.json") or {}
        if other.get("name") == recipe.name and other.get("data", {}).get("blank_images"):
            twins.append(file)
    return _read(twins[0]) if len(twins) == 1 and not recipe.data.blank_images else None


def _state(predictor: Predictor) -> dict[str, Any]:
    """Of the checkpoint that it comes from; a published file has no steps of ours."""
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
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
