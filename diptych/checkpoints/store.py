"""Checkpoints: folders of safetensors and JSON files. A checkpoint is complete, or it is not there.

    checkpoints/step-00000500/
        weights.safetensors     the task's state: student, momentum encoder, queue
        optimizer.safetensors   the optimiser's moments by parameter name
                                (where they are sharded, each process writes a file of its own: -00001-of-00004)
        calibration.json        added by `diptych evaluate`, and not in the manifest (`save_calibration`)
        state.json              step, epoch, counters, versions
        recipe.json             the resolved recipe
        tokenizer/              the tokenizer's own files
        manifest.json           size and sha256 of every file above

A checkpoint is written next to its final place under a name that nothing loads, flushed to the disk, and then renamed.
Reading it executes no code. Where the disk has damaged a checkpoint since, the next best one is taken and a message
says so (`newest_whole`, `load_from`). Checkpoints are ordered by the steps in their names, so that clocks and the times
of files do not matter.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.checkpoints.files import PUBLISHED_FILES, fingerprint, save_tensors
from diptych.checkpoints.renames import current_name
from diptych.checkpoints.tensors import TensorFile, is_finite
from diptych.places import allow
from diptych.printable import printable
from diptych.reading import disguise_of, read_object
from diptych.schema import DATA_PLACES
from diptych.writing import UNFINISHED, flush, write_text

PREFIX = "step-"
STEP = re.compile(rf"{PREFIX}\d+")
TEMPORARY = UNFINISHED
DAMAGED = "damaged-"
"""Begins the name of a damaged checkpoint that was set aside. Nothing loads or removes it."""
MANIFEST = "manifest.json"
_MOST_NAMED = 100
"""Runs in a folder of runs that are looked at, to name one of them."""
SHARED_WEIGHTS = "model.safetensors"
"""The weights of a checkpoint that is shared. By this name the Hugging Face Hub finds a model's size."""
CALIBRATION = "calibration.json"
LISTED = ("state.json", "recipe.json")
"""Files that every manifest lists."""

MOST_FILES = 10_000
"""Files of a checkpoint: two for each process that trains."""
NAMED = 5
"""Tensors and faults that a message names."""

ADVICE = ": use another checkpoint"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or must not be trusted."""


@dataclass(frozen=True)
class CheckpointState:
    """The content of a checkpoint that is to be written."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """Plain JSON. `best` compares its `measure`, where that is present and not None; higher is better."""
    recipe: Mapping[str, Any]
    save_tokenizer: Callable[[Path], object] | None = None
    """Writes the tokenizer into the folder that it receives."""
    sharded: bool = False
    """Whether `weights` and `optimizer` are this process's shards, beside those of other processes."""


@runtime_checkable
class Writers(Protocol):
    """Processes that write a checkpoint together, as one of them sees them (`train.distributed.World`)."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """Returns each process's value, in the order of their ranks."""
        ...


