"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

    checkpoints/step-00000500/
        weights.safetensors     the task's state: student, teacher, queue
        optimizer.safetensors   AdamW's memory by parameter name
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are what was written. Tensors are read when asked for."""

    folder: Path
    state: Mapping[str, Any] = field(repr=False)
    recipe: Mapping[str, Any] = field(repr=False)

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.folder / "optimizer.safetensors")

    @property
    def tokenizer(self) -> Path:
        """The folder that holds the tokenizer."""
        return self.folder / "tokenizer"


# --------------------------------------------------------------------------- writing


def save_checkpoint(parent: Path, step: int, content: CheckpointState) -> Path:
    """Writes `parent/step-…` and returns it.

    Raises CheckpointError when the disk refuses; older checkpoints stay as they are.
    """
    parent.mkdir(parents=True, exist_ok=True)
    clean(parent)  # the leftovers may be what fills the disk
    final = parent / f"{PREFIX}{step:08d}"
    if final.exists():
        raise CheckpointError(f"{final} is there already: a step is saved once")
    unfinished = parent / f"{TEMPORARY}{final.name}"
    try:
        unfinished.mkdir()
        _write(unfinished, content)
        unfinished.replace(final)
        _flush(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = latest(parent)
        rest = f"the last whole one is {kept}" if kept else "there is no earlier one"
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {parent} ({error}); {rest}"
        ) from error
    return final


def _write(folder: Path, content: CheckpointState) -> None:
    save_file(_separate(content.weights), folder / "weights.safetensors")
    save_file(_separate(content.optimizer), folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps(content.state, indent=1))
    (folder / "recipe.json").write_text(json.dumps(content.recipe, indent=1))
    for name in ("weights.safetensors", "optimizer.safetensors"):  # which would be the owner's alone
        shutil.copymode(folder / "state.json", folder / name)
    if content.save_tokenizer is not None:
        (folder / "tokenizer").mkdir()
        content.save_tokenizer(folder / "tokenizer")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*files, folder / MANIFEST, folder / "tokenizer", folder):
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
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in weights]
    faults += [f"unknown {name}" for name in weights if name not in own]
    faults += [
        f"{name} is {tuple(value.shape)}, the model's is {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and own[name].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{origin} is not of this model: {'; '.join(faults[:5])}{more}")
    module.load_state_dict(dict(weights), strict=True)
