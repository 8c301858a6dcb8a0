"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

    checkpoints/step-00000500/
        weights.safetensors     the task's state: student, teacher, queue
        optimizer.safetensors   AdamW's memory by parameter name
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "step-"
STEP = re.compile(rf"{PREFIX}\d+")
TEMPORARY = ".unfinished-"
DAMAGED = "damaged-"
"""What a damaged checkpoint is called once it is set aside; nothing loads or removes it."""
MANIFEST = "manifest.json"
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
            found = _fingerprint(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error}){ADVICE}") from error
        if found["sha256"] != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged (its sha256 is not the one written){ADVICE}")
    return Checkpoint(folder, _json(folder / "state.json"), _json(folder / "recipe.json"))


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
