"""All benchmarks, each in a process of its own: `python -m benchmarks [PART …]`, the parts as below."""

from __future__ import annotations

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
    "scenes": ["benchmarks.scenes"],
    "loader": ["benchmarks.loader"],
    "scaling": ["benchmarks.scaling"],
    "plan": ["benchmarks.plan"],
    "index": ["benchmarks.search_index"],
    "serve": ["benchmarks.serve"],
}
TIMED = ("pretrain", "rerank", "retrieval", "grounding", "questions", "vlmo", "vlmo-embed")
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""For glibc: freed memory stays with the process, so that no side pays for fresh pages at each call. The plain one,
which fills more of them, gains most."""


def main(names: list[str]) -> int:
    """Runs the parts named, or all. A part that fails does not keep the others from running."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(machine.describe(), flush=True)
    return max(run(name) for name in names or PARTS)


def run(name: str) -> int:
    environment = os.environ | (KEPT_MEMORY if name in TIMED else {})
    return subprocess.run([sys.executable, "-m", *PARTS[name]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
