"""Images per second and core from shards to pixels, beside Pillow's bare decode: `python -m benchmarks.loader`

The loader makes training batches of 224 px from JPEGs of 480 × 640 in shards: it reads, decodes, crops, flips,
augments (RandAugment), normalises, tokenises and collates. The bare decode turns the same bytes, already in memory,
into RGB and does nothing else. Both run in one process on one thread, in alternating rounds.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks import machine
from diptych.data.loader import Loaded, PairLoader
from diptych.data.sources.shards import open_shards
from diptych.data.tar import add_member, whole_shard
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig

WIDTH, HEIGHT, SIDE = 640, 480, 224
SHARDS, SAMPLES, BATCH, STEPS = 8, 64, 32, 4
"""Number of shards, samples in each, images in a batch, batches in a round."""
RESIZES: tuple[Literal["pillow", "torch"], ...] = ("pillow", "torch")
"""Values of `data.resize`."""
CAPTION = "a photo of a small brown dog that runs after a ball in the park"


def pictures() -> Iterator[bytes]:
    """Makes JPEGs of blurred noise at quality 85. They have about 100 KB each, as photos of that size do."""
    for seed in range(SHARDS * SAMPLES):
        noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.9)).save(stream, "JPEG", quality=85)
        yield stream.getvalue()


def write(folder: Path) -> list[bytes]:
    """Writes the shards and returns the images in them."""
    images = list(pictures())
    for number in range(SHARDS):
        with whole_shard(folder / f"{number:05}.tar") as archive:
            for index in range(number * SAMPLES, (number + 1) * SAMPLES):
                add_member(archive, f"{index:09}.jpg", images[index])
                add_member(archive, f"{index:09}.txt", CAPTION.encode())
    return images


def measure() -> dict[str, float]:
    """Times the loader and the bare decode."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = write(Path(folder))
        config = DataConfig(source="shards", path=folder, held_out=0.0, workers=0)
        tokenizer = Tokenizer.train([CAPTION], 200)
        source = open_shards(config, "train")
        loaded = {
            resize: PairLoader(source, tokenizer, replace(config, resize=resize), SIDE, BATCH, 0).batches()
            for resize in RESIZES
        }
        turns = iter(images * 100)
        count = BATCH * STEPS

        def bare() -> None:
            for content in islice(turns, count):
                Image.open(io.BytesIO(content)).convert("RGB")

        def load(batches: Iterator[Loaded]) -> None:
            for _ in islice(batches, STEPS):
                pass

        ours = {resize: partial(load, batches) for resize, batches in loaded.items()}
        times = machine.interleaved({"bare decode": bare, **ours})
    rates = {name: count / measured.seconds for name, measured in times.items()}
    size = sum(map(len, images)) / len(images)
    print(f"loader: JPEG {HEIGHT} × {WIDTH} ({size / 1000:.0f} KB) from shards to {SIDE} px, augmented, one process")
    print(f"  images per second and core: Pillow's bare decode {rates['bare decode']:.0f}")
    found: dict[str, float] = {}
    for resize in RESIZES:
        share = machine.ratio(times["bare decode"], times[resize])
        print(f"  data.resize={resize}: {rates[resize]:.0f}, {100 * share:.0f} % of the bare decode")
        found |= {f"loader images per second, {resize}": rates[resize], f"loader share of bare decode, {resize}": share}
    return found


if __name__ == "__main__":
    measure()