@dataclass(frozen=True)
class Alone:
    """A process that writes checkpoints without others."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Stored:
    """Reads tensors by name from several files. The shards of a tensor follow each other along its first dimension.

    Tensors that earlier versions stored under other names have their current ones here.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises CheckpointError for a file that is damaged. Reads the headers, and no tensor."""
        self._parts: dict[str, list[tuple[TensorFile, str, tuple[int, ...]]]] = {}
        """By current name: file, stored name and shape of each part."""
        for path in files:
            try:
                file = TensorFile(path)
            except (ValueError, OSError) as error:
                raise CheckpointError(f"{error}{ADVICE}") from error
            for name, stated in file.stated.items():
                parts = self._parts.setdefault(current_name(name), [])
                parts.append((file, name, stated.shape))
                if any(len(shape) != len(stated.shape) or shape[1:] != stated.shape[1:] for *_, shape in parts):
                    raise CheckpointError(
                        f"{path}: {printable(name)} is no shard of what stands in other files{ADVICE}"
                    )

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of the whole tensor."""
        shapes = [shape for *_, shape in self._parts[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {name: self.shape(name) for name in self.names}

    def whole(self, name: str) -> Tensor:
        """Reads a whole tensor. Raises CheckpointError."""
        try:
            parts = [file.tensor(stored) for file, stored, _ in self._parts[name]]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        except (ValueError, RuntimeError) as error:  # RuntimeError: two numbers, which are no shards of anything
            raise CheckpointError(f"{error}{ADVICE}") from error

    def rows(self, name: str, wanted: slice) -> Tensor:
        """Reads only the `wanted` rows of a tensor's first dimension."""
        shards: list[Tensor] = []
        before = 0
        for file, stored, shape in self._parts[name]:
            start, stop = (min(max(place - before, 0), shape[0]) for place in (wanted.start, wanted.stop))
            if stop > start or not shards:
                shards.append(file.rows(stored, start, stop))
            before += shape[0]
        return torch.cat(shards)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose files are as they were written. Its tensors are read on request."""

    folder: Path
    state: Mapping[str, Any] = field(repr=False)
    recipe: Mapping[str, Any] = field(repr=False)

    def stored(self, kind: Literal["weights", "optimizer"]) -> Stored:
        """Opens the files of the task's state or of the optimiser's, without reading the tensors.

        Raises CheckpointError for a damaged file.
        """
        files = sorted(self.folder.glob(f"{kind}*.safetensors"))
        if kind == "weights" and not files:
            files = [self.folder / SHARED_WEIGHTS]
        if len(files) > MOST_FILES:
            raise CheckpointError(f"{self.folder} has {len(files):,} files of {kind}, more than {MOST_FILES:,}{ADVICE}")
        return Stored(files)

    def weights(self) -> dict[str, Tensor]:
        """Reads the task's whole state."""
        return _all_of(self.stored("weights"))

    def optimizer(self) -> dict[str, Tensor]:
        """Reads the optimiser's whole state."""
        return _all_of(self.stored("optimizer"))

    @property
    def calibration(self) -> dict[str, Any] | None:
        """Reads how match logits become probabilities; None if `save_calibration` has not stored it.

        Raises CheckpointError for a damaged file.
        """
        file = self.folder / CALIBRATION
        return _json(file) if file.is_file() else None

    @property
    def tokenizer(self) -> Path:
        """The folder that holds the tokenizer."""
        return self.folder / "tokenizer"


def _all_of(stored: Stored) -> dict[str, Tensor]:
    return {name: stored.whole(name) for name in stored.names}


# --------------------------------------------------------------------------- writing


def save_checkpoint(parent: Path, step: int, content: CheckpointState, writers: Writers | None = None) -> Path:
    """Writes the folder `parent/step-…` and returns it. All `writers` must call this; the first writes what is shared.

    Raises CheckpointError in every process when the disk refuses. Older checkpoints stay as they are.
    """
    writers = writers or Alone()
    final = parent / f"{PREFIX}{step:08d}"
    unfinished = parent / f"{TEMPORARY}{final.name}"

    def begin() -> None:
        parent.mkdir(parents=True, exist_ok=True)
        clean(parent)  # the remains of interrupted saves may be what fills the disk
        if final.exists():
            raise CheckpointError(f"{final} is there already: a step is saved once")
        unfinished.mkdir()

    def write() -> dict[str, Any]:
        suffix = f"-{writers.rank:05d}-of-{writers.size:05d}" if content.sharded else ""
        files = {f"weights{suffix}.safetensors": content.weights, f"optimizer{suffix}.safetensors": content.optimizer}
        return {name: save_tensors(tensors, unfinished / name) for name, tensors in files.items()}

    def finish() -> None:
        _write_description(unfinished, content, fingerprints)
        unfinished.replace(final)
        flush(parent)

    first = writers.rank == 0
    try:
        _together(writers, begin if first else None)
        written = _together(writers, write if first or content.sharded else None)
        fingerprints = {name: entry for entries in written if entries for name, entry in entries.items()}
        _together(writers, finish if first else None)
    except _RefusedError as refused:
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
        previous = latest(parent)
        rest = f"the last whole one is {previous}" if previous else "there is no earlier one"
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {parent} ({refused}); {rest}"
        ) from refused
    return final


def save_shared(folder: Path, content: CheckpointState) -> None:
    """Writes a checkpoint to be shared into an empty folder: the weights in one file, and no optimiser.

    `load` reads it like any other; its state says `shared`. Files that are added later are not in its manifest, and may
    change. Raises OSError when the disk refuses.
    """
    assert not content.optimizer
    assert not content.sharded
    written = {SHARED_WEIGHTS: save_tensors(content.weights, folder / SHARED_WEIGHTS, {"format": "pt"})}
    _write_description(folder, replace(content, state={**content.state, "shared": True}), written)


def save_calibration(folder: Path, calibration: Mapping[str, Any]) -> None:
    """Adds to a checkpoint how its match logits become probabilities, whole or not at all. Raises OSError.

    It is found by an evaluation after the checkpoint was written, and may be found anew. So it is not in the manifest,
    and versions that know nothing of it read the checkpoint all the same.
    """
    write_text(folder / CALIBRATION, json.dumps(calibration, indent=1))


class _RefusedError(Exception):
    """The disk refused one of the writers."""


def _together(writers: Writers, work: Callable[[], Any] | None) -> list[Any]:
    """Runs each writer's `work` and returns the results of all. Where one of them fails, all raise."""
    result: Any = None
    error: Exception | None = None
    try:
        result = work() if work else None
    except (OSError, CheckpointError) as raised:
        error = raised
    outcomes = writers.gather((result, error))
    for _, failure in outcomes:
        if isinstance(failure, CheckpointError):
            raise failure
        if failure is not None:
            raise _RefusedError(getattr(failure, "reason", str(failure))) from failure
    return [result for result, _ in outcomes]


def _write_description(folder: Path, content: CheckpointState, written: Mapping[str, Any]) -> None:
    """Writes everything but tensors, and the manifest. `written`: the fingerprints of the files written before."""
    (folder / "state.json").write_text(json.dumps(content.state, indent=1))
    (folder / "recipe.json").write_text(json.dumps(content.recipe, indent=1))
    if content.save_tokenizer is not None:
        (folder / "tokenizer").mkdir()
        content.save_tokenizer(folder / "tokenizer")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in names - set(written):
        flush(folder / name)
    manifest = {name: written.get(name) or fingerprint(folder / name) for name in sorted(names)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (folder / MANIFEST, folder / "tokenizer", folder):
        if path.exists():
            flush(path)


def clean(parent: Path) -> None:
    """Removes the remains of interrupted saves and removals."""
    for folder in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(parent: Path, newest: int) -> None:
    """Removes all checkpoints but the `newest` last ones and the best one, and the remains of interrupted saves."""
    clean(parent)
    present = _all(parent)
    kept = {*present[max(0, len(present) - newest) :], best(parent)}
    for folder in present:
        if folder not in kept:
            discarded = parent / f"{TEMPORARY}{folder.name}"
            folder.replace(discarded)  # nothing takes a half-removed checkpoint for a whole one
            shutil.rmtree(discarded, ignore_errors=True)


# --------------------------------------------------------------------------- finding


def _all(parent: Path) -> list[Path]:
    """Lists the checkpoints in the order of their steps."""
    present = (folder for folder in parent.glob(f"{PREFIX}*") if STEP.fullmatch(folder.name) and folder.is_dir())
    return sorted(present, key=step_of)


def step_of(folder: Path) -> int:
    """Returns the step that the name of a checkpoint's folder says."""
    return int(folder.name.removeprefix(PREFIX))


def latest(parent: Path) -> Path | None:
    """Returns the checkpoint with the most steps, or None. It may have been damaged since it was written."""
    present = _all(parent)
    return present[-1] if present else None


def best(parent: Path) -> Path | None:
    """Returns the checkpoint with the highest measure, the earliest of equals; None where none was validated."""
    return next((folder for folder in _by_measure(parent) if _measure(folder) is not None), None)


def _by_measure(parent: Path) -> list[Path]:
    """Lists the highest measure first, the earliest of equals, and then those without a measure, the newest first."""

    def sort_key(folder: Path) -> tuple[float, int]:
        measure = _measure(folder)
        return (float("inf"), -step_of(folder)) if measure is None else (-measure, step_of(folder))

    return sorted(_all(parent), key=sort_key)


def _measure(folder: Path) -> float | None:
    try:
        measure = _json(folder / "state.json").get("measure")
    except CheckpointError:  # loading it will say so
        return None
    return measure if isinstance(measure, int | float) and not math.isnan(measure) else None


# --------------------------------------------------------------------------- what has been damaged


@dataclass(frozen=True)
class Damage:
    """A checkpoint that must not be trusted."""

    folder: Path
    reason: str
    """The message, which names the damaged file."""


def newest_whole(parent: Path) -> tuple[Checkpoint | None, list[Damage]]:
    """Loads the undamaged checkpoint with the most steps, and returns the damaged ones that have more. Changes nothing.

    The checkpoint is None where there is none at all. Raises CheckpointError, naming each, where all are damaged.
    """
    return _first_whole(list(reversed(_all(parent))))


def _first_whole(candidates: Sequence[Path]) -> tuple[Checkpoint | None, list[Damage]]:
    """Loads the first candidate that is undamaged, and returns the damaged ones before it."""
    damaged: list[Damage] = []
    for folder in candidates:
        try:
            return load(folder), damaged
        except CheckpointError as error:
            damaged.append(Damage(folder, str(error).removesuffix(ADVICE)))
    if damaged:
        reasons = "".join(f"\n  {damage.reason}" for damage in damaged)
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {damaged[0].folder.parent} is whole:{reasons}\n"
            "Bring one back from a copy, or train in another folder."
        )
    return None, []


def set_aside(damaged: Iterable[Damage], instead: Path) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again, and prints how many steps are lost.

    `instead`: the undamaged checkpoint from which the run goes on.
    """
    for damage in damaged:
        kept = _free(damage.folder.with_name(f"{DAMAGED}{damage.folder.name}"))
        damage.folder.replace(kept)
        lost = step_of(damage.folder) - step_of(instead)
        _warn(
            f"{damage.reason}\n  going on from {instead} instead: {lost} steps are lost and done again;"
            f" the damaged checkpoint is kept as {kept}"
        )


def _warn(text: str) -> None:
    """Prints to standard error, because programs may read a command's standard output."""
    print(printable(text, lines=True), file=sys.stderr, flush=True)


def _free(path: Path) -> Path:
    """Returns `path`, with a number appended where it exists already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


# --------------------------------------------------------------------------- reading


def load_from(path: Path | str) -> Checkpoint:
    """Loads a checkpoint folder, or the best checkpoint of a run folder (the latest one, where none was validated).

    Of a run, damaged checkpoints are passed over for the next best one, and a message says so. Raises CheckpointError
    where there is no checkpoint, where all are damaged, or where the checkpoint folder itself is damaged. A path that a
    stored recipe names is asked about first (`diptych.places`).
    """
    allow({"its start": path if isinstance(path, str) else None})
    path = Path(os.path.expanduser(path))  # noqa: PTH111 — Path raises RuntimeError for ~ and an unknown name
    if (path / MANIFEST).is_file() or (STEP.fullmatch(path.name) and path.is_dir()):
        return load(path)
    checkpoint, damaged = _first_whole(_by_measure(path / "checkpoints"))
    if checkpoint is None:
        raise CheckpointError(f"{path} {_why_none(path)}")
    for damage in damaged:
        _warn(f"{damage.reason}\n  taking {checkpoint.folder} instead")
    return checkpoint


def _why_none(path: Path) -> str:
    """Says why a path leads to no checkpoint: the rest of a sentence that begins with the path."""
    convert = f"`diptych convert {path} --to FOLDER` makes a run's folder of published weights"
    if path.is_file():
        if (path.parent / MANIFEST).is_file():
            return f"is one file of a checkpoint: name its folder, {path.parent}"
        kind = disguise_of(path, binary=True)
        return (
            f"is no checkpoint that can be read: it is {kind}" if kind else f"is a file, not a run's folder: {convert}"
        )
    if not path.is_dir():
        return "does not exist: name a run folder or one of the folders in its checkpoints/"
    if any((path / name).is_file() for name in PUBLISHED_FILES):
        return f"holds published weights, not a run: {convert}"
    if path.name == "checkpoints" and (path.parent / "recipe.json").is_file():
        return f"is where a run keeps its checkpoints: name the run, {path.parent}"
    if runs := sorted(recipe.parent.name for recipe in islice(path.glob("*/recipe.json"), _MOST_NAMED)):
        return f"holds no checkpoint, but runs: name one of them, such as {path / runs[0]}"
    return "holds no checkpoint: name a run folder or one of the folders in its checkpoints/"


def load(folder: Path) -> Checkpoint:
    """Checks every file in `folder` against the manifest and opens the checkpoint. Raises CheckpointError naming a bad
    file."""
    for name, expected in _manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing{ADVICE}")
        size = path.stat().st_size
        if size != expected["bytes"]:
            kind = disguise_of(path)
            is_other = f": it is {kind}" if kind else ADVICE
            raise CheckpointError(f"{path} has {size} bytes, {expected['bytes']} were written{is_other}")
        try:
            digest = fingerprint(path)["sha256"]
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error}){ADVICE}") from error
        if digest != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged (its sha256 is not the one written){ADVICE}")
    state, recipe = _json(folder / "state.json"), _json(folder / "recipe.json")
    _check_state(state, folder / "state.json")
    if "fresh" in state:  # parts of the model, by name
        state["fresh"] = [current_name(part) for part in state["fresh"]]
    return Checkpoint(folder, state, _with_places(recipe, folder))


def _with_places(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Takes from the recipe of the run that a checkpoint belongs to where the data lie now (`diptych resume`)."""
    run = folder.parent.parent / "recipe.json"
    if folder.parent.name != "checkpoints" or not run.is_file():
        return recipe
    try:
        current = _json(run)["data"]
    except (CheckpointError, KeyError, TypeError):  # the checkpoint is whole without it
        return recipe
    return {
        **recipe,
        "data": {**recipe.get("data", {}), **{key: current[key] for key in DATA_PLACES if key in current}},
    }


def _check_state(state: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError unless the entries that readers use are what `save_checkpoint` is given."""
    fresh = state.get("fresh", [])
    number = (int, float)
    kinds: dict[str, Any] = {
        "step": int, "run": dict, "skipped": dict, "measure": (*number, NoneType), "epoch": number,
    }  # fmt: skip
    wrong = [name for name, kind in kinds.items() if name in state and not isinstance(state[name], kind)]
    wrong += ["fresh"] * (not isinstance(fresh, list) or not all(isinstance(part, str) for part in fresh))
    wrong += ["step"] * ("step" not in state)
    if wrong:
        raise CheckpointError(f"{path} is damaged (`{wrong[0]}` is missing or no such value){ADVICE}")


def _manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest. Raises CheckpointError where it does not list files as `_write_description` does."""
    path = folder / MANIFEST
    manifest = _json(path)
    whole = len(manifest) <= MOST_FILES and all(_lists(name, entry) for name, entry in manifest.items())
    if not whole or any(name not in manifest for name in LISTED):
        raise CheckpointError(f"{path} is damaged (it does not list what was written){ADVICE}")
    return manifest


def _lists(name: str, entry: Any) -> bool:
    """Tells whether an entry of a manifest names a file inside its folder, with a size and a digest."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
        and "\0" not in name
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
    )


def _json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises CheckpointError for anything else, of any size and depth."""
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        kind = disguise_of(path)
        reason = f"it is {kind}" if kind else error
        raise CheckpointError(f"{path} cannot be read as part of a checkpoint ({reason}){ADVICE}") from error


def load_into(module: nn.Module, weights: Mapping[str, Tensor], origin: Path | str) -> None:
    """Copies weights into the module.

    Raises CheckpointError listing names and shapes that do not fit, kinds of numbers that are not the module's, and
    numbers that are not finite, with which nothing can be computed.
    """
    check_fit(module, {name: tuple(value.shape) for name, value in weights.items()}, origin)
    own = module.state_dict()
    faults = [
        f"{name} is of {value.dtype}, the model's of {own[name].dtype}"
        for name, value in weights.items()
        if _kind(value.dtype) != _kind(own[name].dtype)
    ]
    if faults:
        raise CheckpointError(f"{origin} is not of this model: {_first(faults)}")
    if endless := [name for name, value in weights.items() if not is_finite(value)]:
        raise CheckpointError(
            f"{origin}: {len(endless)} of {len(weights)} tensors hold numbers that are not finite (NaN or infinite), "
            f"such as {printable(_first(endless))}. Its training diverged, or the file is damaged{ADVICE}"
        )
    module.load_state_dict(dict(weights), strict=True)


def _kind(dtype: torch.dtype) -> str:
    """Returns the kind of numbers, within which a conversion keeps what they say."""
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "truth" if dtype == torch.bool else "whole"


def _first(faults: Sequence[str]) -> str:
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return f"{'; '.join(faults[:NAMED])}{more}"


def check_fit(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], origin: Path | str) -> None:
    """Raises CheckpointError where names and shapes are not exactly the module's, and lists the first five faults."""
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in shapes]
    faults += [f"unknown {name}" for name in shapes if name not in own]
    faults += [
        f"{name} is {shape}, the model's is {tuple(own[name].shape)}"
        for name, shape in shapes.items()
        if name in own and tuple(own[name].shape) != shape
    ]
    if faults:
        raise CheckpointError(f"{origin} is not of this model: {printable(_first(faults))}")
