"""`diptych data validate karpathy dataset_coco.json --root coco`, `diptych data convert|shard|show|audit …`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.loading import add_precision, load_model

if TYPE_CHECKING:
    from diptych.data.shards.writing import SplitSource
    from diptych.data.sources.listing import SourceListing
    from diptych.data.tokenizer import Tokenizer
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
"""Kinds of record in diptych/data/record.py by their names in `shard --task`."""
NOT_READY = 1
"""Exit status of `validate` where training cannot start."""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych data", description="Check, convert, show and audit data in any published layout."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="validate|convert|shard|show|audit")
    validate = _verb(
        verbs, "validate", "list missing and broken records; the exit status tells whether training can start"
    )
    validate.add_argument(
        "--vocabulary",
        metavar="PATH",
        help="vocab.txt, its folder or a run, to count the words that it does not know ([UNK])",
    )
    validate.add_argument("--fast", action="store_true", help="check that pictures exist, without opening them")
    convert = _verb(verbs, "convert", "write a JSONL file for each split")
    convert.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder for the files")
    convert.add_argument("--shards", action="store_true", help="also copy the pictures into tar shards of 1 GB")
    _shard_options(_verb(verbs, "shard", "write tar shards with their indices, or continue a stopped call", "?"))
    show = _verb(verbs, "show", "write a page of samples")
    show.add_argument(
        "--to", type=Path, default=Path("samples.html"), metavar="FILE", help="file to write (default: samples.html)"
    )
    show.add_argument("--count", type=int, default=24, metavar="N", help="samples of each split (default: 24)")
    show.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    _audit_options(_verb(verbs, "audit", "find captions that do not fit their pictures, by a trained model"))
    options = parser.parse_args(arguments)
    {"validate": _validate, "convert": _convert, "shard": _shard, "show": _show, "audit": _audit}[options.verb](options)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, paths: str | None = None
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument(
        "layout", help="a value of data.source: auto, folder, jsonl, table, datasets, karpathy, coco_captions, vqa, …"
    )
    parser.add_argument("path", nargs=paths, help="its file or folder; separate several files by commas")
    parser.add_argument("--root", help="folder that relative picture paths start from (default: that of the file)")
    parser.add_argument("--validation", metavar="PATH", help="file of the validation split, if it has one")
    parser.add_argument("--test", metavar="PATH", help="file of the test split, if it has one")
    parser.add_argument(
        "--largest-pixels",
        type=int,
        default=100_000_000,
        metavar="N",
        help="refuse pictures of more pixels (default: 100000000)",
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of pictures of a table (default: by its values)")
    parser.add_argument("--caption-column", metavar="NAME", help="column of captions, or several with commas between")
    return parser


def _shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder for the shards")
    parser.add_argument("--jobs", type=int, metavar="N", help="number of processes (default: one a CPU core)")
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="samples in a shard (default: 10000)")
    parser.add_argument(
        "--task", choices=TASKS, default="captions", help="kind of record to make from scenes (default: captions)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field, as in `diptych train`: data.scenes.count=5000",
    )


def _audit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="RUN", help="run, checkpoint or published weights")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder for the page and the lists")
    parser.add_argument(
        "--score",
        choices=("contrast", "match", "both"),
        default="contrast",
        help="what decides: similarity beside that of other pairs (contrast, the default), ITM (match), or both",
    )
    parser.add_argument(
        "--drop",
        type=float,
        metavar="SHARE",
        help="leave out this share, 0..1, instead of the pairs that score below 0",
    )
    parser.add_argument("--count", type=int, default=48, metavar="N", help="pairs on the page (default: 48)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    add_precision(parser, "fp32")


def _config(options: argparse.Namespace) -> DataConfig:
    from diptych.schema import DataConfig

    return DataConfig(
        source=options.layout, path=options.path, root=options.root,
        validation_path=options.validation, test_path=options.test, largest_pixels=options.largest_pixels,
        image_column=options.image_column, caption_column=options.caption_column,
    )  # fmt: skip


def _read(options: argparse.Namespace) -> tuple[DataConfig, dict[Split, SourceListing]]:
    from diptych.catalog import read_splits

    config = _config(options)
    return config, read_splits(config)


def _tell(parts: Mapping[Split, SourceListing]) -> None:
    """Prints what was found out about the files by looking, to standard error."""
    for note in (note for listing in parts.values() for note in listing.notes):
        print(f"note: {note}", file=sys.stderr)


def _validate(options: argparse.Namespace) -> None:
    from diptych.data.validate import validate
    from diptych.metrics.vqa import normalise_answer

    config, parts = _read(options)
    tokenizer = _tokenizer(options.vocabulary) if options.vocabulary else None
    check = validate(parts, config, not options.fast, tokenizer, normalise_answer)
    print(check.text())
    if not check.ready:
        sys.exit(NOT_READY)


def _tokenizer(place: str) -> Tokenizer:
    """Loads the vocabulary of a file or folder, or that of a run's checkpoint. Raises ValueError."""
    from diptych.checkpoints.store import load_from
    from diptych.data.tokenizer import Tokenizer

    path = Path(place)
    is_run = any((path / name).exists() for name in ("checkpoints", "manifest.json"))
    return Tokenizer.load(load_from(path).tokenizer) if is_run else Tokenizer.from_vocabulary(path)


