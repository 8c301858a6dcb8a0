"""RefCOCO, RefCOCO+, RefCOCOg: a folder with `refs(unc).p` and `instances.json`, and a detector's boxes, if any.

`refs(….p)` is a pickle: a list of `{"ref_id", "ann_id", "image_id", "split": "train", "val", "testA", …, "sentences":
[{"sent", "sent_id"}]}`. `instances.json` is COCO's: `images` with `id` and `file_name`, `annotations` with `id` and
`bbox`. Detections: `{image id: [[x, y, width, height, score], …]}`, or a list of `{"image_id", "box" or "bbox"}`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.record import BadRecord, Referring, box_of, name_of, text_of
from diptych.data.sources.coco import coco_path
from diptych.data.sources.files import Found, existing, list_of, object_of, parts_of, read_json, split_named
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
"""What a detector's boxes are called, where a folder is given."""


def read_refcoco(path: str, config: DataConfig) -> Found:
    """Every phrase of the folder with its box, proposals and published split.

    Pictures start from `config.root`, or from the folder. Raises ValueError.
    """
    refs_file, tables = _files(path)
    root = Path(config.root or refs_file.parent)
    refs = load_plain_pickle(refs_file)
    if not isinstance(refs, list):
        raise ValueError(f"{refs_file} is not a list: {LAYOUT}")
    found = Found()
    for index, ref in enumerate(refs):
        name = f"{refs_file}[{index}]"
        for place, phrase in enumerate(_phrases(ref)):
            read = partial(_read, phrase=phrase, place=place, tables=tables, root=root)
            found.add(ref, f"{name}, sentence {place}", root, config.max_words, read, _split)
    return found


@dataclass(frozen=True)
class _Tables:
    """What a ref's numbers stand for; values unchecked."""

    pictures: Mapping[str, Any]
    boxes: Mapping[str, Any]
    proposals: Mapping[str, Sequence[Any]] | None


def _split(ref: Any, name: str) -> Split:
    return split_named(ref, name, PUBLISHED)


def _phrases(ref: Any) -> list[Any]:
    """The sentences of a ref, or one None if it has none to show, which is then named as broken."""
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
    """The file of refs, and what the others hold."""
    parts = [Path(part) for part in parts_of(path)]
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
    """The boxes of each picture, by its number, in the order of the file."""
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
    """Numbers, texts, lists, tuples, dictionaries. What names a class or a function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


def load_plain_pickle(file: Path) -> Any:
    """What a pickle of plain data holds. Nothing in it is executed. Raises ValueError."""
    with existing(file, LAYOUT).open("rb") as stream:
        try:
            # Python 2 wrote the published files. What is no UTF-8 in them is named with its record.
            return _PlainUnpickler(stream, encoding="utf-8", errors="surrogateescape").load()
        except Exception as error:  # broken bytes lead the unpickler to any error
            raise ValueError(f"{file} is not a pickle of plain data: {error}") from None
