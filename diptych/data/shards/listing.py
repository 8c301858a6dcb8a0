"""From `data.path` to shards with their indices: names spelled out, indices built where there is none that holds."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from diptych.cache import cache_folder
from diptych.data.record import BadRecord
from diptych.data.shards.index import ShardIndex, Stamp, build_index, read_index
from diptych.data.shards.kept import Kept, locked
from diptych.data.shards.remote import fetch, is_remote, persistently, remote_names, say, stamp_of
from diptych.data.sources.folder import files_below
from diptych.data.workers import each_in_parallel, processors
from diptych.schema import DataConfig

LAYOUT = "data.source=shards reads tar shards: their paths or addresses, patterns of these, or folders of them"
SUFFIX = ".index"
"""An index is called as its shard, with this behind it."""
SAID_EVERY = 100
"""Shards between two messages while many are indexed."""
WORTH = 1 << 26
"""Bytes of shards whose indexing is worth starting other processes."""
FETCHERS = 8
"""Remote shards are looked at by so many processes at least: they wait for servers more than they compute."""


@dataclass(frozen=True)
class Place:
    """A shard, by the name that its user gave it, and its index file."""

    name: str
    index: Path
    stamp: Stamp


@dataclass(frozen=True)
class Seen:
    """What became of a shard when it was opened: its place, or why there is none."""

    name: str
    place: Place | None = None
    lost: BadRecord | None = None
    note: str = ""

    @property
    def unknown(self) -> bool:
        """Whether nothing became of it yet: its index is to be built."""
        return self.place is None and self.lost is None


def folder_of(config: DataConfig) -> Path:
    """Where fetched shards are kept, and indices that cannot be kept beside their shards."""
    return Path(config.cache) if config.cache else cache_folder()


def kept_shards(config: DataConfig) -> Kept:
    """The fetched shards. Raises ValueError for settings that cannot be."""
    for name in ("lanes", "window"):
        if getattr(config, name) < 1:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it must be at least 1")
    for name in ("cache_bytes", "timeout"):
        if getattr(config, name) <= 0:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it must be above 0")
    if config.retries < 0:
        raise ValueError(f"data.retries is {config.retries}: it must be at least 0")
    return Kept(folder_of(config) / "shards", config.cache_bytes, config.timeout, config.retries)


# --------------------------------------------------------------------------- names


def shard_names(paths: str) -> list[str]:
    """Every shard that `data.path` means, in order, each once. Raises ValueError where a pattern means none."""
    names = [name for part in split_list(paths) for pattern in spelled_out(part) for name in _named(pattern)]
    return list(dict.fromkeys(names))


def split_list(paths: str) -> list[str]:
    """Parts with commas between them; those within braces belong to a pattern.

    >>> split_list("a/{0,1}.tar, b.tar")
    ['a/{0,1}.tar', 'b.tar']
    """
    return [part.strip() for part in re.findall(r"(?:\{[^{}]*\}|[^,])+", paths) if part.strip()]


def spelled_out(path: str) -> Iterator[str]:
    """What a path with braces stands for; a file may have some in its own name."""
    return iter([path]) if not is_remote(path) and os.path.exists(path) else braces(path)  # noqa: PTH110


def braces(pattern: str) -> Iterator[str]:
    """A pattern with braces as the shell spells it out: ranges keep their leading zeros.

    >>> list(braces("a/{08..10}-{x,y}.tar"))[:3]
    ['a/08-x.tar', 'a/08-y.tar', 'a/09-x.tar']
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span is None:
        choices: Iterator[str] = iter(found[1].split(","))
    else:
        width = max(map(len, span.groups())) if any(end.startswith("0") for end in span.groups()) else 0
        choices = (f"{number:0{width}}" for number in range(int(span[1]), int(span[2]) + 1))
    for choice in choices:
        yield from braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _named(pattern: str) -> list[str]:
    if is_remote(pattern):
        return remote_names(pattern) if "*" in pattern else [pattern]
    place = Path(pattern.removeprefix("file://"))
    if place.is_dir():
        names = [str(place / file) for file in files_below(place) if file.suffix == ".tar"]
    elif any(sign in pattern for sign in "*?["):
        root = Path(place.anchor)
        names = sorted(map(str, root.glob(str(place.relative_to(root)))))
    else:
        return [str(place)]
    if not names:
        raise ValueError(f"no shard in {pattern}: {LAYOUT}")
    return names


# --------------------------------------------------------------------------- opening


