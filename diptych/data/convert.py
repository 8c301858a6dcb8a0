"""Records of any layout as JSONL (schemas: diptych/data/record.py), a file a split."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diptych.data.record import SPLITS, AnyRecord, PairStatement, Split, to_entry
from diptych.data.sources.files import Found, listing


def write_splits(parts: Mapping[Split, Found], folder: Path) -> str:
    """Write `folder/train.jsonl` and the like, each whole or not at all. Returns what was done, and how to use it.

    Pictures are not copied: their paths lead from the folder to where they are. Splits that would be drawn from the
    training data are not written but stay part of it, since they are drawn from the JSONL as well. Records that cannot
    be used are left out and named. Raises ValueError if there is nothing to write.
    """
    kept = {split: parts[split].records for split in SPLITS if parts[split].records and not parts[split].drawn}
    drawn = [record for split in SPLITS if parts[split].drawn for record in parts[split].records]
    if drawn:
        kept["train"] = [*kept.get("train", []), *drawn]
    lost = [error for part in parts.values() for error in part.skipped]
    if not kept:
        raise ValueError(f"there is no record to write\n{listing(lost)}")
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: _write(records, folder / f"{split}.jsonl") for split, records in kept.items()}
    lines = [f"{file}: {len(kept[split])} records" for split, file in files.items()]
    if lost:
        lines.append(f"{len(lost)} could not be used and were left out:\n{listing(lost)}")
    names = {"train": "data.path", "validation": "data.validation_path", "test": "data.test_path"}
    use = " ".join(f"{names[split]}={file}" for split, file in files.items())
    return "\n".join([*lines, f"use them with: data.source=jsonl {use}"])


def _write(records: list[AnyRecord], file: Path) -> Path:
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as stream:
        for record in records:
            entry = to_entry(_relative(record, file.parent))
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return unfinished.replace(file)


def _relative(record: AnyRecord, folder: Path) -> AnyRecord:
    """The record with the paths of its pictures from `folder` on."""
    paths = [Path(os.path.relpath(image, folder)).as_posix() for image in record.images]
    if isinstance(record, PairStatement):
        return replace(record, images=(paths[0], paths[1]))
    return replace(record, image=paths[0])
