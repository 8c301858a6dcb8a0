"""Grounding maps a second at the paper's size, beside the plain procedure. `python -m benchmarks.grounding`

Four pictures at 384 px with five phrases of six tokens each, in one call. Published are mode itm with layer 8, and mode
itc with the last block. The plain procedure takes one phrase at a time, without padding, and encodes its picture anew.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import albef, machine
from diptych.schema import AlbefConfig, GroundingConfig
from diptych.tasks.grounding import phrase_maps
from diptych.types import Texts

PICTURES, PHRASES, TOKENS = 4, 5, 6
CONFIG = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=384))


class Maps:
    """Both procedures, and what they are asked: `PHRASES` phrases for each picture."""

    def __init__(self, grounding: GroundingConfig, config: AlbefConfig = CONFIG, pictures: int = PICTURES) -> None:
        self.grounding, (self.plain_model, self.model) = grounding, albef.models(config)
        size = config.vision.image_size
        self.pixels = torch.randn(pictures, 3, size, size, generator=torch.Generator().manual_seed(2))
        self.image_index = torch.arange(pictures).repeat_interleave(PHRASES)
        read = albef.texts(len(self.image_index))
        self.phrases = Texts(read.input_ids[:, :TOKENS], read.attention_mask[:, :TOKENS])

    def ours(self) -> Tensor:
        """Maps [P, h, w]."""
        return phrase_maps(self.model, self.pixels, self.phrases, self.grounding, self.image_index).phrase

    def plain(self, which: slice = slice(None)) -> Tensor:
        """Those of some phrases."""
        model, layer, found = self.plain_model, self.grounding.layer, []
        for number in range(len(self.image_index))[which]:
            one = slice(number, number + 1)
            texts = self.phrases.input_ids[one], self.phrases.attention_mask[one].long()
            pixels = self.pixels[self.image_index[one]]
            if self.grounding.mode == "itm":
                found.append(model.ground_by_match(pixels, *texts, layer).mean(1))
            else:
                found.append(model.ground_by_similarity(pixels, *texts, layer))
        maps = torch.cat(found)
        side = round(maps.shape[1] ** 0.5)
        return maps.unflatten(1, (side, side))


def measure(grounding: GroundingConfig) -> dict[str, float]:
    """Times of all maps in one mode. The plain phrases are spread over the rounds."""
    maps = Maps(grounding)
    count = len(maps.image_index)
    counted, ours = machine.counted(maps.ours)
    some = slice(0, None, machine.ROUNDS)
    plain_counted, plain = machine.counted(lambda: maps.plain(some))
    off = (plain - ours[some]).abs().max() / plain.max()
    found = machine.interleaved({"plain fp32": machine.portions(maps.plain), "ours fp32": maps.ours})
    found["plain fp32"] = found["plain fp32"].times(machine.ROUNDS)
    what = f"grounding {grounding.mode}"
    print(
        f"{what}, layer {grounding.layer}: {PICTURES} pictures, {PHRASES} phrases each, {CONFIG.vision.image_size} px"
    )
    print(f"  maps differ by {off:.1e} of the peak")
    results = albef.report(what, {"plain": machine.ROUNDS * plain_counted, "ours": counted}, found)
    rates = {side: count / found[f"{side} fp32"].seconds for side in ("plain", "ours")}
    print(f"  maps a second: ours {rates['ours']:.2f}, plain {rates['plain']:.2f}")
    return results | {f"{what} maps a second": rates["ours"]}


if __name__ == "__main__":
    measure(GroundingConfig("itm", 8))
    measure(GroundingConfig("itc", CONFIG.vision.depth - 1))
