"""`diptych doctor RUN`, `diptych doctor --record RUN RUN … --to FILE`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

WRONG = 1
"""Exit status where something is wrong with the run."""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych doctor",
        usage="diptych doctor RUN [--envelope FILE …] [--json]\n       diptych doctor --record RUN [RUN …] --to FILE",
        description="Check from its log and folder whether a run is healthy, and say what to do about problems. The "
        f"run may still be training. The exit status is {WRONG} where something is wrong.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--envelope",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an envelope that --record wrote, to compare with; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--record", action="store_true", help="write the envelope of these runs of one recipe to --to")
    parser.add_argument("--to", type=Path, metavar="FILE", help="file that --record writes")
    options = parser.parse_args(arguments)
    if options.record != bool(options.to):
        parser.error("--record and --to go together")
    if len(options.runs) > 1 and not options.record:
        parser.error("give one run; only --record takes several")

    from diptych.apps import doctor
    from diptych.writing import write_text

    if options.record:
        envelope = doctor.record([doctor.read_run(folder) for folder in options.runs])
        write_text(options.to, json.dumps(envelope.to_json()) + "\n")
        print(f"{options.to}: {', '.join(envelope.bands)} of {envelope.recipe.name}, from {envelope.runs} run(s)")
        return
    examined = doctor.read_run(options.runs[0])
    diagnosis = doctor.examine(examined, doctor.known(examined.recipe.name, options.envelope))
    print(json.dumps(diagnosis.to_json(), indent=1) if options.json else diagnosis.text())
    if not diagnosis.healthy:
        sys.exit(WRONG)
