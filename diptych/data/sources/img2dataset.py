"""Reads what img2dataset writes: folders or tar shards in which a picture, its caption and its metadata share a name.

A sample is `00000/000000017.jpg`, `.txt` and `.json`, or the same three as members of `00000.tar`. The metadata is
`{"caption": …, "key": …, "url": …, "status": "success"}`. Failed downloads have no picture, but may have a caption and
metadata.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from diptych.data.files import files_below
from diptych.data.picture_kinds import PassedOver, is_picture
from diptych.data.pictures import part_of
from diptych.data.record import BadRecord
from diptych.data.shards.index import LARGEST_TEXT
from diptych.data.shards.naming import TEXT_SUFFIXES, choose_naming, key_of
from diptych.data.shards.samples import Img2datasetSample, read_img2dataset_sample
from diptych.data.sources.listing import SourceListing
from diptych.data.tar import note_member, tar_members
from diptych.schema import DataConfig, SampleNames

LAYOUT = "data.source=img2dataset reads a folder of img2dataset's output, or one of its tar shards"


def read_img2dataset(path: str, config: DataConfig) -> SourceListing:
    """Reads all samples of a shard, or of a folder and its shards. Raises ValueError."""
    if config.root is not None:
        raise ValueError("data.root says nothing here: img2dataset keeps pictures beside their captions")
    place = Path(path)
    if place.is_file():
        shards, root = [place], place.parent
    elif place.is_dir():
        root = place
        shards = [root / file for file in files_below(root) if file.suffix == ".tar"]
    else:
        raise ValueError(f"no folder or file {place}: {LAYOUT}")
    listing = SourceListing()
    for shard in shards:
        for name, sample in shard_samples(shard, root, listing, config.sample_names):
            listing.add(sample, name, root, config.max_words, read_img2dataset_sample)
    if place.is_dir():
        for name, sample in _folder_samples(root, listing):
            listing.add(sample, name, root, config.max_words, read_img2dataset_sample)
    return listing


def shard_samples(
    shard: Path, root: Path, listing: SourceListing, names: SampleNames
) -> Iterator[tuple[str, Img2datasetSample]]:
    """Yields the samples of a tar file in its order. Pictures are not read; only their positions are noted.

    `names` says how the names of members form samples, and `listing` gets a note if that makes a difference. If the
    shard is broken, `listing` gets the error, and the samples before the break are used.
    """
    samples: dict[str, Img2datasetSample] = {}
    members: list[tarfile.TarInfo] = []
    seen = PassedOver()
    try:
        members.extend(m for m in tar_members(shard, links=True) if not note_member(shard, m, seen))
    except (tarfile.TarError, OSError, EOFError) as error:
        listing.skip(BadRecord(str(shard), "shard broken", str(error)))
    naming, note = choose_naming((member.name for member in members), names, "last_dot")
    if note:
        listing.notes.append(f"{shard}: {note}")
    for member in members:
        place = part_of(shard.resolve(), member.offset_data, member.size)
        text = partial(_read_text, shard, member.offset_data, min(member.size, LARGEST_TEXT))
        _collect(samples, member.name, key_of(member.name, naming), place, text)
    listing.passed_over.join(seen)
    for key, sample in samples.items():
        if not _passed_over(key, sample, seen):
            yield f"{shard.relative_to(root).as_posix()}/{key}", sample


def _folder_samples(root: Path, listing: SourceListing) -> Iterator[tuple[str, Img2datasetSample]]:
    """Yields the samples that are plain files, in the order of names."""
    samples: dict[str, Img2datasetSample] = {}
    seen = PassedOver()
    for file in files_below(root, seen):
        if not file.name.endswith("_stats.json"):
            name = file.as_posix()
            _collect(samples, name, key_of(name, "last_dot"), name, partial(_read_text, root / file, 0, LARGEST_TEXT))
    listing.passed_over.join(seen)
    yield from ((key, sample) for key, sample in samples.items() if not _passed_over(key, sample, seen))


def _passed_over(key: str, sample: Img2datasetSample, seen: PassedOver) -> bool:
    """Returns whether a sample has no picture because its picture is of a kind that is not read."""
    return not sample.pictures and key in seen.stems


def _read_text(file: Path, start: int, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


def _collect(samples: dict[str, Img2datasetSample], name: str, key: str, place: str, text: Callable[[], bytes]) -> None:
    """Adds a file called `name` to the sample called `key`."""
    suffix = PurePosixPath(name).suffix.lower()
    if is_picture(name):
        sample = samples.setdefault(key, Img2datasetSample())
        sample.pictures.append(place)
        sample.names.append(name)
    elif suffix in TEXT_SUFFIXES:
        samples.setdefault(key, Img2datasetSample()).texts[suffix[1:]] = text
