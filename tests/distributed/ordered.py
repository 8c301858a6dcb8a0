"""Runs on several processes on order, one JSON line a run, for test_faults.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.warm import Fault, run, small


def main() -> None:
    for line in sys.stdin:
        given = json.loads(line)
        fault = Fault(*given["fault"]) if given["fault"] else None
        statuses = run(given["size"], small(**given["changes"]), Path(given["folder"]), given["resume"], fault)
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
