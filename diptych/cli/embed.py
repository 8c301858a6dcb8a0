"""`diptych embed RUN photos --to vectors.npy`"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.launched import processes, rank

if TYPE_CHECKING:
    from diptych.apps.index import EmbeddingReport


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych embed",
        description="Write the vectors of the pictures of a folder, or of the pictures and texts of a JSONL file. "
        "Called again, it goes on where it was stopped. Under torchrun each process takes its share.",
    )
    parser.add_argument("run", help="a run's folder, one of its checkpoints, or owner/name on the Hugging Face Hub")
    parser.add_argument("source", type=Path, metavar="DIR|JSONL", help="a folder, with those in it, or a JSONL file")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="a file to write: .npy or .parquet")
    parser.add_argument("--processes", type=int, metavar="N", help="share the work among N processes (default: 1)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    given = parser.parse_args(arguments)
    if given.processes is None:
        _embed(given)
    elif processes() > 1:
        raise ValueError("torchrun has started several processes already: leave --processes away")
    elif given.processes < 1:
        raise ValueError(f"--processes {given.processes}: at least one is needed")
    else:
        _share(given, arguments)


def _embed(given: argparse.Namespace) -> None:
    from diptych.apps.index import vectors
    from diptych.predict import load

    vectors.check_target(given.to)
    say = _progress if rank() == 0 else None
    model = load(given.run, given.device)
    _tell(vectors.embed_source(given.source, given.to, model, rank(), processes(), progress=say))


def _tell(found: EmbeddingReport) -> None:
    for note in found.notes if rank() == 0 else ():
        print(note, file=sys.stderr)
    if found.waiting:
        print(f"process {rank()} has done its share; {found.waiting} of {found.parts} parts are with others")
    else:
        skipped = f"; {found.skipped:,} skipped, see {found.to.stem}.skipped.jsonl" if found.skipped else ""
        print(f"{found.vectors:,} vectors in {found.to}{skipped}")


def _share(given: argparse.Namespace, arguments: Sequence[str]) -> None:
    """One process for each share. Raises ValueError where one fails; what the others have done stays."""
    from diptych.apps.index import vectors

    vectors.check_target(given.to)
    count = given.processes
    plain = [word for place, word in enumerate(arguments) if not _is_processes(arguments, place)]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    workers = []
    for number in range(count):
        own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
        environment = {"OMP_NUM_THREADS": threads} | os.environ | own
        command = [sys.executable, "-m", "diptych", "embed", *plain]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    try:
        failed = [number for number, worker in enumerate(workers) if worker.wait()]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    if failed:
        raise ValueError(
            f"process {failed[0]} of {count} failed, see above: the same command goes on with what is left"
        )
    _tell(vectors.finished(given.to))


def _is_processes(arguments: Sequence[str], place: int) -> bool:
    """Whether the word is `--processes`, or its number."""
    return arguments[place].startswith("--processes") or (place > 0 and arguments[place - 1] == "--processes")


def _progress(done: int, parts: int) -> None:
    print(f"part {done} of {parts}", file=sys.stderr)
