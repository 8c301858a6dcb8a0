"""The bounds on mutual information over a training, beside retrieval: `python -m benchmarks.views RUN… --to FILE`.

To ALBEF §4 the objectives are views of one pair: ITC maximises what image and text tell of each other, MLM what a word
and its context do, and distillation what the image and a text of the momentum encoder do. Every training logs these
bounds. This collects them from finished runs: `NAME.STEP` in nats, and the validation's mean recall in percent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.nouns import print_table

BOUNDS = ("mi_bound", "mi_bound_words", "mi_bound_teacher")
RECALL = "mean_recall"


def measure(run: Path) -> dict[str, float]:
    """Reads the bounds of each logged step of a run, and the mean recall of each validation.

    Raises ValueError for a run that logged no bound, as one that learns neither ITC nor MLM.
    """
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    found = {name: round(value, 3) for line in text.splitlines() for name, value in _measures(json.loads(line))}
    if not any(name.startswith(BOUNDS) for name in found):
        raise ValueError(f"{run} logged no bound on mutual information: it learnt neither ITC nor MLM")
    return found


def _measures(line: dict[str, dict[str, float]]) -> Iterator[tuple[str, float]]:
    parts = (("measures", BOUNDS), ("validation", (RECALL,)))
    for part, names in parts:
        measured = line.get(part, {})
        yield from ((f"{name}.{line['step']}", measured[name]) for name in names if name in measured)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.views", description="Collect bounds on mutual information.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished run")
    parser.add_argument("--to", type=Path, metavar="FILE", help="JSON file for the measures of each run")
    options = parser.parse_args()
    found = {run.name: measure(run) for run in options.runs}
    print_table(found)
    if options.to:
        options.to.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
