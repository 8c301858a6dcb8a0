"""`diptych embed RUN photos --to vectors.npy`"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.loading import MODEL, add_device, add_largest_pixels, load_model
from diptych.launched import processes, rank

if TYPE_CHECKING:
    from diptych.apps.index import EmbeddingReport


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych embed",
        description="Write the vectors of the pictures in a folder, or of the pictures and texts in a JSONL file. "
        "A stopped call continues when it is repeated. Under torchrun each process takes its share.",
    )
    parser.add_argument("run", help=MODEL)
    parser.add_argument("source", type=Path, metavar="DIR|JSONL", help="a folder with its subfolders, or a JSONL file")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="a file to write: .npy or .parquet")
    parser.add_argument("--processes", type=int, metavar="N", help="share the work among N processes (default: 1)")
    add_device(parser)
    add_largest_pixels(parser)
    options = parser.parse_args(arguments)
    if options.processes is None:
        _embed(options)
    elif processes() > 1:
        raise ValueError("torchrun has started several processes already: leave --processes out")
    elif options.processes < 1:
        raise ValueError(f"--processes is {options.processes}: it must be at least 1")
    else:
        _share(options, arguments)


def _embed(options: argparse.Namespace) -> None:
    from diptych.apps.index import vectors

    vectors.check_target(options.to)
    say = _progress if rank() == 0 else None
    model = load_model(options.run, options)
    _tell(vectors.embed_source(options.source, options.to, model, rank(), processes(), progress=say))


def _tell(embedded: EmbeddingReport) -> None:
    for note in embedded.notes if rank() == 0 else ():
        print(note, file=sys.stderr)
    if embedded.waiting:
        print(f"process {rank()} has done its share; {embedded.waiting} of {embedded.parts} parts are with others")
    else:
        skipped = f"; {embedded.skipped:,} skipped, see {embedded.to.stem}.skipped.jsonl" if embedded.skipped else ""
        print(f"{embedded.vectors:,} vectors in {embedded.to}{skipped}")


def _share(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Starts a process for each share. Raises ValueError where one fails; the shares of the others stay."""
    from diptych.apps.index import vectors

    vectors.check_target(options.to)
    count = options.processes
    plain = [word for place, word in enumerate(arguments) if not _is_processes(arguments, place)]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    workers = []
    for number in range(count):
        ranks = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
        environment = {"OMP_NUM_THREADS": threads} | os.environ | ranks
        command = [sys.executable, "-m", "diptych", "embed", *plain]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    try:
        failed = [number for number, worker in enumerate(workers) if worker.wait()]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    if failed:
        raise ValueError(f"process {failed[0]} of {count} failed, see above: run the same command again for the rest")
    _tell(vectors.finished(options.to))


def _is_processes(arguments: Sequence[str], place: int) -> bool:
    """Tells whether a word is `--processes` or its number."""
    return arguments[place].startswith("--processes") or (place > 0 and arguments[place - 1] == "--processes")


def _progress(done: int, parts: int) -> None:
    print(f"part {done} of {parts}", file=sys.stderr)
