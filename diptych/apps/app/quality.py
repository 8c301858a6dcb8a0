"""Describes in one sentence how good a model is, from the `eval.json` of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych import catalog
from diptych.predict import PooledModel

NOT_MEASURED = "not measured: run diptych evaluate"


def quality(model: PooledModel) -> str:
    """Describes a model's evaluation, or says that there is none."""
    return NOT_MEASURED if model.measured is None else describe(model.measured)


def describe(measured: Mapping[str, Any]) -> str:
    """Describes the contents of an eval.json.

    >>> describe({"text_to_image.recall@1": 62.8, "text_to_image.recall@1.interval": [59.9, 65.9], "images": 1000,
    ...           "split": "test"})
    'finds the right one of 1,000 unseen pictures first for 62.8 % of captions (95 % interval 59.9 … 65.9)'
    """
    unseen = "unseen" if measured.get("split") == "test" else f"{measured.get('split', 'other')}-split"
    if {"text_to_image.recall@1", "text_to_image.recall@1.interval", "images"} <= measured.keys():
        share = _estimate(measured, "text_to_image.recall@1", " of captions")
        return f"finds the right one of {measured['images']:,} {unseen} pictures first for {share}"
    if not {"accuracy", "accuracy.interval", "examples"} <= measured.keys():
        return NOT_MEASURED
    report = dict(catalog.reports()).get(str(measured.get("task")))
    subject = report.judged if report else "its task"
    return f"{subject}: {_estimate(measured, 'accuracy', ' right')} on {measured['examples']:,} {unseen} examples"


def _estimate(measured: Mapping[str, Any], name: str, of: str) -> str:
    low, high = measured[f"{name}.interval"]
    return f"{measured[name]:.1f} %{of} (95 % interval {low:.1f} … {high:.1f})"
