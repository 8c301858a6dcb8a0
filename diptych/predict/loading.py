"""Loads models from runs, checkpoints and the Hugging Face Hub, ready to use."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.checkpoints.sizes import Shapes, check_size
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.device import find_device
from diptych.predict.precision import check_precision, use_precision
from diptych.predict.predictor import Predictor
from diptych.schema import Recipe
from diptych.search.calibration import MatchCalibration
from diptych.serialize import from_dict
from diptych.task import Model

ONLY_FOR_TRAINING = ("momentum_", "queue")
"""Parts of a task that only training needs; exported checkpoints come without them."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load(
    path: str | Path,
    device: str | int | torch.device | None = "auto",
    largest_pixels: int | None = None,
    precision: str = "fp32",
) -> Predictor:
    """Loads the model of a run (its best checkpoint, otherwise its latest) or of a checkpoint folder, ready to use.

    A path that does not exist and looks like `owner/name` is taken for a checkpoint folder on the Hugging Face Hub, as
    `diptych export RUN --push` puts them there. It is fetched once, into the Hub's cache. A task's head is loaded too;
    its momentum encoder and its queue are not. `device` is auto (a GPU where there is one), cpu, cuda, or cuda:N.
    `largest_pixels` replaces the recipe's `data.largest_pixels`, above which pictures are refused. `precision` is fp32,
    bf16, int8 (on CPUs), or auto, which takes the fastest here that loses little (`diptych.predict.precision`).

    Raises ValueError for a folder without a checkpoint, a damaged one, weights that do not fit the recipe, and a
    precision that the device lacks.
    """
    check_precision(precision, find_device(device))  # before loading, which may take long
    checkpoint = store.load_from(_folder(path))
    recipe, tokenizer = from_dict(checkpoint.recipe), Tokenizer.load(checkpoint.tokenizer)
    if largest_pixels is not None:
        if not isinstance(largest_pixels, int) or largest_pixels < 1:
            raise ValueError(f"largest_pixels is {largest_pixels!r}: give a whole number of pixels, at least one")
        recipe = replace(recipe, data=replace(recipe.data, largest_pixels=largest_pixels))
    stored = checkpoint.stored("weights")
    check_model_size(recipe, tokenizer, stored.shapes, checkpoint.folder)
    return make_predictor(
        recipe,
        tokenizer,
        {name: stored.whole(name) for name in stored.names},
        checkpoint.folder,
        checkpoint.state.get("fresh", ()),
        device,
        _calibration(checkpoint),
        precision,
    )


def check_model_size(recipe: Recipe, tokenizer: Tokenizer, shapes: Shapes, origin: Path) -> None:
    """Compares the model of a recipe, and its task's head if it has one, with stored shapes before either takes memory.

    Raises CheckpointError.
    """
    kind = catalog.task_class(recipe.task)
    if kind.headed:
        used = replace(recipe, task=kind.for_use(recipe.task))
        own = {name: shape for name, shape in shapes.items() if not name.startswith(ONLY_FOR_TRAINING)}
        check_size(lambda: catalog.build_task(used, tokenizer), used, own, origin, ONLY_FOR_TRAINING)
    else:
        own = {name.removeprefix("model."): shape for name, shape in shapes.items() if name.startswith("model.")}
        check_size(lambda: catalog.build_model(recipe.model, tokenizer, recipe.released), recipe.model, own, origin)


def _calibration(checkpoint: store.Checkpoint) -> MatchCalibration | None:
    """Reads the calibration of a checkpoint, if it has one. Raises CheckpointError for a damaged one."""
    try:
        stored = checkpoint.calibration
        return None if stored is None else MatchCalibration.from_json(stored)
    except ValueError as error:
        file, reason = checkpoint.folder / store.CALIBRATION, str(error).removesuffix(store.ADVICE)
        raise store.CheckpointError(f"{file} is damaged ({reason}): remove it, and evaluate the run anew") from error


def is_own(path: str | Path) -> bool:
    """Tells whether `load` takes it: a run, a checkpoint, an exported folder, or the Hub's name of one."""
    path = Path(os.path.expanduser(path))  # noqa: PTH111 — Path raises RuntimeError for ~ and an unknown name
    name = path.as_posix()
    if not path.exists():
        return HUB_ID.fullmatch(name) is not None and path.suffix not in (".pth", ".pt", ".bin", ".safetensors")
    return (path / "checkpoints").is_dir() or (path / store.MANIFEST).is_file()


def make_predictor(
    recipe: Recipe,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    origin: Path,
    fresh: Collection[str] = (),
    device: str | int | torch.device | None = "auto",
    calibration: MatchCalibration | None = None,
    precision: str = "fp32",
) -> Predictor:
    """Builds the model, and the task's head if it has one, and loads their share of the task's `weights`.

    `fresh` are parts without trained weights. Raises ValueError for weights that do not fit the recipe.
    """
    place, kind = find_device(device), catalog.task_class(recipe.task)
    task = None
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn from the run's seed, and not kept
        if kind.headed:
            task = catalog.build_task(replace(recipe, task=kind.for_use(recipe.task)), tokenizer)
            stays = {name: value for name, value in task.state_dict().items() if name.startswith(ONLY_FOR_TRAINING)}
            own = {name: value for name, value in weights.items() if not name.startswith(ONLY_FOR_TRAINING)}
            store.load_into(task, own | stays, origin)
            task = task.to(place).eval()
            model = task.model
        else:
            model = catalog.build_model(recipe.model, tokenizer, recipe.released).eval()
            own = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
            store.load_into(model, own, origin)
    if not isinstance(model, Model):
        raise ValueError(
            f"{origin} holds a visual tokenizer, which knows no texts: name it as a vision stage's tokenizer"
        )
    model = model.to(place)
    used, why = use_precision(precision, task or model, model, recipe, tokenizer, place)
    return Predictor(
        model=model,
        task=task,
        tokenizer=tokenizer,
        transform=EvaluationTransform(recipe.data, recipe.model.image_size),
        recipe=recipe,
        device=place,
        origin=origin,
        untrained=frozenset((*fresh, *model.parts_unused_by(*kind.trained(recipe.task)))),
        calibration=calibration,
        precision=used,
        precision_note=why,
    )


def _folder(path: str | Path) -> Path:
    """Returns the local folder of a path or of a name on the Hub."""
    path = Path(os.path.expanduser(path))  # noqa: PTH111 — Path raises RuntimeError for ~ and an unknown name
    name = path.as_posix()
    if path.exists() or not HUB_ID.fullmatch(name):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(name))
    except RepositoryNotFoundError as error:
        why = "the Hugging Face Hub has no model of that name that you may read"
        raise store.CheckpointError(f"there is no folder {name}, and {why}") from error
    except Exception as error:  # whatever a client meets on its way
        why = str(error).partition("\n")[0]
        raise store.CheckpointError(
            f"there is no folder {name}, and it could not be fetched from the Hugging Face Hub: {why}"
        ) from error
