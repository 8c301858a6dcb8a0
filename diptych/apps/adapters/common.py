"""What all adapters share: opening the model, importing the tool, and telling texts from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych.data.picture_kinds import SUFFIXES
from diptych.predict import Picture, Predictor, load
from diptych.predict.inputs import open_any
from diptych.search.contract import evaluating
from diptych.search.rerank import match_logits, plan_calls
from diptych.types import to_device

AnyModel = Predictor | str | Path
"""An opened model, or what `diptych.load` takes."""


def tool(module: str, package: str) -> ModuleType:
    """Imports the package of a tool. Raises ValueError with the line that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        # Where the package is there, something else is missing in it, or too old.
        missing = package if getattr(error, "name", None) in (None, module.partition(".")[0]) else error.name
        raise ValueError(f"this adapter needs {missing}, which is not installed: pip install '{package}'") from error


def opened(model: AnyModel, device: str, ability: str) -> Predictor:
    """Opens the model. Raises ValueError for one that was not trained for the ability, naming the recipe to train."""
    predictor = model if isinstance(model, Predictor) else load(model, device)
    if reason := predictor.missing(ability):
        raise ValueError(reason)
    return predictor


def is_picture(value: Any) -> TypeGuard[Picture]:
    """Tells whether a value is a picture: an image, an array, a `Path`, or a text that names a picture's file.

    A text of several words must be the path of a file that exists, because captions may end in a file's name.

    >>> is_picture("a red fox"), is_picture("photos/fox.JPG"), is_picture("as in fox.jpg"), is_picture(Path("fox"))
    (False, True, False, True)
    """
    if isinstance(value, str):
        return Path(value).suffix.lower() in SUFFIXES and (" " not in value or Path(value).is_file())
    return isinstance(value, Path | Image.Image | np.ndarray)


def pair_logits(predictor: Predictor, pictures: Sequence[Picture], texts: Sequence[str]) -> Float[Tensor, "P"]:
    """Computes the log odds of a match of each picture with the text at the same place, by the fusion encoder.

    The sigmoid is what `Predictor.match` returns. A picture or text that occurs several times is encoded once.
    """
    of_picture, picture_index = _distinct(pictures)
    of_text, text_index = _distinct(texts)
    words = predictor.texts(of_text)
    with evaluating(predictor.model):
        pixels = torch.stack([predictor.transform(open_any(picture)) for picture in of_picture])
        images = predictor.model.image_state(pixels.to(predictor.device))
        state = predictor.model.text_state(to_device(words, predictor.device))
        order = picture_index.argsort(stable=True)  # the pairs of an image go into one call
        image, text = picture_index[order], text_index[order]
        lengths = words.attention_mask.sum(dim=1)[text] + predictor.model.fused_image_tokens
        odds = torch.empty(len(order))
        for call in plan_calls(image, lengths, predictor.recipe.evaluation.tokens_per_call):
            logits = match_logits(predictor.model, state, images, text[call], image[call], predictor.device)
            odds[order[call]] = (logits[:, 1] - logits[:, 0]).float().cpu()
    return odds


def _distinct(items: Sequence[Any]) -> tuple[list[Any], Tensor]:
    """Lists the different items, and for each item its place among them. Images are told apart by identity."""
    places: dict[Any, int] = {}
    distinct: list[Any] = []
    numbers = []
    for item in items:
        key = item if isinstance(item, str | Path) else id(item)
        if key not in places:
            places[key] = len(distinct)
            distinct.append(item)
        numbers.append(places[key])
    return distinct, torch.tensor(numbers)
