"""Random faults over a small training: `python -m tests.distributed.chaos` (`make chaos`).

One run is undisturbed. Another one meets a fault at each attempt (one process or all are killed, stopped, hang or are
told to end, a loss is NaN, the disk is full, the newest checkpoint is damaged) and is resumed, until there were as many
faults as requested. Both run on two processes with sharded weights and write checkpoints while they train. Whenever the
disturbed run reaches its end, it is compared with the other one and begun again. A run that ends otherwise, or hangs,
is kept with its log, beside the undisturbed one, and it is printed what differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.checkpoints import store
from diptych.schema import Recipe
from tests.distributed.warm import ALL, FAULTS, Fault, HungError, run, small
from tests.smoke.test_resume import result

DAMAGE = "damage checkpoint"
STEPS = 24
CHANGES = {"run__steps": STEPS, "run__parallel": "fsdp", "run__checkpoint_async": True}


@dataclass
class Tally:
    """The outcome of the faults."""

    faults: Counter[str] = field(default_factory=Counter)
    borne: int = 0
    """Faults of the run that has not ended yet."""
    survived: int = 0
    """Faults of runs that ended like the undisturbed one."""
    last: str = "none"
    lost: list[int] = field(default_factory=list)
    """Steps that had to be taken again after each fault."""
    ends: int = 0
    equal: int = 0


def disturb(folder: Path, draw: random.Random, tally: Tally, recipe: Recipe) -> None:
    """Trains under one fault, and checks that the run can go on from what that leaves."""
    begun = (folder / "recipe.json").exists()
    newest = store.latest(folder / "checkpoints") if begun else None
    step = 0 if newest is None else int(newest.name.removeprefix(store.PREFIX))
    what = draw.choice([*FAULTS, DAMAGE] if step > 8 else list(FAULTS))
    tally.faults[what] += 1
    tally.last = what
    tally.borne += 1
    if what == DAMAGE:
        assert newest is not None
        victim = draw.choice([path for path in newest.rglob("*") if path.is_file()])
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
        run(2, recipe, folder, True)
        tally.lost.append(step - _before(folder, step))
        return
    at = draw.randrange(step, STEPS)
    # Nobody is left to notice that all are stopped or asleep.
    rank = draw.choice([0, 1] if what in ("stop", "sleep") else [0, 1, ALL])
    run(2, recipe, folder, begun, Fault(what, rank, at))
    saved = store.latest(folder / "checkpoints")
    reached = 0 if saved is None else int(saved.name.removeprefix(store.PREFIX))
    tally.lost.append(max(0, at - reached))


def _before(folder: Path, step: int) -> int:
    """Returns the step that the run went on from, by its log, where the checkpoint of `step` was damaged."""
    log = folder.with_suffix(".log").read_text()
    lost = [int(number) for number in re.findall(r"(\d+) steps are lost", log)]
    return step - lost[-1] if lost else step


def main() -> int:
    parser = argparse.ArgumentParser("chaos", description="Random faults over a small training.")
    parser.add_argument("--faults", type=int, default=50, metavar="N", help="default: 50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--load", type=int, default=0, metavar="N", help="processes that keep the machine busy beside it"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "diptych-chaos", metavar="FOLDER",
        help="where runs that end otherwise are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS",
        help="run.timeout: longer than any step on this machine, with what else it does (default: 5)",
    )  # fmt: skip
    options = parser.parse_args()
    recipe = small(**CHANGES, run__timeout=options.timeout)
    for _ in range(options.load):
        _busy()
    draw, tally, began = random.Random(options.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        assert run(2, recipe, whole) == [0, 0], whole.with_suffix(".log").read_text()
        expected, folder = result(whole), Path(place) / "disturbed"
        while sum(tally.faults.values()) < options.faults or folder.exists():
            try:
                if sum(tally.faults.values()) < options.faults:
                    disturb(folder, draw, tally, recipe)
                    print(f"{sum(tally.faults.values())}: {list(tally.faults.items())}", file=sys.stderr)
                elif (ended := run(2, recipe, folder, (folder / "recipe.json").exists())) != [0, 0]:
                    raise HungError(f"without a fault, the run ended with {ended}")
            except HungError as error:
                print(f"after fault {sum(tally.faults.values())} ({tally.last}): {error}; {keep(folder, options)}")
                return 1
            if _ended(folder):
                tally.ends += 1
                found = _kept(result(folder))
                equal = found == _kept(expected)
                if not equal:
                    print(f"a run ended otherwise; {keep(folder, options)}:\n{differences(found, _kept(expected))}")
                tally.equal += equal
                tally.survived += tally.borne * equal
                tally.borne = 0
                shutil.rmtree(folder)
                folder.with_suffix(".log").unlink()
    count = sum(tally.faults.values())
    print(f"faults injected: {count} ({', '.join(f'{name} {number}' for name, number in tally.faults.items())})")
    print(f"survived:        {tally.survived}")
    print(f"steps lost:      {sum(tally.lost)} in all, {max(tally.lost, default=0)} at most")
    print(f"runs ended:      {tally.ends}, final weights, optimiser, log equal bit by bit in {tally.equal}")
    print(f"took:            {time.monotonic() - began:.0f} s")
    return int(not (tally.survived == count and tally.equal == tally.ends))


def keep(folder: Path, options: argparse.Namespace) -> str:
    """Copies the disturbed run, its log and the undisturbed run to where they are not removed. Says where."""
    options.keep.mkdir(parents=True, exist_ok=True)
    kept = Path(tempfile.mkdtemp(prefix=f"seed-{options.seed}-", dir=options.keep))
    shutil.copytree(folder.with_name("whole"), kept / "whole")
    if folder.exists():
        shutil.copytree(folder, kept / "disturbed")
    shutil.copy(folder.with_suffix(".log"), kept)
    return f"it is kept in {kept}"


def differences(found: Any, expected: Any, name: str = "") -> str:
    """Lists the parts of two results that differ, one a line."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        return "\n".join(differences(found.get(key), expected.get(key), f"{name}.{key}".lstrip(".")) for key in names)
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = [(number, *pair) for number, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
        return "\n".join(differences(one, other, f"{name}[{number}]") for number, one, other in pairs)
    return f"  {name}: {found!r:.300}, undisturbed {expected!r:.300}"


def _busy() -> None:
    """Starts a process that computes until this one ends."""
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            sum(range(1_000_000))
        os._exit(0)


def _ended(folder: Path) -> bool:
    newest = store.latest(folder / "checkpoints")
    return newest is not None and newest.name == f"{store.PREFIX}{STEPS:08d}"


def _kept(outcome: dict[str, object]) -> dict[str, object]:
    """Returns the result without the list of checkpoints, because damaged ones are set aside."""
    return {name: value for name, value in outcome.items() if name != "kept"}


if __name__ == "__main__":
    sys.exit(main())
