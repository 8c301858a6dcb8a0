"""Trains on several processes on request, with one JSON line for each run, for test_faults.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.warm import Fault, run, small


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        fault = Fault(*request["fault"]) if request["fault"] else None
        statuses = run(request["size"], small(**request["changes"]), Path(request["folder"]), request["resume"], fault)
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
