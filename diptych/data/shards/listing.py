"""Turns `data.path` into a list of shards with their indices. Builds the indices that are missing or out of date."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from diptych.cache import cache_folder
from diptych.data.files import files_below
from diptych.data.record import BadRecord
from diptych.data.shards.cache import ShardCache, locked
from diptych.data.shards.index import ShardIndex, Stamp, build_index, read_index
from diptych.data.shards.remote import check_protocol, fetch, is_remote, persistently, remote_names, say, stamp_of
from diptych.data.workers import each_in_parallel, processors
from diptych.schema import DataConfig, SampleNames

LAYOUT = "data.source=shards reads tar shards: their paths or addresses, patterns of these, or folders of them"
SUFFIX = ".index"
"""An index file has the name of its shard with this appended."""
SAID_EVERY = 100
"""While shards are indexed, a message says the progress every so many shards."""
WORTH = 1 << 26
"""Indexing this many bytes of shards is worth starting other processes."""
MOST_SHARDS = 1_000_000
"""A pattern names at most so many shards. LAION-5B has a quarter of that."""
MOST_BRACES = 20
"""Pairs of braces in a pattern."""
BRACES = re.compile(r"\{([^{}]*)\}")
LEADING_ZERO = re.compile(r"^0|\.\.0")
FETCHERS = 8
"""At least this many processes look at remote shards, because they mostly wait for servers."""


@dataclass(frozen=True)
class ShardLocation:
    """Locates a shard by the name that its user gave it, with its index file and its state."""

    name: str
    index: Path
    stamp: Stamp


@dataclass(frozen=True)
class ShardStatus:
    """Says what became of looking for a shard: its place, or the reason why there is none."""

    name: str
    place: ShardLocation | None = None
    lost: BadRecord | None = None
    note: str = ""
    """A message for the user."""
    by_last_dot: bool = False
    """Whether members form samples by their names up to the last dot."""

    @property
    def needs_index(self) -> bool:
        """Whether the shard is there, but its index has to be built."""
        return self.place is None and self.lost is None


def folder_of(config: DataConfig) -> Path:
    """Returns the folder of fetched shards and of indices that cannot be written beside their shards."""
    return Path(config.cache) if config.cache else cache_folder()


def shard_cache(config: DataConfig) -> ShardCache:
    """Returns the cache of fetched shards. Raises ValueError for invalid settings."""
    for name in ("lanes", "window"):
        if getattr(config, name) < 1:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it must be at least 1")
    for name in ("cache_bytes", "timeout"):
        if getattr(config, name) <= 0:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it must be above 0")
    if config.retries < 0:
        raise ValueError(f"data.retries is {config.retries}: it must be at least 0")
    return ShardCache(folder_of(config) / "shards", config.cache_bytes, config.timeout, config.retries)


# --------------------------------------------------------------------------- names


def shard_names(paths: str) -> list[str]:
    """Returns every shard that `data.path` names, in order and each once.

    Raises ValueError if a pattern matches none, and for an address whose protocol is not among those of `remote.KNOWN`.
    """
    names = [name for part in split_list(paths) for pattern in spelled_out(part) for name in _matches(pattern)]
    return list(dict.fromkeys(names))


def split_list(paths: str) -> list[str]:
    """Splits a list at its commas, except those within braces, which belong to a pattern.

    >>> split_list("a/{0,1}.tar, b.tar")
    ['a/{0,1}.tar', 'b.tar']
    """
    return [part.strip() for part in re.findall(r"(?:\{[^{}]*\}|[^,])+", paths) if part.strip()]


def spelled_out(path: str) -> Iterator[str]:
    """Expands the braces of a path, unless a file with that very name exists."""
    return iter([path]) if not is_remote(path) and os.path.exists(path) else braces(path)  # noqa: PTH110


def braces(pattern: str) -> Iterator[str]:
    """Expands braces as the shell does. Ranges keep their leading zeros. Raises ValueError for too many names.

    >>> list(braces("a/{08..10}-{x,y}.tar"))[:3]
    ['a/08-x.tar', 'a/08-y.tar', 'a/09-x.tar']
    """
    count, rest = 1, pattern
    for _ in range(MOST_BRACES):
        if (match := BRACES.search(rest)) is None:
            break
        count, rest = count * max(1, len(_choices(match[1]))), rest[: match.start()] + rest[match.end() :]
    if count > MOST_SHARDS:
        raise ValueError(f"{pattern} names {count:,} shards, more than {MOST_SHARDS:,}: name fewer")
    if BRACES.search(rest):
        raise ValueError(f"{pattern} has more than {MOST_BRACES} pairs of braces")
    return _expanded(pattern)


def _expanded(pattern: str) -> Iterator[str]:
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    width = max(map(len, match[1].split("..")))
    for choice in _choices(match[1]):
        name = choice if isinstance(choice, str) else f"{choice:0{width if re.search(LEADING_ZERO, match[1]) else 0}}"
        yield from _expanded(pattern[: match.start()] + name + pattern[match.end() :])


def _choices(inside: str) -> Sequence[str] | range:
    """Returns what stands between braces: a range of numbers, or a list."""
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    return range(int(span[1]), int(span[2]) + 1) if span else inside.split(",")


def _matches(pattern: str) -> list[str]:
    """Returns the shards that a pattern without braces, a path or a folder names. Raises ValueError if it is none."""
    if is_remote(pattern):
        check_protocol(pattern)
        return remote_names(pattern) if "*" in pattern else [pattern]
    place = Path(pattern.removeprefix("file://"))
    if place.is_dir():
        names = [str(place / file) for file in files_below(place) if file.suffix == ".tar"]
    elif any(sign in pattern for sign in "*?["):
        root = Path(place.anchor)
        found = root.glob(str(place.relative_to(root)))
        names = sorted(str(path) for path in found if not path.name.startswith("."))  # such as macOS's `._train.tar`
    else:
        return [str(place)]
    if not names:
        raise ValueError(f"no shard in {pattern}: {LAYOUT}")
    return names


# --------------------------------------------------------------------------- opening


def open_shards_of(config: DataConfig) -> list[ShardStatus]:
    """Finds every shard of `data.path` with its index, in order. Raises ValueError if there is no shard at all.

    Indices that are missing or belong to another state of the shard are built in parallel. Each index file is complete
    or absent, so a restarted process continues where it was stopped.
    """
    if config.path is None:
        raise ValueError(f"data.source=shards needs data.path. {LAYOUT}")
    if config.root is not None:
        raise ValueError("data.root says nothing here: shards hold their pictures")
    names, cache, folder = shard_names(config.path), shard_cache(config), folder_of(config)
    remote = any(map(is_remote, names))
    if not remote and not any(Path(name).is_file() for name in names):
        raise ValueError(f"no shard {', '.join(names[:3])}: {LAYOUT}")
    look = partial(_look, cache=cache, folder=folder, rule=config.sample_names)
    statuses = {status.name: status for status in each_in_parallel(look, names, FETCHERS if remote else 1)}
    if unindexed := [name for name in names if statuses[name].needs_index]:
        with locked(folder / "index.lock"):  # one process of the machine builds the indices, the others then find them
            statuses |= {status.name: status for status in _index_all(unindexed, cache, folder, config.sample_names)}
    for status in statuses.values():
        if status.note:
            say(status.note)
    if config.sample_names == "auto" and (count := sum(status.by_last_dot for status in statuses.values())):
        say(
            f"in {count} of {len(names)} shards, members belong together whose names agree up to the last dot, because"
            " that leaves more samples whole than the first dot does (data.sample_names)"
        )
    return [statuses[name] for name in names]


def _index_all(names: list[str], cache: ShardCache, folder: Path, rule: SampleNames) -> Iterator[ShardStatus]:
    """Builds the indices of shards, in parallel if there is enough to do."""
    remote = any(map(is_remote, names))
    worth_processes = remote or sum(Path(name).stat().st_size for name in names) >= WORTH
    processes = max(processors(), FETCHERS if remote else 1) if worth_processes else 1
    index = partial(_index, cache=cache, folder=folder, rule=rule)
    for number, status in enumerate(each_in_parallel(index, names, min(processes, len(names))), start=1):
        if number % SAID_EVERY == 0:
            say(f"{number} of {len(names)} shards indexed")
        yield status


def _look(name: str, cache: ShardCache, folder: Path, rule: SampleNames) -> ShardStatus:
    """Looks for a shard and for the index of its present state, made by a rule for the names of samples.

    A missing shard keeps its place as long as it has an index, so that the order of the other shards does not change.
    Its samples are reported when they are read.
    """
    indices = ((file, read_index(file)) for file in _index_files(name, folder))
    fitting = [(file, index) for file, index in indices if index is not None and index.fits(rule)]
    places = [ShardLocation(name, file, index.stamp) for file, index in fitting]
    try:
        stamp = _stamp(name, cache)
    except BadRecord as error:
        return ShardStatus(name, places[0], note=str(error)) if places else ShardStatus(name, lost=error)
    for place, (_, index) in zip(places, fitting, strict=True):
        if place.stamp == stamp:
            return ShardStatus(name, place, by_last_dot=index.naming == "last_dot")
    return ShardStatus(name)


def _stamp(name: str, cache: ShardCache) -> Stamp:
    """Returns the state of a shard. Raises BadRecord if there is no such shard."""
    if is_remote(name):
        return persistently(name, lambda: stamp_of(name, cache.timeout), cache.retries)
    try:
        return Stamp.of(Path(name).stat())
    except OSError as error:
        raise BadRecord(name, "shard missing", error.strerror or str(error)) from None


def _index(name: str, cache: ShardCache, folder: Path, rule: SampleNames) -> ShardStatus:
    """Builds the index of a shard, unless another process has done so in the meantime."""
    status = _look(name, cache, folder, rule)
    if not status.needs_index:
        return status
    try:
        return _build(name, cache, folder, rule)
    except BadRecord as error:
        return ShardStatus(name, lost=error)
    except OSError as error:
        return ShardStatus(name, lost=BadRecord(name, "shard unreadable", error.strerror or str(error)))


def _build(name: str, cache: ShardCache, folder: Path, rule: SampleNames) -> ShardStatus:
    """Builds the index of a shard. Raises BadRecord, OSError, or ValueError if the index cannot be written anywhere."""
    files, stamp = _index_files(name, folder), _stamp(name, cache)
    changed = any((old := read_index(file)) is not None and old.stamp != stamp for file in files)
    note = f"{name} has changed: its index is built anew" if changed else ""
    if is_remote(name):
        index = _published_index(name, stamp, cache, rule) or _fetched_index(name, stamp, cache, rule)
    else:
        index = build_index(Path(name), name, stamp, rule)
    for file in files:
        try:
            index.write(file)
        except OSError as error:
            failure = error
            continue
        place = ShardLocation(name, file, stamp)
        return ShardStatus(name, place, note=note, by_last_dot=index.naming == "last_dot")
    raise ValueError(f"the index of {name} can be written to none of {', '.join(map(str, files))}: {failure}")


def _index_files(name: str, folder: Path) -> tuple[Path, ...]:
    """Returns where the index of a shard may be: beside the shard, or in the cache if it cannot be written there."""
    place = name if is_remote(name) else str(Path(name).resolve())
    cached = folder / "indices" / (hashlib.blake2b(place.encode(), digest_size=16).hexdigest() + SUFFIX)
    return (cached,) if is_remote(name) else (Path(name + SUFFIX), cached)


def _published_index(url: str, stamp: Stamp, cache: ShardCache, rule: SampleNames) -> ShardIndex | None:
    """Fetches the index that lies beside a shard at its address.

    Returns None unless it fits the shard's length and the rule for the names of samples.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "index"
        try:
            with file.open("wb") as stream:
                fetch(url + SUFFIX, stream, cache.timeout)
        except (OSError, HTTPException):
            return None
        index = read_index(file)
        if index is None or index.stamp.size != stamp.size or not index.fits(rule):
            return None
        return index.with_stamp(stamp)


def _fetched_index(url: str, stamp: Stamp, cache: ShardCache, rule: SampleNames) -> ShardIndex:
    """Fetches a shard into the cache and builds its index."""
    shard = cache.open(url, stamp)
    try:
        return build_index(cache.file(url, stamp), url, stamp, rule)
    finally:
        os.close(shard)
