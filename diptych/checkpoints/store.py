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
Reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PREFIX = "step-"
TEMPORARY = ".unfinished-"
MANIFEST = "manifest.json"


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
    """Named tensors in files, of which one may be cut into parts, that follow each other by their first dimension."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(file, "pt") for file in files]
        self._parts: dict[str, list[tuple[Any, tuple[int, ...]]]] = {}
        for file in self._files:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                self._parts.setdefault(name, []).append((file, tuple(file.get_slice(name).get_shape())))

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        shapes = [shape for _, shape in self._parts[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def whole(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file, _ in self._parts[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows(self, name: str, wanted: slice) -> Tensor:
        """Some of its first dimension. Nothing else is read."""
        found: list[Tensor] = []
        before = 0
        for file, shape in self._parts[name]:
            start, stop = (min(max(place - before, 0), shape[0]) for place in (wanted.start, wanted.stop))
            if stop > start or not found:
                found.append(file.get_slice(name)[start:stop])
            before += shape[0]
        return torch.cat(found)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are what was written. Tensors are read when asked for."""

    folder: Path
    state: Mapping[str, Any] = field(repr=False)
    recipe: Mapping[str, Any] = field(repr=False)

    def stored(self, what: Literal["weights", "optimizer"]) -> Stored:
        return Stored(sorted(self.folder.glob(f"{what}*.safetensors")))

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
        _flush(parent)

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
        _flush(path)
        written[path.name] = _fingerprint(path)
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
        _flush(folder / name)
    manifest = {name: written.get(name) or _fingerprint(folder / name) for name in sorted(names)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (folder / MANIFEST, folder / "tokenizer", folder):
        if path.exists():
            _flush(path)


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


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
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
    return sorted(folder for folder in parent.glob(f"{PREFIX}*") if folder.is_dir())


def latest(parent: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    present = _all(parent)
    return present[-1] if present else None


def best(parent: Path) -> Path | None:
    """The checkpoint with the highest measure, the earliest of equals; None when none was validated."""
    found, highest = None, float("-inf")
    for folder in _all(parent):
        measure = _json(folder / "state.json").get("measure")
        if measure is not None and measure > highest:
            found, highest = folder, measure
    return found


def find(path: Path | str) -> Path:
    """The checkpoint meant by `path`: a checkpoint folder, or a run folder (its best one, else its latest)."""
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    parent = path / "checkpoints"
    found = best(parent) or latest(parent)
    if found is None:
        reason = "holds no checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {reason}: name a run folder or one of the folders in its checkpoints/")
    return found


# --------------------------------------------------------------------------- reading


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, once every file is what the manifest says. Raises CheckpointError naming the file."""
    for name, expected in _json(folder / MANIFEST).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: use another checkpoint")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, {expected['bytes']} were written: use another checkpoint")
        if _fingerprint(path)["sha256"] != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged (its sha256 is not the one written): use another checkpoint")
    return Checkpoint(folder, _json(folder / "state.json"), _json(folder / "recipe.json"))


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as part of a checkpoint ({error})") from error
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
