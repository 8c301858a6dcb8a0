"""Runs benchmarks, each in a process of its own: `python -m benchmarks [PART …]`; without a part, all but `gpu`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks import machine

PARTS = {
    "pretrain": ["benchmarks.albef", "pretrain"],
    "memory": ["benchmarks.albef", "memory"],
    "rerank": ["benchmarks.albef", "rerank"],
    "retrieval": ["benchmarks.retrieval", "time"],
    "retrieval-memory": ["benchmarks.retrieval", "memory"],
    "grounding": ["benchmarks.grounding"],
    "questions": ["benchmarks.questions"],
    "vlmo": ["benchmarks.vlmo", "pretrain"],
    "vlmo-embed": ["benchmarks.vlmo", "embed"],
    "optim": ["benchmarks.optim"],
    "scenes": ["benchmarks.scenes"],
    "loader": ["benchmarks.loader"],
    "scaling": ["benchmarks.scaling"],
    "plan": ["benchmarks.plan"],
    "index": ["benchmarks.search_index"],
    "serve": ["benchmarks.serve"],
    "inference": ["benchmarks.inference"],
    "gpu": ["benchmarks.gpu"],
}
NEEDS_CARD = ("gpu",)
"""Parts that run only where they are asked for."""
TIMED = ("pretrain", "rerank", "retrieval", "grounding", "questions", "vlmo", "vlmo-embed", "inference")
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Makes glibc keep freed memory in the process, so that no side pays for fresh pages at each call. The plain side
gains most, because it fills more pages."""


def main(arguments: list[str]) -> int:
    """Runs the parts in turn, also after one that fails. Returns the highest exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Run benchmarks, by default all but gpu.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    names: list[str] = parser.parse_args(arguments).parts
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(machine.describe(), flush=True)
    return max(run(name) for name in names or [name for name in PARTS if name not in NEEDS_CARD])


def run(name: str) -> int:
    """Runs a part and returns its exit status."""
    environment = os.environ | (KEPT_MEMORY if name in TIMED else {})
    return subprocess.run([sys.executable, "-m", *PARTS[name]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
