"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

    checkpoints/step-00000500/
        weights.safetensors     the task's state: student, teacher, queue
        optimizer.safetensors   AdamW's memory by parameter name
                                (each process's part in a file of its own where they are cut: -00001-of-00004)
        state.json              step, epoch, counters, versions
        recipe.json             the resolved recipe
        tokenizer/              what its `save` wrote
        manifest.json           size and sha256 of every file above

A checkpoint is written beside its place under a name that nothing loads, flushed to the disk, then renamed.
Reading executes nothing. What the disk has damaged since is passed over for the next best one, and said
(`newest_whole`, `load_from`). The order is that of the steps in the names: clocks and times of files do not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.checkpoints.renames import current_name

PREFIX = "step-"
STEP = re.compile(rf"{PREFIX}\d+")
TEMPORARY = ".unfinished-"
DAMAGED = "damaged-"
"""What a damaged checkpoint is called once it is set aside; nothing loads or removes it."""
MANIFEST = "manifest.json"
SHARED_WEIGHTS = "model.safetensors"
"""Weights of a checkpoint that is handed on: the name by which the Hugging Face Hub finds a model's size."""
LISTED = ("state.json", "recipe.json")
"""What every manifest lists."""

ADVICE = ": use another checkpoint"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or must not be trusted."""


@dataclass(frozen=True)
class CheckpointState:
    """What goes into a checkpoint."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """Plain JSON. `measure`, where present and not None, is what `best` compares: higher is better."""
    recipe: Mapping[str, Any]
    save_tokenizer: Callable[[Path], object] | None = None
    """Writes the tokenizer into the folder that it is given."""
    cut: bool = False
    """Whether `weights` and `optimizer` are this process's part of what several processes write."""


@runtime_checkable
class Writers(Protocol):
    """The processes that write a checkpoint together."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def exchange(self, value: Any) -> list[Any]:
        """What each has, in their order."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def exchange(self, value: Any) -> list[Any]:
        return [value]


class Stored:
    """Named tensors in files, of which one may be cut into parts, that follow each other by their first dimension.

    Tensors that earlier versions stored under other names have their current ones here.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(file, "pt") for file in files]
        self._parts: dict[str, list[tuple[Any, str, tuple[int, ...]]]] = {}
        """By current name: file, stored name and shape of each part."""
        for file in self._files:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                part = file, name, tuple(file.get_slice(name).get_shape())
                self._parts.setdefault(current_name(name), []).append(part)

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        shapes = [shape for *_, shape in self._parts[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def whole(self, name: str) -> Tensor:
        parts = [file.get_tensor(stored) for file, stored, _ in self._parts[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows(self, name: str, wanted: slice) -> Tensor:
        """Some of its first dimension. Nothing else is read."""
        found: list[Tensor] = []
        before = 0
        for file, stored, shape in self._parts[name]:
            start, stop = (min(max(place - before, 0), shape[0]) for place in (wanted.start, wanted.stop))
            if stop > start or not found:
                found.append(file.get_slice(stored)[start:stop])
            before += shape[0]
        return torch.cat(found)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are what was written. Tensors are read when asked for."""

    folder: Path
    state: Mapping[str, Any] = field(repr=False)
    recipe: Mapping[str, Any] = field(repr=False)

    def stored(self, what: Literal["weights", "optimizer"]) -> Stored:
        files = sorted(self.folder.glob(f"{what}*.safetensors"))
        if what == "weights" and not files:
            files = [self.folder / SHARED_WEIGHTS]
        return Stored(files)

    def weights(self) -> dict[str, Tensor]:
        return _all_of(self.stored("weights"))

    def optimizer(self) -> dict[str, Tensor]:
        return _all_of(self.stored("optimizer"))

    @property
    def tokenizer(self) -> Path:
        """The folder that holds the tokenizer."""
        return self.folder / "tokenizer"


def _all_of(stored: Stored) -> dict[str, Tensor]:
    return {name: stored.whole(name) for name in stored.names}


# --------------------------------------------------------------------------- writing


def save_checkpoint(parent: Path, step: int, content: CheckpointState, writers: Writers | None = None) -> Path:
    """Writes `parent/step-…` and returns it. Of several `writers` all must call this; the first writes what all share.

    Raises CheckpointError, in all, when the disk refuses; older checkpoints stay as they are.
    """
    writers = writers or Alone()
    final = parent / f"{PREFIX}{step:08d}"
    unfinished = parent / f"{TEMPORARY}{final.name}"

    def begin() -> None:
        parent.mkdir(parents=True, exist_ok=True)
        clean(parent)  # the leftovers may be what fills the disk
        if final.exists():
            raise CheckpointError(f"{final} is there already: a step is saved once")
        unfinished.mkdir()

    def finish() -> None:
        _describe(unfinished, content, written)
        unfinished.replace(final)
        flush(parent)

    first = writers.rank == 0
    try:
        _together(writers, begin if first else None)
        tensors = _together(writers, partial(_write, unfinished, content, writers) if first or content.cut else None)
        written = {name: found for files in tensors if files for name, found in files.items()}
        _together(writers, finish if first else None)
    except _RefusedError as refused:
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
        kept = latest(parent)
        rest = f"the last whole one is {kept}" if kept else "there is no earlier one"
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {parent} ({refused}); {rest}"
        ) from refused
    return final


