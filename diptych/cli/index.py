"""`diptych index build photos --model RUN`, `add`, `remove`, `search`, `info`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.hits import QUERY, add_options, check_options, show
from diptych.cli.loading import MODEL, add_device, add_largest_pixels, load_model
from diptych.cli.search import MIN_MATCH, probability

if TYPE_CHECKING:
    from diptych.apps.index import BuildReport
    from diptych.predict import Predictor

PLACE = "a folder, milvus://host:port/name or postgresql://user@host/database?index=name"


def run(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    {"build": _build, "add": _add, "remove": _remove, "search": _search, "info": _info}[options.what](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "diptych index", description="Build an index of pictures and texts, and search it."
    )
    verbs = parser.add_subparsers(dest="what", required=True, metavar="build|add|remove|search|info")
    source = {"metavar": "DIR|JSONL", "type": Path, "help": "a folder with its subfolders, or a JSONL file"}
    build = verbs.add_parser("build", description="Index a folder or a JSONL file, or continue a stopped call.")
    build.add_argument("source", **source)  # type: ignore[arg-type]
    build.add_argument("--model", required=True, metavar="RUN", help=MODEL)
    build.add_argument("--at", metavar="PLACE", help=f"{PLACE} (default: SOURCE.index)")
    build.add_argument("--kind", default="auto", choices=["auto", "exact", "ivf", "hnsw"], help="the method of search")
    add = verbs.add_parser("add", description="Add what is new or changed in a source.")
    add.add_argument("place", metavar="PLACE", help=PLACE)
    add.add_argument("source", **source)  # type: ignore[arg-type]
    add.add_argument("--prune", action="store_true", help="also remove what this source has no more")
    remove = verbs.add_parser("remove", description="Remove pictures and texts from an index.")
    remove.add_argument("place", metavar="PLACE", help=PLACE)
    remove.add_argument("ids", nargs="+", metavar="ID", help="names, as `search` shows them, or patterns as in '*.png'")
    search = verbs.add_parser("search", description="Find the items that fit words or a picture best.")
    search.add_argument("place", metavar="PLACE", help=PLACE)
    search.add_argument("words", nargs="?", help=QUERY)
    search.add_argument("--image", type=Path, metavar="FILE", help="a picture to look for, in place of words")
    search.add_argument("--of", default="picture", choices=["picture", "text"], help="what to find (default: picture)")
    search.add_argument("--rerank", action="store_true", help="re-rank the best by the fusion encoder")
    search.add_argument("--min-match", type=probability, metavar="P", help=f"with --rerank, {MIN_MATCH}")
    search.add_argument("--top", type=int, default=10, metavar="N", help="how many to show (default: 10)")
    add_options(search)
    for verb in (add, search):
        verb.add_argument("--model", metavar="RUN", help="the model that made the index, if it has been moved")
    for verb in (build, add, search):
        add_device(verb)
        add_largest_pixels(verb)
    info = verbs.add_parser("info", description="Describe an index.")
    info.add_argument("place", metavar="PLACE", help=PLACE)
    return parser


def _build(options: argparse.Namespace) -> None:
    from diptych.apps import index

    place = options.at or _beside(options.source)
    model = load_model(options.model, options)
    _tell(index.build_index(place, options.source, model, options.kind, progress=_progress))


def _beside(source: Path) -> str:
    """Names the index of a source: `photos.index` for `photos`, `list.index` for `list.jsonl`."""
    whole = source.resolve()
    return str(whole.with_name(f"{whole.stem if whole.is_file() else whole.name}.index"))


def _add(options: argparse.Namespace) -> None:
    from diptych.apps import index

    _tell(index.add_to_index(options.place, options.source, _model(options), _progress, options.prune))


def _remove(options: argparse.Namespace) -> None:
    from diptych.apps import index

    before = index.index_info(options.place)
    left = index.remove_from_index(options.place, options.ids)
    print(f"removed {sum(before.counts.values()) - left:,} from {before.place}, which holds {left:,} now")


def _search(options: argparse.Namespace) -> None:
    from diptych.apps import index

    if (options.words is None) == (options.image is None):
        raise ValueError("give a query: words, or a picture with --image FILE")
    check_options(options)
    model = _model(options)
    opened = index.open_index(options.place, model)
    query = options.image if options.words is None else options.words
    copies = not options.keep_copies
    show(opened.search(query, options.top, options.of, options.rerank, options.min_match, copies), options)


def _info(options: argparse.Namespace) -> None:
    from diptych.apps import index

    print(index.index_info(options.place))


def _model(options: argparse.Namespace) -> Predictor:
    """Loads the named model, or else the one that the index remembers."""
    from diptych.apps import index

    if options.model:
        return load_model(options.model, options)
    checkpoint = index.index_info(options.place).checkpoint
    if not Path(checkpoint).exists():
        gone = f"the model of {options.place} was {checkpoint}, which does not exist"
        raise ValueError(f"{gone}: name it with --model RUN")
    return load_model(checkpoint, options)


def _tell(built: BuildReport) -> None:
    for note in built.notes:
        print(note, file=sys.stderr)
    print(built)


def _progress(done: int, of: int) -> None:
    print(f"{done:,} of {of:,}", file=sys.stderr)
