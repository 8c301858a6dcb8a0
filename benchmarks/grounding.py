"""Grounding maps per second at the paper's size, beside the plain procedure: `python -m benchmarks.grounding`

One call makes the maps of four images at 384 px with five phrases of six tokens each, in the published modes: itm with
layer 8, and itc with the last block. The plain procedure takes one phrase at a time, without padding, and encodes its
image anew.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import albef, machine, steps
from diptych.schema import AlbefConfig, GroundingConfig
from diptych.tasks.grounding import phrase_maps
from diptych.types import Texts

PICTURES, PHRASES, TOKENS = 4, 5, 6
CONFIG = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=384))


class Maps:
    """Both procedures, and their input: `PHRASES` phrases for each image."""

    def __init__(self, grounding: GroundingConfig, config: AlbefConfig = CONFIG, pictures: int = PICTURES) -> None:
        self.grounding, (self.plain_model, self.model) = grounding, albef.models(config)
        size = config.vision.image_size
        self.pixels = torch.randn(pictures, 3, size, size, generator=torch.Generator().manual_seed(2))
        self.image_index = torch.arange(pictures).repeat_interleave(PHRASES)
        captions = steps.texts(len(self.image_index))
        self.phrases = Texts(captions.input_ids[:, :TOKENS], captions.attention_mask[:, :TOKENS])

    def ours(self) -> Tensor:
        """Makes the maps [P, h, w] of all phrases."""
        return phrase_maps(self.model, self.pixels, self.phrases, self.grounding, self.image_index).phrase

    def plain(self, phrases: slice = slice(None)) -> Tensor:
        """Makes the maps of some phrases."""
        model, layer, maps = self.plain_model, self.grounding.layer, []
        for number in range(len(self.image_index))[phrases]:
            phrase = slice(number, number + 1)
            texts = self.phrases.input_ids[phrase], self.phrases.attention_mask[phrase].long()
            pixels = self.pixels[self.image_index[phrase]]
            if self.grounding.mode == "itm":
                maps.append(model.ground_by_match(pixels, *texts, layer).mean(1))
            else:
                maps.append(model.ground_by_similarity(pixels, *texts, layer))
        flat = torch.cat(maps)
        side = round(flat.shape[1] ** 0.5)
        return flat.unflatten(1, (side, side))


def measure(grounding: GroundingConfig) -> dict[str, float]:
    """Times all maps of one mode. The phrases of the plain procedure are spread over the rounds."""
    maps = Maps(grounding)
    count = len(maps.image_index)
    our_flops, our_maps = machine.counted(maps.ours)
    portion = slice(0, None, machine.ROUNDS)
    plain_flops, plain_maps = machine.counted(lambda: maps.plain(portion))
    difference = (plain_maps - our_maps[portion]).abs().max() / plain_maps.max()
    times = machine.interleaved({"plain fp32": machine.portions(maps.plain), "ours fp32": maps.ours})
    times["plain fp32"] = times["plain fp32"].times(machine.ROUNDS)
    name = f"grounding {grounding.mode}"
    print(f"{name}, layer {grounding.layer}: {PICTURES} images, {PHRASES} phrases each, {CONFIG.vision.image_size} px")
    print(f"  maps differ by {difference:.1e} of the peak")
    results = machine.report(name, {"plain": machine.ROUNDS * plain_flops, "ours": our_flops}, times)
    rates = {side: count / times[f"{side} fp32"].seconds for side in ("plain", "ours")}
    print(f"  maps per second: ours {rates['ours']:.2f}, plain {rates['plain']:.2f}")
    return results | {f"{name} maps per second": rates["ours"]}


if __name__ == "__main__":
    measure(GroundingConfig("itm", 8))
    measure(GroundingConfig("itc", CONFIG.vision.depth - 1))
