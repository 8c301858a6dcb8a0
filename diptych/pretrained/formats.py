"""Reads published files without executing anything in them, and recognises their layout by what they hold.

This file knows no model: albef.py and vlmo.py hold the tables of layouts.
"""

from __future__ import annotations

import argparse
import difflib
import math
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.checkpoints.convert import Absent, Rule
from diptych.checkpoints.files import PUBLISHED_FILES
from diptych.checkpoints.tensors import TensorFile
from diptych.printable import brief
from diptych.reading import disguise_of, expand_home, open_regular, read_stored

PLAIN: list[Any] = [argparse.Namespace]
"""Classes that a file may hold beside tensors and plain values: the settings of a training, which run nothing."""
WRAPPERS = ("model", "state_dict", "module")
"""Entries under which a file keeps its tensors, if it holds more than these."""
PREFIXES = ("module.", "model.", "net.", "network.", "base_model.")
"""Prefixes that stand before the names of a file: of DataParallel and DDP, of the model in a module of Lightning, of
adapters."""
MOST = 0.9
"""A prefix stands before at least this share of the names. Others are of the training, such as `loss.weight`."""
OF_TRAINING = re.compile(r"optim|sched|scaler|rng|loss|criterion", re.IGNORECASE)
"""Entries of a file with this in their names are no model."""
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""End the usual names of files with weights, for messages."""
_MOST_NAMED = 1000
"""Files of a folder that are looked at, to name one of them."""
INDEX = ".index.json"
"""Ends the name of the file that says in which files the tensors of a checkpoint are, behind the usual name."""
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(?:safetensors|bin)$")
"""Ends the name of one of these files."""
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that torch.compile, FSDP and activation checkpointing insert into names, wherever they were applied."""


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
    names = ", ".join(map(brief_name, list(tensors)[:3]))
    raise ValueError(f"{len(tensors)} tensors ({names} …) that are no checkpoint of a known layout. Known: {known}")


