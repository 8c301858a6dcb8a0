"""The measures of retrieval for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(found: Mapping[str, Any]) -> str:
    """The measures of retrieval as a few lines of text."""
    lines = [f"\nRetrieval among {found['images']} unseen pictures and {found['texts']} captions, in %"]
    reranked = "rerank_gain.recall@1" in found
    ways = {"by similarity": "contrastive.", "re-ranked": ""} if reranked else {"by similarity": ""}
    for direction in ("image_to_text", "text_to_image"):
        chance = f"(chance R@10 {found[f'chance.{direction}.recall@10']:.1f})"
        for way, prefix in ways.items():
            recalls = "  ".join(f"R@{k} {found[f'{prefix}{direction}.recall@{k}']:5.1f}" for k in (1, 5, 10))
            lines.append(f"  {direction:14} {way:14} {recalls}   {chance}")
    if not reranked:
        return "\n".join([*lines, "  nothing was re-ranked"])
    low, high = found["rerank_gain.interval"]
    gain = found["rerank_gain.recall@1"]
    verdict = "above the noise" if low > 0 else "below 0" if high < 0 else "inside the noise"
    lines.append(f"  re-ranking changes R@1 by {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}: {verdict}")
    return "\n".join(lines)
