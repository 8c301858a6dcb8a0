"""The measures of retrieval for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.apps.report.page import calibrated_kinds, gain_verdict


def summary(evaluation: Mapping[str, Any]) -> str:
    """Formats the measures of retrieval as a few lines of text."""
    head = f"\nRetrieval among {evaluation['images']} unseen pictures and {evaluation['texts']} captions, in %"
    reranked = "rerank_gain.recall@1" in evaluation
    ways = {"by similarity": "contrastive.", "re-ranked": ""} if reranked else {"by similarity": ""}
    lines = [head]
    for direction in ("image_to_text", "text_to_image"):
        chance = f"(chance R@10 {evaluation[f'chance.{direction}.recall@10']:.1f})"
        for way, prefix in ways.items():
            recalls = "  ".join(f"R@{k} {evaluation[f'{prefix}{direction}.recall@{k}']:5.1f}" for k in (1, 5, 10))
            lines.append(f"  {direction:14} {way:14} {recalls}   {chance}")
    if not reranked:
        return "\n".join([*lines, "  nothing was re-ranked"])
    low, high = evaluation["rerank_gain.interval"]
    change = f"{evaluation['rerank_gain.recall@1']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    lines.append(f"  re-ranking changes R@1 by {change}: {gain_verdict(low, high)}")
    return "\n".join([*lines, *_calibration(evaluation)])


def _calibration(evaluation: Mapping[str, Any]) -> list[str]:
    """Says how far the probabilities of hits are off, for each kind of query, and what the minimum match does."""
    kinds = calibrated_kinds(evaluation)
    if not kinds:
        return []
    lines = [f"  a hit is shown from a match of {100 * evaluation['calibration.min_match']:.3g} % on (--min-match)"]
    for kind in kinds:
        error, kept, nothing = (evaluation[f"calibration.{kind}.{name}"] for name in ("error", "kept", "nothing"))
        lines.append(
            f"    searches by {kind:8}  calibration error {error:.1f}; keeps {kept:.1f} of the right hits, shows "
            f"nothing for {nothing:.1f} of the searches without any"
        )
    return lines