def spell(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Renames the tensors as the layout's rules know them. Raises ValueError where two names become one."""
    name, times = Counter(map(layout.spelled, tensors)).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the checkpoint holds {name} under two spellings: which of them counts is not known")
    return {layout.spelled(name): tensor for name, tensor in tensors.items()}


@contextmanager
def in_one_sentence(origin: Any) -> Iterator[None]:
    """Turns what the shapes of odd files lead to, such as a division by 0, into a ValueError that names the file."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{origin}: names and shapes that no model of a known layout has ({type(error).__name__}: {reason})"
        ) from error


# --------------------------------------------------------------------------- reading


def read(path: Path | str, shapes_only: bool = False) -> Contents:
    """Reads the tensors of a file, or of a folder in the Hugging Face layout, without executing anything.

    `shapes_only`: returns tensors without data (on torch's `meta` device), which is fast. Raises ValueError for a file
    that could only be read by running code, one that is no checkpoint, and a missing one.
    """
    file = _file(expand_home(path))
    if file.name.endswith(INDEX):
        shards = _shards(file)
        tensors = {name: tensor for shard in shards for name, tensor in _read_safetensors(shard, shapes_only).items()}
        return _contents(file, tensors, size=sum(shard.stat().st_size for shard in shards))
    if (match := SHARD.search(file.name)) and int(match[1]) > 1:
        raise ValueError(
            f"{file} is one of the {int(match[1])} files in which a checkpoint lies: name the folder of all of them,"
            f" with their {INDEX.removeprefix('.')}"
        )
    if _is_safetensors(file):
        return _contents(file, _read_safetensors(file, shapes_only))
    if kind := disguise_of(file, binary=True):
        raise ValueError(f"{file} is no checkpoint that can be read: it is {kind}")
    content = _read_torch(file, shapes_only)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, no tensors by name")
    wrapper = _wrapper(content, file)
    tensors = content if wrapper is None else content[wrapper]
    beside = () if wrapper is None else tuple(str(name) for name in content if name != wrapper)
    if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{file} holds entries that are no tensors: {', '.join(map(brief_name, others[:5]))}")
    return _contents(file, tensors, wrapper, beside)


def _wrapper(content: Mapping[Any, Any], file: Path) -> str | None:
    """Finds the entry that holds the tensors; None where the file holds nothing else.

    Files of a training hold much beside: the optimiser's state, the epoch, the settings. Raises ValueError where
    several unusual entries hold tensors, of which only the user knows which are meant.
    """
    known = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    if known:  # one of them may be the settings of the model
        return next((name for name in known if any(isinstance(v, Tensor) for v in content[name].values())), known[0])
    named = [name for name, value in content.items() if isinstance(name, str) and _is_state(value)]
    named = [name for name in named if not OF_TRAINING.search(name)]
    if not named and any(isinstance(value, Tensor) for value in content.values()):
        return None
    if len(named) > 1:
        raise ValueError(
            f"{file} holds tensors under {', '.join(map(brief_name, named))}: save the ones that are meant alone"
        )
    return named[0] if named else None


def _is_state(value: Any) -> bool:
    """Whether a value is a model's state: names with tensors, and nothing else."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def brief_name(name: Any) -> str:
    """Returns a name of a file's entry for a message."""
    return brief(name).strip("'")


def _contents(
    file: Path, tensors: Mapping[Any, Tensor], wrapper: str | None = None, beside: tuple[str, ...] = (),
    size: int | None = None,
) -> Contents:  # fmt: skip
    """Checks the tensors of a file, and takes off their names what a training's tools put in front of them.

    `size` is the number of bytes that hold the tensors, where these are not the file's own.

    Raises ValueError for tensors that the file has no bytes for, and for names that become equal.
    """
    if not tensors:
        raise ValueError(f"{file} holds no tensors")
    size, plain = file.stat().st_size if size is None else size, dict[str, Tensor]()
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{file} holds a tensor under {brief(name)}, which is no name")
        dense = tensor.layout == torch.strided and not tensor.is_quantized
        if not dense or math.prod(max(length, 1) for length in tensor.shape) * tensor.itemsize > size:
            raise ValueError(f"{file}: {brief_name(name)} is no plain tensor of the numbers that the file holds")
        plain[name] = tensor
    bare = {_bare(name): tensor for name, tensor in plain.items()}
    if len(bare) < len(plain):
        raise ValueError(f"{file} holds the same names with and without {', '.join(INSERTED)}")
    while prefix := _prefix(bare):
        beside += tuple(name for name in bare if not name.startswith(prefix))
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name.startswith(prefix)}
    return Contents(file, bare, wrapper, beside)


def _prefix(names: Collection[str]) -> str | None:
    """Returns the prefix that stands before all names, or all but a few of a training."""
    counts = {prefix: sum(name.startswith(prefix) for name in names) for prefix in PREFIXES}
    prefix = max(PREFIXES, key=counts.__getitem__)
    return prefix if counts[prefix] and counts[prefix] >= MOST * len(names) else None


def _bare(name: str) -> str:
    """Takes out the parts that wrappers of modules insert.

    >>> _bare("visual_encoder._orig_mod.blocks.0.norm1.weight")
    'visual_encoder.blocks.0.norm1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in INSERTED)


def _file(path: Path) -> Path:
    """Returns the file itself, or the one with the weights in a folder."""
    if path.is_file():
        return path
    if not path.exists():
        beside = (file.name for file in islice(path.parent.glob("*"), _MOST_NAMED))
        near = difflib.get_close_matches(path.name, beside, n=1)
        raise ValueError(f"{path} does not exist" + (f". Did you mean {path.with_name(near[0])}?" if near else ""))
    for name in (*PUBLISHED_FILES, *(f"{name}{INDEX}" for name in PUBLISHED_FILES)):
        if (path / name).is_file():
            return path / name
    files = (file for file in islice(path.glob("*"), _MOST_NAMED) if file.suffix in SUFFIXES and file.is_file())
    others = sorted(file.name for file in files)
    if any(SHARD.search(name) for name in others):
        raise ValueError(
            f"{path} holds a checkpoint in several files, but not their index, {PUBLISHED_FILES[0]}{INDEX}"
        )
    named = f" It holds {', '.join(others[:5])}." if others else ""
    raise ValueError(
        f"{path} is a folder without {' or '.join(PUBLISHED_FILES)}: name a file, a run or a checkpoint.{named}"
    )


def _shards(index: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint that was cut into several, by its index."""
    content = read_stored(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} does not say in which files its tensors are (it has no `weight_map`)")
    files = [index.with_name(Path(name).name) for name in dict.fromkeys(places.values())]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{index} names {len(files)} files, of which these are not beside it: {', '.join(missing[:5])}"
        )
    if others := [file.name for file in files if not _is_safetensors(file)]:
        raise ValueError(f"{index} names files that are no safetensors: {', '.join(others[:5])}. Save them as one file")
    return files


def _is_safetensors(file: Path) -> bool:
    """Whether the content begins as safetensors do: eight bytes of length, then JSON."""
    with open_regular(file) as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(file: Path, shapes_only: bool) -> dict[str, Tensor]:
    content = TensorFile(file)
    if not shapes_only:
        return {name: content.tensor(name) for name in content.stated}
    return {
        name: torch.empty(stated.shape, dtype=stated.dtype, device="meta") for name, stated in content.stated.items()
    }


def _read_torch(file: Path, shapes_only: bool) -> Any:
    """Reads what `torch.save` wrote, with an unpickler that accepts only tensors and plain values."""
    place = "meta" if shapes_only else "cpu"
    try:
        is_archive = _is_archive(file)
        with torch.serialization.safe_globals(PLAIN):
            if file.suffix == ".safetensors":  # torch goes by this name, whatever the file is
                with file.open("rb") as stream:
                    return torch.load(stream, map_location=place, weights_only=True)
            return torch.load(file, map_location=place, weights_only=True, mmap=is_archive and not shapes_only)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        name = f" ({match[1]})" if match else ""
        raise ValueError(
            f"{file} is refused: it holds more than tensors and plain values{name}, and reading that could run code. "
            "Nothing of it was run. Where it comes from, save its tensors alone, best as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = re.split(r"\n|\. ", str(error))[0] or type(error).__name__
        raise ValueError(f"{file} is no checkpoint that can be read, or is damaged ({reason[:200]})") from error


def _is_archive(file: Path) -> bool:
    """Whether a file is a zip archive, as torch.save writes them. Raises ValueError for one with compressed entries."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed, which torch.save never does")
    return True
