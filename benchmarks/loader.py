"""Pictures a second and core from shards to pixels, beside Pillow's bare decode. `python -m benchmarks.loader`

JPEGs of 480 × 640 in shards, to training batches of 224 px: read, decode, crop, flip, RandAugment, normalise, caption,
collate. The bare decode turns the same bytes, already in memory, into RGB and nothing else. Both run in one process on
one thread, in alternating rounds, so that a picture's second is a core's second.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks import machine
from diptych.data.loader import PairLoader
from diptych.data.sources.shards import open_shards
from diptych.data.tar import add_member, whole_shard
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig

WIDTH, HEIGHT, SIDE = 640, 480, 224
SHARDS, SAMPLES, BATCH, STEPS = 8, 64, 32, 4
"""Shards, samples of each, pictures of a batch, batches of a round."""
CAPTION = "a photo of a small brown dog that runs after a ball in the park"


def pictures() -> Iterator[bytes]:
    """JPEGs of blurred noise at quality 85: about 100 KB each, as photos of that size are."""
    for seed in range(SHARDS * SAMPLES):
        noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.9)).save(stream, "JPEG", quality=85)
        yield stream.getvalue()


def write(folder: Path) -> list[bytes]:
    """The shards. Returns the pictures."""
    made = list(pictures())
    for number in range(SHARDS):
        with whole_shard(folder / f"{number:05}.tar") as archive:
            for index in range(number * SAMPLES, (number + 1) * SAMPLES):
                add_member(archive, f"{index:09}.jpg", made[index])
                add_member(archive, f"{index:09}.txt", CAPTION.encode())
    return made


def measure() -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = write(Path(folder))
        config = DataConfig(source="shards", path=folder, held_out=0.0, workers=0)
        tokenizer = Tokenizer.train([CAPTION], 200)
        loaded = PairLoader(open_shards(config, "train"), tokenizer, config, SIDE, BATCH, 0).batches()
        turns = iter(made * 100)
        count = BATCH * STEPS

        def bare() -> None:
            for content in islice(turns, count):
                Image.open(io.BytesIO(content)).convert("RGB")

        def ours() -> None:
            for _ in islice(loaded, STEPS):
                pass

        found = machine.interleaved({"bare decode": bare, "loader": ours})
    rates = {name: count / taken.seconds for name, taken in found.items()}
    share = machine.ratio(found["bare decode"], found["loader"])
    size = sum(map(len, made)) / len(made)
    print(f"loader: JPEG {HEIGHT} × {WIDTH} ({size / 1000:.0f} KB) from shards to {SIDE} px, augmented, one process")
    print(
        f"  pictures a second and core: loader {rates['loader']:.0f}, Pillow's bare decode {rates['bare decode']:.0f}"
    )
    print(f"  the loader reaches {100 * share:.0f} % of the bare decode")
    return {"loader pictures a second": rates["loader"], "loader share of bare decode": share}


if __name__ == "__main__":
    measure()