def save_shared(folder: Path, content: CheckpointState) -> None:
    """Writes a checkpoint to be handed on into an empty folder: weights in one file, nothing of an optimiser.

    `load` takes it as any other; its state says `shared`. What is put beside it later is not in its manifest, and may
    change. Raises OSError when the disk refuses.
    """
    assert not content.optimizer
    assert not content.cut
    weights = folder / SHARED_WEIGHTS
    save_file(_separate(content.weights), weights, metadata={"format": "pt"})
    weights.chmod(0o666 & ~_umask())
    flush(weights)
    shared = replace(content, state={**content.state, "shared": True})
    _describe(folder, shared, {weights.name: fingerprint(weights)})


class _RefusedError(Exception):
    """What the disk said to one of the writers."""


def _together(writers: Writers, work: Callable[[], Any] | None) -> list[Any]:
    """What each writer's work gives. Where one's fails, all raise."""
    made: Any = None
    error: Exception | None = None
    try:
        made = work() if work else None
    except (OSError, SafetensorError, CheckpointError) as found:
        error = found
    told = writers.exchange((made, error))
    for _, failed in told:
        if isinstance(failed, CheckpointError):
            raise failed
        if failed is not None:
            raise _RefusedError(str(failed)) from failed
    return [result for result, _ in told]


def _write(folder: Path, content: CheckpointState, writers: Writers) -> dict[str, Any]:
    """This writer's tensors. Returns the fingerprints of their files."""
    written = {}
    for kind, tensors in (("weights", content.weights), ("optimizer", content.optimizer)):
        mark = f"-{writers.rank:05d}-of-{writers.size:05d}" if content.cut else ""
        path = folder / f"{kind}{mark}.safetensors"
        save_file(_separate(tensors), path)
        path.chmod(0o666 & ~_umask())  # which would be the owner's alone
        flush(path)
        written[path.name] = fingerprint(path)
    return written


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _describe(folder: Path, content: CheckpointState, written: Mapping[str, Any]) -> None:
    """What is no tensor, and the list of all files, whose `written` ones have their fingerprints."""
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


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, of which no two share memory (a tied table is stored under each of its names)."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return separate


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's size and sha256."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flush(path: Path) -> None:
    """Forces a file's content or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean(parent: Path) -> None:
    """Removes what an interrupted save or removal left behind."""
    for folder in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(parent: Path, newest: int) -> None:
    """Keeps the `newest` last checkpoints and the best one, and nothing that an interrupted save or removal left."""
    clean(parent)
    present = _all(parent)
    kept = {*present[max(0, len(present) - newest) :], best(parent)}
    for folder in present:
        if folder not in kept:
            gone = parent / f"{TEMPORARY}{folder.name}"
            folder.replace(gone)  # so that a half-removed one is never taken for a whole one
            shutil.rmtree(gone, ignore_errors=True)


# --------------------------------------------------------------------------- finding


def _all(parent: Path) -> list[Path]:
    """By their steps."""
    present = (folder for folder in parent.glob(f"{PREFIX}*") if STEP.fullmatch(folder.name) and folder.is_dir())
    return sorted(present, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def latest(parent: Path) -> Path | None:
    """The checkpoint with the most steps, or None. It may have been damaged since."""
    present = _all(parent)
    return present[-1] if present else None


def best(parent: Path) -> Path | None:
    """The checkpoint with the highest measure, the earliest of equals; None when none was validated."""
    judged = [folder for folder in _by_measure(parent) if _measure(folder) is not None]
    return judged[0] if judged else None


def _by_measure(parent: Path) -> list[Path]:
    """The highest measure first, the earliest of equals; behind them those without one, the newest first."""

    def place(folder: Path) -> tuple[float, int]:
        measure = _measure(folder)
        return (float("inf"), -_step(folder)) if measure is None else (-measure, _step(folder))

    return sorted(_all(parent), key=place)


def _measure(folder: Path) -> float | None:
    try:
        measure = _json(folder / "state.json").get("measure")
    except CheckpointError:  # said where it is loaded
        return None
    return measure if isinstance(measure, int | float) and not math.isnan(measure) else None


def find(path: Path | str) -> Path:
    """The checkpoint meant by `path`, which is whole: see `load_from`."""
    return load_from(path).folder


# --------------------------------------------------------------------------- what has been damaged


@dataclass(frozen=True)
class Damage:
    """A checkpoint that must not be trusted."""

    folder: Path
    reason: str
    """Names the file."""


def newest_whole(parent: Path) -> tuple[Checkpoint | None, list[Damage]]:
    """The whole checkpoint with the most steps, and the damaged ones that have more. Changes nothing.

    None where there is no checkpoint at all. Raises CheckpointError naming every one where none is whole.
    """
    return _first_whole(list(reversed(_all(parent))))


def _first_whole(candidates: Sequence[Path]) -> tuple[Checkpoint | None, list[Damage]]:
    damaged: list[Damage] = []
    for folder in candidates:
        try:
            return load(folder), damaged
        except CheckpointError as error:
            damaged.append(Damage(folder, str(error).removesuffix(ADVICE)))
    if damaged:
        reasons = "".join(f"\n  {one.reason}" for one in damaged)
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {damaged[0].folder.parent} is whole:{reasons}\n"
            "Bring one back from a copy, or train in another folder."
        )
    return None, []


def set_aside(damaged: Iterable[Damage], instead: Path) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again, and says what is lost by it.

    `instead`: the whole checkpoint that the run goes on from.
    """
    for one in damaged:
        kept = _free(one.folder.with_name(f"{DAMAGED}{one.folder.name}"))
        one.folder.replace(kept)
        lost = _step(one.folder) - _step(instead)
        _say(
            f"{one.reason}\n  going on from {instead} instead: {lost} steps are lost and done again;"
            f" the damaged checkpoint is kept as {kept}"
        )


