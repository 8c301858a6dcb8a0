"""Checkpoint files from elsewhere: read without executing anything in them, and recognised by what they hold.

What a name in a file means to a model is no matter of this module: it is handed a table of layouts.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.checkpoints.convert import Rule

WRAPPERS = ("model", "state_dict", "module")
"""Entries under which files keep their tensors if they hold more than those."""
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""The weights in a folder of the Hugging Face layout."""


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    file: Path
    tensors: Mapping[str, Tensor]
    wrapper: str | None = None
    """The entry that held the tensors; None: they were bare."""
    beside: tuple[str, ...] = ()
    """The file's other entries: optimiser, configuration, epoch."""


@dataclass(frozen=True)
class Layout:
    """One layout of published files: how it is recognised, and what its tensors are with us."""

    title: str
    signature: Mapping[str, int | None]
    """Names, as `spelling` leaves them, that a file of this layout has, and their first dimension where that tells."""
    rules: Callable[[Any], Sequence[Rule]]
    """From a model's configuration, which the shapes tell, to the rename table."""
    task: Any
    """The configuration, as published, of the task whose state it is."""
    spelling: tuple[tuple[str, str], ...] = ()
    """Replacements (pattern, new) that turn each variant of a name into the one that the rules know."""
    images_per_text: int = 1
    able: tuple[str, ...] = ()
    """What a model of this layout can do."""

    def spelled(self, name: str) -> str:
        """A name of the file as the rules know it."""
        for pattern, new in self.spelling:
            name = re.sub(pattern, new, name)
        return name

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the tensors are of this layout."""
        rows = {self.spelled(name): tensor.shape[:1] for name, tensor in tensors.items()}
        return all(name in rows and wanted in (None, *rows[name]) for name, wanted in self.signature.items())


def recognise(tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> str:
    """The first layout that the tensors are of. Raises ValueError that lists the known ones."""
    for name, layout in layouts.items():
        if layout.fits(tensors):
            return name
    known = "; ".join(layout.title for layout in layouts.values())
    raise ValueError(
        f"{len(tensors)} tensors ({', '.join(list(tensors)[:3])} …) that are no checkpoint of a known layout. "
        f"Known: {known}"
    )


def spell(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors under the names that the layout's rules know. Raises ValueError where two become one."""
    name, times = Counter(map(layout.spelled, tensors)).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the checkpoint holds {name} under two spellings: which of them counts is not known")
    return {layout.spelled(name): tensor for name, tensor in tensors.items()}


# --------------------------------------------------------------------------- reading


def read(path: Path | str, shapes_only: bool = False) -> Contents:
    """The tensors of a file, or of a folder in the Hugging Face layout, without executing anything.

    `shapes_only`: tensors without data (on torch's `meta` device); reading costs next to nothing then. Raises
    ValueError for a file that could only be read by running code, one that is no checkpoint, and a missing one.
    """
    file = _file(Path(path))
    if _is_safetensors(file):
        return Contents(file, _read_safetensors(file, shapes_only))
    content = _read_torch(file, shapes_only)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, no tensors by name")
    wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    tensors = content if wrapper is None else content[wrapper]
    beside = () if wrapper is None else tuple(str(name) for name in content if name != wrapper)
    if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{file} holds entries that are no tensors: {', '.join(map(str, others[:5]))}")
    if not tensors:
        raise ValueError(f"{file} holds no tensors")
    return Contents(file, dict(tensors), wrapper, beside)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path} is a folder without {' or '.join(FOLDER_FILES)}: name a file, a run or a checkpoint")


def _is_safetensors(file: Path) -> bool:
    """By its content: eight bytes of length, then JSON."""
    with file.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(file: Path, shapes_only: bool) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
            if not shapes_only:
                return {name: content.get_tensor(name) for name in names}
            return {name: torch.empty(content.get_slice(name).get_shape(), device="meta") for name in names}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file ({error})") from error


def _read_torch(file: Path, shapes_only: bool) -> Any:
    """What `torch.save` wrote, through an unpickler that knows tensors and plain values only."""
    try:
        return torch.load(
            file,
            map_location="meta" if shapes_only else "cpu",
            weights_only=True,
            mmap=not shapes_only and zipfile.is_zipfile(file),
        )
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{file} is refused: it holds more than tensors and plain values{what}, and reading that could run code. "
            "Nothing of it was run. Where it comes from, save its tensors alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise ValueError(f"{file} is no checkpoint that can be read, or is damaged ({reason})") from error
