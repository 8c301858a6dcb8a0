"""Reads RefCOCO, RefCOCO+ and RefCOCOg: a folder with `refs(unc).p`, `instances.json` and, if any, detected boxes.

`refs(….p)` is a pickle: a list of `{"ref_id", "ann_id", "image_id", "split": "train", "val", "testA", …, "sentences":
[{"sent", "sent_id"}]}`. `instances.json` is COCO's: `images` with `id` and `file_name`, `annotations` with `id` and
`bbox`. A detector's boxes are `{image id: [[x, y, width, height, score], …]}`, or a list of `{"image_id", "box" or
"bbox"}`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.entries import box_of, name_of, object_of, published_split, text_of
from diptych.data.files import existing, list_of, read_json, split_paths
from diptych.data.record import BadRecord, Referring
from diptych.data.sources.coco import coco_path
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig, Split

LAYOUT = "data.source=refcoco reads a folder with refs(….p) and instances.json, or these files separated by commas"
PUBLISHED: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "testA": "test",
    "testB": "test",
    "testC": "test",
}
DETECTIONS = ("dets.json", "detections.json")
"""The files in which a folder may hold a detector's boxes."""


def read_refcoco(path: str, config: DataConfig) -> SourceListing:
    """Reads every phrase of a folder with its box, proposals and published split.

    Picture paths start from `config.root` or else from the folder. Raises ValueError.
    """
    refs_file, tables = _files(path)
    root = Path(config.root or refs_file.parent)
    refs = load_plain_pickle(refs_file)
    if not isinstance(refs, list):
        raise ValueError(f"{refs_file} is not a list: {LAYOUT}")
    listing = SourceListing()
    for index, ref in enumerate(refs):
        name = f"{refs_file}[{index}]"
        for place, phrase in enumerate(_phrases(ref)):
            read = partial(_read, phrase=phrase, place=place, tables=tables, root=root)
            listing.add(ref, f"{name}, sentence {place}", root, config.max_words, read, _split)
    return listing


@dataclass(frozen=True)
class _Tables:
    """Looks up the pictures and boxes that a ref names by number. The values are not checked yet."""

    pictures: Mapping[str, Any]
    boxes: Mapping[str, Any]
    proposals: Mapping[str, Sequence[Any]] | None


def _split(ref: Any, name: str) -> Split:
    return published_split(ref, name, PUBLISHED)


def _phrases(ref: Any) -> list[Any]:
    """Returns the sentences of a ref. A ref without any gives one None, which `_read` reports as broken."""
    sentences = ref.get("sentences") if isinstance(ref, dict) else None
    return sentences if isinstance(sentences, list) and sentences else [None]


def _read(ref: Any, name: str, phrase: Any, place: int, tables: _Tables, root: Path) -> Referring:
    ref = object_of(ref, name)
    if phrase is None:
        raise BadRecord(name, "key missing", "`sentences` must list the phrases")
    phrase = object_of(phrase, name)
    numbers = {key: name_of(ref, key, name) for key in ("ref_id", "ann_id", "image_id")}
    for key, number in numbers.items():
        if number is None:
            raise BadRecord(name, "key missing", key)
    picture, box = tables.pictures.get(str(numbers["image_id"])), tables.boxes.get(str(numbers["ann_id"]))
    if picture is None or box is None:
        lost = f"image {numbers['image_id']}" if picture is None else f"annotation {numbers['ann_id']}"
        raise BadRecord(name, "not in instances.json", lost)
    file = text_of(picture, "file_name", name)
    proposals = (tables.proposals or {}).get(str(numbers["image_id"]), ())
    return Referring(
        id=f"{numbers['ref_id']}/{name_of(phrase, 'sent_id', name) or place}",
        image=coco_path(root, file),
        phrase=text_of(phrase, "sent", name),
        image_id=file,
        box=box_of(box.get("bbox"), name),
        proposals=tuple(box_of(list(proposal)[:4], name) for proposal in proposals),
        ref_id=str(numbers["ref_id"]),
        part=text_of(ref, "split", name),
    )


# --------------------------------------------------------------------------- files


def _files(path: str) -> tuple[Path, _Tables]:
    """Finds the file of refs and reads the tables from the other files. Raises ValueError."""
    parts = [Path(part) for part in split_paths(path)]
    if len(parts) == 1 and parts[0].is_dir():
        folder = parts[0]
        parts = [*sorted(folder.glob("refs(*).p")), folder / "instances.json"]
        parts += [folder / name for name in DETECTIONS if (folder / name).is_file()]
    refs = [part for part in parts if part.suffix in (".p", ".pkl", ".pickle")]
    if len(refs) != 1:
        names = ", ".join(part.name for part in refs) or "none"
        raise ValueError(f"{path} must have one file of refs, and has {names}: {LAYOUT}")
    instances: dict[str, Any] = {}
    proposals: dict[str, Sequence[Any]] | None = None
    for part in (part for part in parts if part not in refs):
        content = read_json(part, LAYOUT)
        if isinstance(content, dict) and "annotations" in content:
            instances = {key: _by_id(list_of(content, key, part, LAYOUT)) for key in ("images", "annotations")}
        else:
            proposals = _proposals(content, part)
    if not instances:
        raise ValueError(f"{path} has no instances.json: {LAYOUT}")
    return existing(refs[0], LAYOUT), _Tables(instances["images"], instances["annotations"], proposals)


def _by_id(entries: Sequence[Any]) -> dict[str, Any]:
    return {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and "id" in entry}


def _proposals(content: Any, file: Path) -> dict[str, Sequence[Any]]:
    """Returns the boxes of each picture, by its number, in the order of the file. Raises ValueError."""
    pairs = content.items() if isinstance(content, dict) else _listed(content, file)
    boxes: dict[str, list[Any]] = {}
    for picture, listed in pairs:
        if not isinstance(listed, list) or not all(isinstance(box, list) for box in listed):
            raise ValueError(f"{file}: the boxes of picture {picture} are no list of [x, y, width, height, score]")
        boxes.setdefault(str(picture), []).extend(listed)
    return dict(boxes)


def _listed(content: Any, file: Path) -> Iterator[tuple[Any, Any]]:
    if not isinstance(content, list):
        raise ValueError(f"{file} holds neither instances nor detections: {LAYOUT}")
    for index, entry in enumerate(content):
        if not isinstance(entry, dict) or "image_id" not in entry or not ({"box", "bbox"} & entry.keys()):
            raise ValueError(f'{file}[{index}] is no detection {{"image_id": …, "box": [x, y, width, height]}}')
        yield entry["image_id"], [entry.get("box", entry.get("bbox"))]


# --------------------------------------------------------------------------- pickles without code


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, texts, lists, tuples and dictionaries. It refuses any class or function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


def load_plain_pickle(file: Path) -> Any:
    """Loads a pickle of plain data without executing anything in it. Raises ValueError."""
    with existing(file, LAYOUT).open("rb") as stream:
        try:
            # Python 2 wrote the published files. Bytes that are not UTF-8 are reported later, with their record.
            return _PlainUnpickler(stream, encoding="utf-8", errors="surrogateescape").load()
        except Exception as error:  # the unpickler can raise any error on broken bytes
            raise ValueError(f"{file} is not a pickle of plain data: {error}") from None
