"""The weights that a run started from. Missing ones cost more than any setting, and no curve shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import Run
from diptych.schema import AlbefConfig, Recipe, VlmoConfig

ENCODERS = ("model", "vision", "image", "text", "blocks")
"""First words in the names of parts that encode a picture or a text."""
LATER = {"cross", "cross_norm", "vl_ffn", "fusion", "fusion_norm", "types", "text_norm"}
"""Parts of the encoders that no published encoder has, since they are learnt on pairs. Earlier versions called the
VL-FFN `fusion`."""
COST = "in the released ALBEF, an image encoder that silently failed to load cost 12 points of recall"
"""docs/released_code.md, defect 14."""


def start(run: Run) -> Iterator[Finding]:
    """Checks that the run started from weights where the paper does."""
    if run.recipe.init_from is None:
        yield _from_nothing(run.recipe)
    elif run.start is None:
        yield Finding("start", "fine", f"the run started from {run.recipe.init_from}, which had to bring every weight")
    else:
        yield _from_weights(run.recipe, run.start)


def _from_weights(recipe: Recipe, start: dict[str, object]) -> Finding:
    fresh, untrained = start.get("fresh") or {}, start.get("untrained") or []
    assert isinstance(fresh, dict)
    assert isinstance(untrained, list)
    random = sorted({*_encoders(fresh), *_encoders(untrained)})
    if recipe.task.learns_from == "texts":  # this stage is the one that trains the text parts
        random = [part for part in random if not re.search(r"\b(text|language_ffn)\b", part)]
    if random:
        return Finding(
            "start",
            "wrong",
            f"these parts of the model started from random weights, although the run starts from {start['from']}: "
            f"{', '.join(random)}",
            f"start from weights that include them, such as those of `diptych convert FILE FILE --to FOLDER`: {COST}",
        )
    patterns = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", part) for part in fresh)
    rest = f"; initialised afresh: {', '.join(patterns)}" if fresh else ""
    return Finding("start", "fine", f"the run started from {start['from']}{rest}")


def _encoders(parts: Iterable[str]) -> list[str]:
    """Lists those parts of the model that are encoders or belong to one, without the momentum encoder."""
    names = [part.removeprefix("model.") for part in parts if not part.startswith("momentum_")]
    return [name for name in names if name.split(".")[0] in ENCODERS and not LATER & set(name.split("."))]


def _from_nothing(recipe: Recipe) -> Finding:
    """Judges random start weights by the paper, and by whether the model is built to learn from them."""
    task, model = recipe.task, recipe.model
    if task.starts_from == "nothing":
        return Finding("start", "fine", "the run started from random weights, as in the paper")
    if task.starts_from == "encoders":
        assert isinstance(model, AlbefConfig)
        if model.vision.stem == "conv" or model.text.norm == "pre":
            return Finding("start", "fine", "the run started from random weights, which this model is built for")
        return Finding(
            "start",
            "wrong",
            "the run started from random weights; in the paper, the image encoder starts from DeiT and the text "
            "encoder from BERT (ALBEF §3.1)",
            "`diptych convert deit.pth bert-base-uncased --to runs/start`, then train with init_from=runs/start: "
            + COST,
        )
    if task.starts_from == "vision stage":
        return Finding(
            "start",
            "wrong",
            "the run started from random weights, and this stage freezes attention, which therefore stays random; in "
            "the paper, it starts from the vision stage (VLMo §3.4)",
            "start from a run of the vision stage, or from converted BEiT weights: init_from=FOLDER",
        )
    if task.starts_from == "language stage":
        assert isinstance(model, VlmoConfig)
        if model.stem == "conv" or not model.text_norm:  # the demo's size
            return Finding(
                "start",
                "fine",
                "the run started from random weights, which learns faster than from the earlier stages at this size",
            )
        return Finding(
            "start",
            "wrong",
            "the run started from random weights; in the paper, the stage on pairs starts from the language stage "
            "(VLMo §3.4)",
            "train the earlier stages or convert published weights, and start from them: init_from=FOLDER",
        )
    return Finding(
        "start",
        "wrong",
        "the run started from random weights; in the paper, this task is fine-tuning",
        "start from a pre-trained run or checkpoint: init_from=FOLDER",
    )
