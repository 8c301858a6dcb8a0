"""All benchmarks, each in a process of its own: `python -m benchmarks [pretrain] [memory] [rerank] [scenes]`."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import machine

PARTS = {
    "pretrain": ["benchmarks.albef", "pretrain"],
    "memory": ["benchmarks.albef", "memory"],
    "rerank": ["benchmarks.albef", "rerank"],
    "scenes": ["benchmarks.scenes"],
}


def main(names: list[str]) -> int:
    """Runs the parts named, or all. A part that fails does not keep the others from running."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(machine.describe(), flush=True)
    return max(subprocess.run([sys.executable, "-m", *PARTS[name]]).returncode for name in names or PARTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