def open_shards_of(config: DataConfig) -> list[Seen]:
    """Every shard of `data.path` with its index, in order. Raises ValueError where there is none at all.

    Indices that are missing, or of another state of the shard, are built in parallel; each is whole or not there, so
    what was begun before is not done again.
    """
    if config.path is None:
        raise ValueError(f"data.source=shards needs data.path. {LAYOUT}")
    if config.root is not None:
        raise ValueError("data.root says nothing here: shards hold their pictures")
    names, kept, folder = shard_names(config.path), kept_shards(config), folder_of(config)
    remote = any(map(is_remote, names))
    if not remote and not any(Path(name).is_file() for name in names):
        raise ValueError(f"no shard {', '.join(names[:3])}: {LAYOUT}")
    known = partial(_known, kept=kept, folder=folder)
    seen = {one.name: one for one in each_in_parallel(known, names, FETCHERS if remote else 1)}
    if absent := [name for name in names if seen[name].unknown]:
        with locked(folder / "index.lock"):  # one process of a machine builds, the others find it built
            seen |= {one.name: one for one in _indexed(absent, kept, folder)}
    for one in seen.values():
        if one.note:
            say(one.note)
    return [seen[name] for name in names]


def _indexed(names: list[str], kept: Kept, folder: Path) -> Iterator[Seen]:
    processes = max(processors(), FETCHERS if any(map(is_remote, names)) else 1) if _worth_processes(names) else 1
    make = partial(_made, kept=kept, folder=folder)
    for number, one in enumerate(each_in_parallel(make, names, min(processes, len(names))), start=1):
        if number % SAID_EVERY == 0:
            say(f"{number} of {len(names)} shards indexed")
        yield one


def _worth_processes(names: list[str]) -> bool:
    """Whether there is more to do than starting them takes."""
    return any(map(is_remote, names)) or sum(Path(name).stat().st_size for name in names) >= WORTH


def _known(name: str, kept: Kept, folder: Path) -> Seen:
    """A shard whose index is there and of its state, or that is not there itself.

    One that is gone keeps its place as long as its index is there, so that the others keep theirs; its samples are
    counted as they are met.
    """
    found = ((file, read_index(file)) for file in _index_files(name, folder))
    places = [Place(name, file, index.stamp) for file, index in found if index is not None]
    try:
        stamp = _stamp(name, kept)
    except BadRecord as error:
        return Seen(name, places[0], note=str(error)) if places else Seen(name, lost=error)
    return next((Seen(name, place) for place in places if place.stamp == stamp), Seen(name))


def _stamp(name: str, kept: Kept) -> Stamp:
    """Raises BadRecord where there is no such shard."""
    if is_remote(name):
        return persistently(name, lambda: stamp_of(name, kept.timeout), kept.retries)
    try:
        return Stamp.of(Path(name).stat())
    except OSError as error:
        raise BadRecord(name, "shard missing", error.strerror or str(error)) from None


def _made(name: str, kept: Kept, folder: Path) -> Seen:
    """A shard with its index, which another process may have built meanwhile."""
    known = _known(name, kept, folder)
    if not known.unknown:
        return known
    try:
        return _built(name, kept, folder)
    except BadRecord as error:
        return Seen(name, lost=error)
    except OSError as error:
        return Seen(name, lost=BadRecord(name, "shard unreadable", error.strerror or str(error)))


def _built(name: str, kept: Kept, folder: Path) -> Seen:
    """Raises BadRecord; ValueError where an index can be written nowhere."""
    files, stamp = _index_files(name, folder), _stamp(name, kept)
    changed = any(read_index(file) is not None for file in files)
    note = f"{name} has changed: its index is built anew" if changed else ""
    index = _published(name, stamp, kept) if is_remote(name) else build_index(Path(name), name, stamp)
    index = _fetched(name, stamp, kept) if index is None else index
    for file in files:
        try:
            index.write(file)
        except OSError as error:
            failure = error
            continue
        return Seen(name, Place(name, file, stamp), note=note)
    raise ValueError(f"the index of {name} can be written to none of {', '.join(map(str, files))}: {failure}")


def _index_files(name: str, folder: Path) -> tuple[Path, ...]:
    """Where the index of a shard may be: beside a file, or in the cache where that cannot be written."""
    place = name if is_remote(name) else str(Path(name).resolve())
    cached = folder / "indices" / (hashlib.blake2b(place.encode(), digest_size=16).hexdigest() + SUFFIX)
    return (cached,) if is_remote(name) else (Path(name + SUFFIX), cached)


def _published(url: str, stamp: Stamp, kept: Kept) -> ShardIndex | None:
    """The index that lies beside a shard at its address, if it is of a shard of that length."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "index"
        try:
            with file.open("wb") as stream:
                fetch(url + SUFFIX, stream, kept.timeout)
        except (OSError, HTTPException):
            return None
        found = read_index(file)
        if found is None or found.stamp.size != stamp.size:
            return None
        return found.of(stamp)


def _fetched(url: str, stamp: Stamp, kept: Kept) -> ShardIndex:
    shard = kept.open(url, stamp)
    try:
        return build_index(kept.file(url, stamp), url, stamp)
    finally:
        os.close(shard)
