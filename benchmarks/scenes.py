"""Scenes per second on one core: content, caption and image. `python -m benchmarks.scenes [--count 5000]`"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from diptych.data.sources.scenes import open_scenes
from diptych.schema import DataConfig, ScenesConfig
from diptych.synthetic.evaluation import evaluation_set
from diptych.synthetic.sprites import sprite_set

ROUNDS = 5


def per_second(work: Callable[[int], object], count: int) -> float:
    """Returns the median rate over rounds of different scenes, without the first, which fills the sprite cache."""
    rates = []
    for turn in range(ROUNDS + 1):
        start = time.process_time()
        for index in range(turn * count, (turn + 1) * count):
            work(index)
        rates.append(count / (time.process_time() - start))
    return median(rates[1:])


def measure(config: ScenesConfig, count: int) -> dict[str, float]:
    """Returns the scenes per second of processor time, by part."""
    source = open_scenes(DataConfig(scenes=replace(config, count=count * (ROUNDS + 1))), "train")
    records = [source.record(index) for index in range(count)]
    return {
        "scene": per_second(source.scene, count),
        "record (scene, caption)": per_second(source.record, count),
        "picture of a record": per_second(lambda index: source.picture(records[index % count]), count),
        "all": per_second(lambda index: source.picture(source.record(index)), count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="scenes in a round")
    count = parser.parse_args().count
    for config in (ScenesConfig(), ScenesConfig(names="full"), ScenesConfig(sprites="shapes"), ScenesConfig(size=256)):
        start = time.perf_counter()
        sprites = sprite_set(config)
        opened = time.perf_counter() - start
        rates = ", ".join(f"{part} {rate:,.0f}" for part, rate in measure(config, count).items())
        print(f"{config.sprites} {config.names}, {len(sprites)} sprites, {config.size} px (opened in {opened:.2f} s)")
        print(f"  per second and core: {rates}")
    start = time.process_time()
    evaluation_set(ScenesConfig(seed=1), "test")
    print(f"1,000 test scenes with captions of their own: {time.process_time() - start:.2f} s")


if __name__ == "__main__":
    main()
