"""Plays the pointing game with heat maps of words: `python -m benchmarks.pointing RUN… [--scenes 300] [--split test]`.

Prints one table of the measures that `diptych.evaluate.pointing` documents, with a column for each run.
"""

from __future__ import annotations

from benchmarks.nouns import compare
from diptych.evaluate.pointing import evaluate_pointing


def main() -> None:
    compare("python -m benchmarks.pointing", "Measure where heat maps of words point.", evaluate_pointing, scenes=300)


if __name__ == "__main__":
    main()
