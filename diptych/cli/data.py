"""`diptych data validate karpathy dataset_coco.json --root coco`, `diptych data convert|shard|show …`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.data.shards.writing import SplitSource
    from diptych.data.sources.listing import SourceListing
    from diptych.schema import DataConfig, Split

TASKS = {
    "captions": "Record",
    "entailment": "Entailment",
    "questions": "Question",
    "statements": "PairStatement",
    "phrases": "Referring",
    "pictures": "Picture",
    "texts": "PlainText",
}
"""What `shard --task` calls the kinds of diptych/data/record.py."""
NOT_READY = 1
"""Exit status of `validate` where training cannot start."""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diptych data", description="Look at data in any published layout.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="validate|convert|shard|show")
    validate = _verb(verbs, "validate", "say what is missing or broken; the exit status says if training can start")
    validate.add_argument("--fast", action="store_true", help="do not open the pictures, only see that they are there")
    convert = _verb(verbs, "convert", "write JSONL, one file a split")
    convert.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the files go")
    convert.add_argument("--shards", action="store_true", help="copy the pictures into tar shards of 1 GB beside it")
    _shard_options(_verb(verbs, "shard", "write tar shards with their indices, going on where it was stopped", "?"))
    show = _verb(verbs, "show", "write a page of samples")
    show.add_argument("--to", type=Path, default=Path("samples.html"), metavar="FILE", help="default: samples.html")
    show.add_argument("--count", type=int, default=24, metavar="N", help="samples of each split (default: 24)")
    show.add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    given = parser.parse_args(arguments)
    {"validate": _validate, "convert": _convert, "shard": _shard, "show": _show}[given.verb](given)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, paths: str | None = None
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument("layout", help="as data.source: jsonl, folder, texts, albef, karpathy, vqa, refcoco, …")
    parser.add_argument("path", nargs=paths, help="its file or folder; several files with commas between them")
    parser.add_argument("--root", help="folder that relative picture paths start from (default: beside the file)")
    parser.add_argument("--validation", metavar="PATH", help="the validation split, where it has a file of its own")
    parser.add_argument("--test", metavar="PATH", help="likewise the test split")
    return parser


def _shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one a processor)")
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="of a shard (default: 10000)")
    parser.add_argument("--task", choices=TASKS, default="captions", help="of scenes, what to make (default: captions)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as for `train`: data.scenes.count=5000"
    )


def _config(given: argparse.Namespace) -> DataConfig:
    from diptych.schema import DataConfig

    return DataConfig(
        source=given.layout, path=given.path, root=given.root, validation_path=given.validation, test_path=given.test
    )


def _read(given: argparse.Namespace) -> tuple[DataConfig, dict[Split, SourceListing]]:
    from diptych.catalog import read_splits

    config = _config(given)
    return config, read_splits(config)


def _validate(given: argparse.Namespace) -> None:
    from diptych.data.validate import validate

    config, parts = _read(given)
    check = validate(parts, config, open_pictures=not given.fast)
    print(check.text())
    if not check.ready:
        sys.exit(NOT_READY)


def _convert(given: argparse.Namespace) -> None:
    from diptych.data.convert import SHARD_BYTES, write_splits

    _, parts = _read(given)
    print(write_splits(parts, given.to, SHARD_BYTES if given.shards else None))


def _shard(given: argparse.Namespace) -> None:
    from diptych.data.shards.writing import write_shards
    from diptych.data.workers import processors
    from diptych.recipes.override import override, parse_assignments
    from diptych.schema import AlbefConfig, AlbefPretrainConfig, Recipe

    recipe = override(
        Recipe("shards", AlbefConfig(), AlbefPretrainConfig(), data=_config(given)), parse_assignments(given.set)
    )
    origin = {
        "layout": given.layout, "path": given.path, "root": given.root, "validation": given.validation,
        "test": given.test, "task": given.task, "set": sorted(given.set),
    }  # fmt: skip
    print(write_shards(_parts(recipe.data, given.task), given.to, origin, given.samples, given.jobs or processors()))


def _parts(config: DataConfig, task: str) -> dict[Split, SplitSource]:
    """What is to be written of each split. A split that would be drawn from the training data stays part of it."""
    from diptych.catalog import open_source, read_splits
    from diptych.data import record
    from diptych.data.shards.writing import SplitSource
    from diptych.schema import SPLITS

    if config.source == "scenes":
        kind = getattr(record, TASKS[task])
        return {split: SplitSource(open_source(config, split, kind), made=True) for split in SPLITS}
    if task != "captions":
        raise ValueError(f"--task {task} is for scenes: {config.source} says itself what it holds")
    return {split: SplitSource(found) for split, found in read_splits(replace(config, held_out=0.0)).items()}


def _show(given: argparse.Namespace) -> None:
    from diptych.apps.report.samples import write_samples

    _, parts = _read(given)
    print(write_samples(parts, given.to, f"{given.layout}: {given.path}", given.count, given.seed))