def _convert(options: argparse.Namespace) -> None:
    from diptych.data.convert import SHARD_BYTES, write_splits
    from diptych.data.splits import named_paths

    config, parts = _read(options)
    _tell(parts)
    print(write_splits(parts, options.to, SHARD_BYTES if options.shards else None, named_paths(config)))


def _shard(options: argparse.Namespace) -> None:
    from diptych.data.shards.writing import write_shards
    from diptych.data.workers import processors
    from diptych.recipes.override import override, parse_assignments
    from diptych.schema import AlbefConfig, AlbefPretrainConfig, Recipe

    recipe = override(
        Recipe("shards", AlbefConfig(), AlbefPretrainConfig(), data=_config(options)), parse_assignments(options.set)
    )
    origin = {
        "layout": options.layout, "path": options.path, "root": options.root, "validation": options.validation,
        "test": options.test, "task": options.task, "set": sorted(options.set),
    }  # fmt: skip
    parts, jobs = _parts(recipe.data, options.task), options.jobs or processors()
    print(write_shards(parts, options.to, origin, options.samples, jobs))


def _parts(config: DataConfig, task: str) -> dict[Split, SplitSource]:
    """Lists the records to write for each split. A split that would be held out of the training data stays in it."""
    from diptych.catalog import open_source, read_splits
    from diptych.data import record
    from diptych.data.shards.writing import SplitSource
    from diptych.schema import SPLITS

    if config.source == "scenes":
        kind = getattr(record, TASKS[task])
        return {split: SplitSource(open_source(config, split, kind), made=True) for split in SPLITS}
    if task != "captions":
        raise ValueError(f"--task {task} is for scenes: {config.source} says itself what it holds")
    parts = read_splits(replace(config, held_out=0.0))
    _tell(parts)
    return {split: SplitSource(found, largest_pixels=config.largest_pixels) for split, found in parts.items()}


def _show(options: argparse.Namespace) -> None:
    from diptych.apps.report.samples import write_samples
    from diptych.data.splits import named_paths

    config, parts = _read(options)
    _tell(parts)
    title = f"{options.layout}: {options.path}"
    count, seed, read = options.count, options.seed, named_paths(config)
    print(write_samples(parts, options.to, title, count, seed, config.largest_pixels, read))


def _audit(options: argparse.Namespace) -> None:
    from diptych.apps.audit import audit, spare_audit, write_audit
    from diptych.data.splits import named_paths

    config, parts = _read(options)
    _tell(parts)
    read = named_paths(config)
    spare_audit(parts, options.to, read)  # before the model is asked for hours
    found = audit(load_model(options.model, options), parts, options.score, options.drop)
    print(write_audit(found, options.to, f"{options.layout}: {options.path}", options.count, read))
