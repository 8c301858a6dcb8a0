"""The second stage of a two-way retrieval test at the paper's size, beside the plain procedure; and its memory.

    python -m benchmarks.retrieval time | memory

The test has 20 images at 384 px, 100 captions, and 32 candidates for a query (20 for a caption, since there are no more
images). The plain procedure takes one direction after the other, one query at a time; ours goes over the images once.
Both begin with the same encoded images, kept in memory as published, and with the same candidates.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import albef, machine, steps
from diptych.evaluate import evaluate_retrieval
from diptych.models.albef import Albef
from diptych.schema import AlbefConfig, EvaluationConfig
from diptych.search.index import CosineIndex
from diptych.search.rerank import rerank

PICTURES, CAPTIONS, CANDIDATES, PORTION = 20, 100, 32, 5
CONFIG = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=384))
GROWING = (10, 20, 40)
"""The numbers of images for which the memory of an evaluation is compared."""


class Stage:
    """The second stage of both sides, and the encoded images and candidates that it begins with."""

    def __init__(self, config: AlbefConfig = CONFIG, pictures: int = PICTURES, captions: int = CAPTIONS) -> None:
        self.plain_model, self.model = albef.models(config)
        size = config.vision.image_size
        self.pixels = torch.randn(pictures, 3, size, size, generator=torch.Generator().manual_seed(2))
        texts, padded = steps.texts(captions), steps.texts(captions, albef.PAD_RERANKING)
        self.lengths, self.mask = texts.attention_mask.sum(1), padded.attention_mask.long()
        with torch.no_grad():
            self.images = [self.model.image_state(pixels) for pixels in self.pixels.split(PORTION)]
            self.words = self.model.text_state(texts)
            self.plain_words = self.plain_model.text_encoder.bert.text(padded.input_ids, self.mask)
            image = CosineIndex(torch.cat([self.model.embed_image(state)["main"] for state in self.images]))
            text = CosineIndex(self.model.embed_text(self.words)["main"])
        self.tokens = torch.cat([state.tokens for state in self.images])
        self.to_text, self.to_image = text.search(image.vectors, CANDIDATES), image.search(text.vectors, CANDIDATES)

    def ours(self, bf16: bool = False) -> list[Tensor]:
        """Returns match logits [I, K] of each image's candidate captions and [T, K] of each caption's images."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            directions = rerank(self.model, self.words, self.lengths, self.images, self.to_text, self.to_image)
        return [direction.match for direction in directions]

    def plain(self, queries: slice = slice(None)) -> list[Tensor]:
        """Returns the same for some of the images and of the captions."""
        captions = zip(*(table[queries] for table in (self.to_image.indices, self.plain_words, self.mask)), strict=True)
        pictures = zip(self.to_text.indices[queries], self.tokens[queries], strict=True)
        model, words, mask = self.plain_model, self.plain_words, self.mask
        of_pictures = [model.rerank(image, words[chosen], mask[chosen]) for chosen, image in pictures]
        of_captions = [model.rerank_images(self.tokens[chosen], text, seen) for chosen, text, seen in captions]
        return [torch.stack(of_pictures), torch.stack(of_captions)]

    @torch.no_grad()
    def encode(self, pictures: slice) -> None:
        """Encodes some images, and drops the result."""
        self.model.image_state(self.pixels[pictures])


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Returns the largest absolute difference of two lists of scores."""
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def time() -> dict[str, float]:
    """Times the stage. The queries of the plain procedure are spread over the rounds, each in one of them."""
    stage, rounds = Stage(), machine.ROUNDS
    plain_flops, _ = machine.counted(lambda: stage.plain(slice(0, None, rounds)))
    our_flops, ours = machine.counted(stage.ours)
    portions: list[list[Tensor]] = []
    jobs = {
        "plain fp32": machine.portions(lambda queries: portions.append(stage.plain(queries))),
        "ours fp32": stage.ours,
        "ours bf16": lambda: stage.ours(bf16=True),
        "encoding": machine.portions(stage.encode),
    }
    times = machine.interleaved(jobs)
    times |= {name: times[name].times(rounds) for name in ("plain fp32", "encoding")}
    encoding = times.pop("encoding").seconds
    expected = [[scores[first::rounds] for scores in ours] for first in range(rounds)]
    largest = max(difference(*pair) for pair in zip(portions, expected, strict=False))
    pairs, spread = sum(scores.numel() for scores in ours), min(scores.std() for scores in ours)
    print(f"re-ranking {PICTURES} images × {CAPTIONS} captions, k = {CANDIDATES}, {CONFIG.vision.image_size} px")
    print(f"  {pairs} scores in both directions, of standard deviation {spread:.1e}, differ")
    print(f"  by {largest:.1e} in fp32 (allowed 1e-4), by {difference(ours, stage.ours(True)):.1e} in bf16")
    results = machine.report("retrieval", {"plain": rounds * plain_flops, "ours": our_flops}, times)
    again = times["plain fp32"].seconds / (times["ours fp32"].seconds + encoding)
    print(f"  where images do not fit into memory they are encoded again, here {encoding:.1f} s: {again:.2f}x in fp32")
    return results | {"retrieval fp32 ratio, images encoded again": again}


# --------------------------------------------------------------------------- memory


class Pictures:
    """Batches of noise, each made when it is iterated over, like a loader's."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.count, PORTION):
            generator = torch.Generator().manual_seed(start)
            yield torch.randn(min(PORTION, self.count - start), 3, self.size, self.size, generator=generator)


def grown(count: int, keep_bytes: int, config: AlbefConfig = CONFIG) -> int:
    """Returns the bytes that an evaluation of `count` images needs beside model, captions and a small evaluation."""
    model, captions = Albef(config), steps.texts(CAPTIONS)
    settings = EvaluationConfig(rerank=CANDIDATES, keep_bytes=keep_bytes)

    def evaluate(pictures: int) -> None:
        owner = torch.arange(CAPTIONS) % pictures
        evaluate_retrieval(model, Pictures(pictures, config.vision.image_size), captions, owner, settings)

    evaluate(PORTION)
    with machine.PeakMemory() as peak:
        evaluate(count)
    return peak.grown


def memory() -> dict[str, float]:
    """Measures the memory of the evaluation for several numbers of images, each in a process of its own."""
    first, last = GROWING[0], GROWING[-1]
    sizes = {count: _grown_alone(count, keep_bytes=0) for count in GROWING}
    slope = (sizes[last] - sizes[first]) / (last - first)
    kept = (_grown_alone(last, EvaluationConfig().keep_bytes) - sizes[last]) / last
    print(f"memory of a retrieval test beside model and captions: {CAPTIONS} captions, {PORTION} images in a batch")
    listed = ", ".join(f"{count} images {size / 1e6:.0f} MB" for count, size in sizes.items())
    print(f"  images encoded again: {listed}; {slope / 1e6:+.2f} MB for an image (target: none)")
    limit = EvaluationConfig().keep_bytes / 2**30
    print(f"  kept, as they are while all fit into {limit:g} GiB: {kept / 1e6:+.2f} MB for an image")
    return {"retrieval bytes per image": slope, "retrieval bytes per kept image": kept}


def _grown_alone(count: int, keep_bytes: int) -> int:
    """Measures `grown` in a new process."""
    command = [sys.executable, "-m", "benchmarks.retrieval", "grown", str(count), str(keep_bytes)]
    environment = os.environ | machine.RETURNED_MEMORY
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if sys.argv[1] == "grown":
        print(grown(int(sys.argv[2]), int(sys.argv[3])))
    else:
        {"time": time, "memory": memory}[sys.argv[1]]()
