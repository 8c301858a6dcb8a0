"""Checks and decodes the inputs of requests before a model sees them, and computes what needs the picture afterwards.

What handles pictures runs on the preparing threads, each of which holds one picture of full size at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from PIL import Image

from diptych.apps.serve import schemas
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.pictures import HeatCanvas, charge_upload, open_upload
from diptych.apps.serve.requests import Inputs, at_size
from diptych.apps.serve.texts import why_no_text
from diptych.apps.serve.workers import Work
from diptych.predict import Located, Predictor, unknown_words
from diptych.tasks.grounding import boxes_config, check_within, find_box

FARTHEST, NARROWEST = 1_000_000, 1e-3
"""Bounds on the numbers of proposed boxes, in pixels. Areas of boxes beyond them are not exact, or not finite."""


class InputPreparer:
    """Prepares the inputs of requests within a server's limits. Every method raises ApiError."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    # ------------------------------------------------------------------ checks

    def check_pairs(self, pictures: int, texts: int) -> None:
        if pictures * texts > self.limits.pairs:
            raise ApiError(
                "too_many",
                f"{pictures} pictures with {texts} texts are {pictures * texts:,} pairs; at most {self.limits.pairs:,} "
                "are allowed",
            )

    def check_texts(self, texts: Sequence[str], name: str, predictor: Predictor | None = None) -> None:
        """Checks the texts of a field called `name`. With a predictor, each must contain words."""
        self.check_count(len(texts), name)
        for position, text in enumerate(texts):
            self.check_text(text, f"{name}[{position}]", predictor)

    def check_text(self, text: str, name: str, predictor: Predictor | None = None) -> int:
        """Checks a text called `name`. With a predictor it must contain words; returns how many tokens the model reads.

        Without a predictor this is 0.
        """
        if len(text) > self.limits.text_length:
            message = f"{name}: {len(text):,} characters; at most {self.limits.text_length:,} are allowed"
            raise ApiError("bad_text", message)
        if predictor is None:
            return 0
        if reason := why_no_text(text):
            raise ApiError(
                "bad_text", f"{name} {reason}: send words here, and a picture in base64 in a field for pictures"
            )
        try:
            return int(predictor.texts(text).attention_mask.sum())
        except ValueError as error:
            raise ApiError("bad_text", f"{name}: {error}") from None

    def check_proposals(self, proposals: Sequence[Sequence[float]] | None) -> None:
        self.check_count(len(proposals or ()), "proposals")
        for position, (x, y, width, height) in enumerate(proposals or ()):
            if not (width > 0 and height > 0):
                message = f"proposals[{position}]: no area; a box is x, y, width, height with width and height above 0"
                raise ApiError("bad_request", message)
            if max(abs(x), abs(y), width, height) > FARTHEST or min(width, height) < NARROWEST:
                message = (
                    f"proposals[{position}]: not a box in pixels; its numbers lie within ±{FARTHEST:,}, and width and "
                    f"height are at least {NARROWEST}"
                )
                raise ApiError("bad_request", message)

    def check_count(self, count: int, name: str) -> None:
        if count > self.limits.items:
            message = f"{count:,} {name} in one request; at most {self.limits.items:,} are allowed"
            raise ApiError("too_many", message)

    # ------------------------------------------------------------------ before the model

    def pictures_and_texts(
        self, work: Work, predictor: Predictor, pictures: Sequence[str], texts: Sequence[str],
        picture_field: str = "pictures", text_field: str = "texts",
    ) -> Inputs:  # fmt: skip
        """Prepares a list of pictures and a list of texts, from fields with these names."""
        self.check_texts(texts, text_field, predictor)
        self.check_count(len(pictures), picture_field)
        named = [(f"{picture_field}[{position}]", content) for position, content in enumerate(pictures)]
        return _inputs(opened(named, work, predictor), texts, predictor)

    def named(
        self, work: Work, predictor: Predictor, pictures: Mapping[str, str], texts: Mapping[str, str]
    ) -> tuple[Inputs, int]:
        """Prepares pictures and texts by their names in messages, and counts the tokens of the texts."""
        tokens = sum(self.check_text(text, name, predictor) for name, text in texts.items())
        return _inputs(opened(pictures.items(), work, predictor), tuple(texts.values()), predictor), tokens

    def texts_about(
        self, work: Work, predictor: Predictor, pictures: Mapping[str, str], texts: Sequence[str], text_field: str
    ) -> Inputs:
        """Prepares texts that share the same pictures. `pictures` maps the names of fields to their contents."""
        self.check_texts(texts, text_field, predictor)
        return _inputs(opened(pictures.items(), work, predictor), texts, predictor)

    def to_locate(
        self, work: Work, predictor: Predictor, picture: str, phrases: Sequence[str]
    ) -> tuple[tuple[int, int], Inputs]:
        """Prepares phrases about a picture, as `texts_about`, and returns the picture's width and height as well."""
        self.check_texts(phrases, "phrases", predictor)
        width, height = charge_upload(picture, "picture", work)
        # Each map is enlarged to the picture's size. This is charged here, before a model computes the maps.
        work.spend(width * height * len(phrases), f"{len(phrases)} phrases in a picture of this size")
        upright = open_upload(picture, "picture", work)
        return upright.size, _inputs((at_size(upright, predictor),), phrases, predictor)

    # ------------------------------------------------------------------ after the model

    def located(
        self, work: Work, predictor: Predictor, request: schemas.LocateRequest, size: tuple[int, int],
        phrases: Sequence[Located],
    ) -> list[schemas.LocatedItem]:  # fmt: skip
        """Computes the boxes in pixels of the full-size picture from the model's heat maps."""
        config = boxes_config(predictor.recipe, predictor.model)
        proposals = [(x, y, width, height) for x, y, width, height in request.proposals or ()]
        try:
            check_within(proposals, size)
        except ValueError as error:
            raise ApiError("bad_request", str(error)) from None
        canvas = HeatCanvas(request.picture, "picture", len(phrases), work) if request.heat else None
        items = []
        for located in phrases:
            work.go_on()
            box = find_box(torch.from_numpy(located.heat), size, proposals, config)
            heat = None
            if canvas is not None:
                heat = schemas.Heat(map=located.heat.tolist(), png=canvas.draw(located.heat, box))
            items.append(schemas.LocatedItem(phrase=located.phrase, box=list(box), score=located.score, heat=heat))
        return items


def opened(pictures: Iterable[tuple[str, str]], work: Work, predictor: Predictor) -> tuple[Image.Image, ...]:
    """Opens pictures, given as their names in messages and their base64, at the size of the model's input.

    All are charged before the first is decoded, so that a request that costs too much costs little. Each is resized
    before the next is decoded.
    """
    pictures = tuple(pictures)
    for name, content in pictures:
        charge_upload(content, name, work)
    return tuple(at_size(open_upload(content, name, work), predictor) for name, content in pictures)


def _inputs(pictures: tuple[Image.Image, ...], texts: Sequence[str], predictor: Predictor) -> Inputs:
    return Inputs(pictures, tuple(texts), unknown_words(" ".join(texts), predictor.tokenizer))
