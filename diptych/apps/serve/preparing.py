"""Checks and decodes the inputs of requests before a model sees them, and computes what needs the picture afterwards.

All of it runs on the preparing threads, each of which holds one picture of full size at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from diptych.apps.serve import schemas
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.pictures import draw_heat, open_upload
from diptych.apps.serve.requests import Inputs, at_size
from diptych.predict import Located, Predictor
from diptych.tasks.grounding import boxes_config, check_within, find_box


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
        self._check_count(len(texts), name)
        for position, text in enumerate(texts):
            if len(text) > self.limits.text_length:
                message = (
                    f"{name}[{position}]: {len(text):,} characters; at most {self.limits.text_length:,} are allowed"
                )
                raise ApiError("bad_text", message)
            if predictor is not None:
                try:
                    predictor.texts(text)
                except ValueError as error:
                    raise ApiError("bad_text", f"{name}[{position}]: {error}") from None

    def check_proposals(self, proposals: Sequence[Sequence[float]] | None) -> None:
        self._check_count(len(proposals or ()), "proposals")
        for position, (*_, width, height) in enumerate(proposals or ()):
            if not (width > 0 and height > 0):
                message = f"proposals[{position}]: no area; a box is x, y, width, height with width and height above 0"
                raise ApiError("bad_request", message)

    def _check_count(self, count: int, name: str) -> None:
        if count > self.limits.items:
            message = f"{count:,} {name} in one request; at most {self.limits.items:,} are allowed"
            raise ApiError("too_many", message)

    # ------------------------------------------------------------------ before the model

    def pictures_and_texts(
        self, predictor: Predictor, pictures: Sequence[str], texts: Sequence[str],
        picture_field: str = "pictures", text_field: str = "texts",
    ) -> Inputs:  # fmt: skip
        """Prepares a list of pictures and a list of texts, from fields with these names."""
        self.check_texts(texts, text_field, predictor)
        self._check_count(len(pictures), picture_field)
        opened = (
            open_upload(content, f"{picture_field}[{position}]", self.limits.pixels)
            for position, content in enumerate(pictures)
        )  # lazily, so that each picture is resized before the next is decoded
        return Inputs(tuple(at_size(picture, predictor) for picture in opened), tuple(texts))

    def texts_about(self, predictor: Predictor, pictures: Mapping[str, str], texts: Sequence[str]) -> Inputs:
        """Prepares texts that share the same pictures. `pictures` maps the names of fields to their contents."""
        self.check_texts(texts, "texts", predictor)
        opened = (open_upload(content, name, self.limits.pixels) for name, content in pictures.items())
        return Inputs(tuple(at_size(picture, predictor) for picture in opened), tuple(texts))

    def to_locate(self, predictor: Predictor, picture: str, phrases: Sequence[str]) -> tuple[tuple[int, int], Inputs]:
        """Prepares phrases about a picture, as `texts_about`, and returns the picture's width and height as well."""
        self.check_texts(phrases, "phrases", predictor)
        opened = open_upload(picture, "picture", self.limits.pixels)
        return opened.size, Inputs((at_size(opened, predictor),), tuple(phrases))

    # ------------------------------------------------------------------ after the model

    def located(
        self, predictor: Predictor, request: schemas.LocateRequest, size: tuple[int, int], phrases: Sequence[Located]
    ) -> list[schemas.LocatedItem]:
        """Computes the boxes in pixels of the full-size picture from the model's heat maps."""
        config = boxes_config(predictor.recipe, predictor.model)
        proposals = [(x, y, width, height) for x, y, width, height in request.proposals or ()]
        try:
            check_within(proposals, size)
        except ValueError as error:
            raise ApiError("bad_request", str(error)) from None
        items = []
        for located in phrases:
            box = find_box(torch.from_numpy(located.heat), size, proposals, config)
            heat = None
            if request.heat:
                png = draw_heat(request.picture, located.heat, box, "picture", self.limits.pixels)
                heat = schemas.Heat(map=located.heat.tolist(), png=png)
            items.append(schemas.LocatedItem(phrase=located.phrase, box=list(box), score=located.score, heat=heat))
        return items
