"""Reads published files without executing anything in them, and recognises their layout by what they hold.

This file knows no model: albef.py and vlmo.py hold the tables of layouts.
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

from diptych.checkpoints.convert import Absent, Rule
from diptych.pretrained.first_bytes import no_checkpoint

WRAPPERS = ("model", "state_dict", "module")
"""Entries under which a file keeps its tensors, if it holds more than these."""
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file with the weights in a folder of the Hugging Face layout."""


@dataclass(frozen=True)
class Contents:
    """The tensors of a file, and how the file holds them."""

    file: Path
    tensors: Mapping[str, Tensor]
    wrapper: str | None = None
    """The entry that holds the tensors; None where the file holds nothing else."""
    beside: tuple[str, ...] = ()
    """The file's other entries, such as optimiser, configuration or epoch."""


@dataclass(frozen=True)
class Layout:
    """A layout of published files: how a file is recognised, and what its tensors are called here."""

    title: str
    signature: Mapping[str, int | None]
    """Names, after `spelling`, that a file of this layout has, each with the tensor's first dimension, or None for
    any."""
    rules: Callable[[Any], Sequence[Rule]]
    """Makes the table of names from the model's configuration."""
    task: Any
    """The published configuration of the task whose state the file holds."""
    spelling: tuple[tuple[str, str], ...] = ()
    """Regular expressions with their replacements, which turn all variants of a name into the one that the rules
    know."""
    images_per_text: int = 1
    able: tuple[str, ...] = ()
    """What a model of this layout can do, in words."""

    def spelled(self, name: str) -> str:
        """Returns a name of the file as the rules know it."""
        for pattern, new in self.spelling:
            name = re.sub(pattern, new, name)
        return name

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the tensors are of this layout."""
        lengths = {self.spelled(name): tensor.shape[:1] for name, tensor in tensors.items()}
        return all(name in lengths and length in (None, *lengths[name]) for name, length in self.signature.items())


def unused(*parts: str) -> list[Rule]:
    """Makes rules for parts of the model that a file lacks because its task or stage does not use them."""
    return [Absent(f"model.{part}", "the file's task does not use it: random") for part in parts]


def recognise(tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> str:
    """Returns the name of the first layout that fits the tensors. Raises ValueError listing the known layouts."""
    for name, layout in layouts.items():
        if layout.fits(tensors):
            return name
    known = "; ".join(layout.title for layout in layouts.values())
    raise ValueError(
        f"{len(tensors)} tensors ({', '.join(list(tensors)[:3])} …) that are no checkpoint of a known layout. "
        f"Known: {known}"
    )


def spell(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Renames the tensors as the layout's rules know them. Raises ValueError where two names become one."""
    name, times = Counter(map(layout.spelled, tensors)).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the checkpoint holds {name} under two spellings: which of them counts is not known")
    return {layout.spelled(name): tensor for name, tensor in tensors.items()}


# --------------------------------------------------------------------------- reading


def read(path: Path | str, shapes_only: bool = False) -> Contents:
    """Reads the tensors of a file, or of a folder in the Hugging Face layout, without executing anything.

    `shapes_only`: returns tensors without data (on torch's `meta` device), which is fast. Raises ValueError for a file
    that could only be read by running code, one that is no checkpoint, and a missing one.
    """
    file = _file(Path(path))
    if (what := no_checkpoint(file)) is not None:
        raise ValueError(f"{file} {what}. It is no checkpoint that can be read")
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
    """Returns the file itself, or the one with the weights in a folder."""
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path} is a folder without {' or '.join(FOLDER_FILES)}: name a file, a run or a checkpoint")


def _is_safetensors(file: Path) -> bool:
    """Whether the content begins as safetensors do: eight bytes of length, then JSON."""
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
    """Reads what `torch.save` wrote, with an unpickler that accepts only tensors and plain values."""
    place = "meta" if shapes_only else "cpu"
    try:
        if file.suffix == ".safetensors":  # torch goes by this name, whatever the file is
            with file.open("rb") as stream:
                return torch.load(stream, map_location=place, weights_only=True)
        mapped = not shapes_only and zipfile.is_zipfile(file)
        return torch.load(file, map_location=place, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        name = f" ({match[1]})" if match else ""
        raise ValueError(
            f"{file} is refused: it holds more than tensors and plain values{name}, and reading that could run code. "
            "Nothing of it was run. Where it comes from, save its tensors alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise ValueError(f"{file} is no checkpoint that can be read, or is damaged ({reason})") from error
