"""What a run began with: weights that are missing cost more than any setting, and nothing else shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import Run
from diptych.schema import AlbefConfig, Recipe, VlmoConfig

ENCODERS = ("model", "vision", "image", "text", "blocks")
"""Beginnings of the names of parts that see a picture or read a text."""
LATER = {"cross", "cross_norm", "fusion", "fusion_norm", "types", "text_norm"}
"""Of these, what no published encoder brings: it is learnt on pairs."""
COST = "in the released ALBEF an image encoder that failed to load went unseen and cost 12 points of recall"
"""REFERENCE, defect 14."""


def start(run: Run) -> Iterator[Finding]:
    """Whether the run began with the weights that its recipe is published to begin with."""
    if run.recipe.init_from is None:
        yield _from_nothing(run.recipe)
    elif run.start is None:
        yield Finding("start", "fine", f"from {run.recipe.init_from}, of which every weight was asked for")
    else:
        yield _from_weights(run.recipe, run.start)


def _from_weights(recipe: Recipe, start: dict[str, object]) -> Finding:
    fresh, untrained = start.get("fresh") or {}, start.get("untrained") or []
    assert isinstance(fresh, dict)
    assert isinstance(untrained, list)
    random = sorted({*_encoders(fresh), *_encoders(untrained)})
    if recipe.task.learns_from == "texts":  # it is what teaches words
        random = [part for part in random if not re.search(r"\btext\b", part)]
    if random:
        return Finding(
            "start",
            "wrong",
            f"{', '.join(random)} of the model began random, though the run starts from {start['from']}",
            f"bring weights for them, as with `diptych convert FILE FILE --to FOLDER`: {COST}",
        )
    began = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", part) for part in fresh)
    rest = f"; fresh: {', '.join(began)}" if fresh else ""
    return Finding("start", "fine", f"from {start['from']}{rest}")


def _encoders(parts: Iterable[str]) -> list[str]:
    """Those of the student that are encoders or lie in one."""
    names = [part.removeprefix("model.") for part in parts if not part.startswith("teacher")]
    return [name for name in names if name.split(".")[0] in ENCODERS and not LATER & set(name.split("."))]


def _from_nothing(recipe: Recipe) -> Finding:
    """Judged by what the paper starts from, and by whether the model is made to learn from nothing."""
    task, model = recipe.task, recipe.model
    if task.starts_from == "nothing":
        return Finding("start", "fine", "from nothing, as published")
    if task.starts_from == "encoders":
        assert isinstance(model, AlbefConfig)
        if model.vision.stem == "conv" or model.text.norm == "pre":
            return Finding("start", "fine", "from nothing, as this model is made for")
        return Finding(
            "start",
            "wrong",
            "from nothing; published, the image encoder starts from DeiT and the text encoder from BERT (ALBEF §3.1)",
            "`diptych convert deit.pth bert-base-uncased --to runs/start`, then train with init_from=runs/start: "
            + COST,
        )
    if task.starts_from == "vision stage":
        return Finding(
            "start",
            "wrong",
            "from nothing, so that the frozen attention is random and stays so; published, it starts from the vision "
            "stage (VLMo §3.4)",
            "name a run of the vision stage, or BEiT's converted weights: init_from=FOLDER",
        )
    if task.starts_from == "language stage":
        assert isinstance(model, VlmoConfig)
        small = model.stem == "conv" or not model.text_norm
        return Finding(
            "start",
            "note" if small else "wrong",
            "from nothing; published, the stage on pairs starts from the language stage (VLMo §3.4)",
            "train the stages before it, or convert published weights, and name them: init_from=FOLDER",
        )
    return Finding(
        "start",
        "wrong",
        "a task that is published as fine-tuning began from nothing",
        "name the pre-trained run or checkpoint: init_from=FOLDER",
    )