def _say(text: str) -> None:
    """To people: what a command prints for programs stays as it is."""
    print(text, file=sys.stderr, flush=True)


def _free(path: Path) -> Path:
    """`path`, with a number behind it where something is there already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


# --------------------------------------------------------------------------- reading


def load_from(path: Path | str) -> Checkpoint:
    """The checkpoint meant by `path`: a checkpoint folder, or a run folder (its best one, else its latest).

    Of a run, damaged ones are passed over for the next best one, and that is said. Raises CheckpointError where there
    is none, where none is whole, or where the checkpoint folder itself is damaged.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or STEP.fullmatch(path.name):
        return load(path)
    found, damaged = _first_whole(_by_measure(path / "checkpoints"))
    if found is None:
        reason = "holds no checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {reason}: name a run folder or one of the folders in its checkpoints/")
    for one in damaged:
        _say(f"{one.reason}\n  taking {found.folder} instead")
    return found


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, once every file is what the manifest says. Raises CheckpointError naming the file."""
    for name, expected in _manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing{ADVICE}")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, {expected['bytes']} were written{ADVICE}")
        try:
            found = fingerprint(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error}){ADVICE}") from error
        if found["sha256"] != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged (its sha256 is not the one written){ADVICE}")
    state = _json(folder / "state.json")
    if "fresh" in state:  # parts of the model, by name
        state["fresh"] = [current_name(part) for part in state["fresh"]]
    return Checkpoint(folder, state, _json(folder / "recipe.json"))


def _manifest(folder: Path) -> dict[str, Any]:
    """Raises CheckpointError for one that is not as `_write` made it."""
    path = folder / MANIFEST
    manifest = _json(path)
    entries = manifest.values() if isinstance(manifest, dict) else [None]
    whole = all(isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} for entry in entries)
    if not whole or any(name not in manifest for name in LISTED):
        raise CheckpointError(f"{path} is damaged (it does not list what was written){ADVICE}")
    return manifest


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as part of a checkpoint ({error}){ADVICE}") from error
    return content


def load_into(module: nn.Module, weights: Mapping[str, Tensor], origin: Path | str) -> None:
    """Copies weights into the module: every name and shape must fit. Raises CheckpointError listing what does not."""
    check_fit(module, {name: tuple(value.shape) for name, value in weights.items()}, origin)
    module.load_state_dict(dict(weights), strict=True)


def check_fit(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], origin: Path | str) -> None:
    """Raises CheckpointError listing the names and shapes that are not the module's."""
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in shapes]
    faults += [f"unknown {name}" for name in shapes if name not in own]
    faults += [
        f"{name} is {shape}, the model's is {tuple(own[name].shape)}"
        for name, shape in shapes.items()
        if name in own and tuple(own[name].shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{origin} is not of this model: {'; '.join(faults[:5])}{more}")
