"""What a request brings, checked and decoded before a model sees it; and what needs its pictures afterwards.

All of it runs on the threads that prepare, and takes a picture of full size up only while it works on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from diptych.apps.serve import schemas
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.pictures import draw_heat, open_upload
from diptych.apps.serve.requests import Given, at_size
from diptych.predict import Located, Predictor
from diptych.tasks.grounding import boxes_config, find_box


class Preparing:
    """Every method raises ApiError."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    # ------------------------------------------------------------------ checks

    def check_pairs(self, pictures: int, texts: int) -> None:
        if pictures * texts > self.limits.pairs:
            raise ApiError(
                "too_many",
                f"{pictures} pictures with {texts} texts are {pictures * texts:,} pairs; {self.limits.pairs:,} are the "
                "most",
            )

    def check_texts(self, texts: Sequence[str], name: str, predictor: Predictor | None = None) -> None:
        """Of a field called `name`; with a predictor, that each holds words."""
        self._check_count(len(texts), name)
        for place, text in enumerate(texts):
            if len(text) > self.limits.text_length:
                message = f"{name}[{place}]: {len(text):,} characters; {self.limits.text_length:,} are the most"
                raise ApiError("bad_text", message)
            if predictor is not None:
                try:
                    predictor.texts(text)
                except ValueError as error:
                    raise ApiError("bad_text", f"{name}[{place}]: {error}") from None

    def check_proposals(self, proposals: Sequence[Sequence[float]] | None) -> None:
        self._check_count(len(proposals or ()), "proposals")
        for place, (*_, width, height) in enumerate(proposals or ()):
            if not (width > 0 and height > 0):
                message = f"proposals[{place}]: no area; boxes are x, y, width, height, with width and height above 0"
                raise ApiError("bad_request", message)

    def _check_count(self, count: int, name: str) -> None:
        if count > self.limits.items:
            raise ApiError("too_many", f"{count:,} {name} in one request; {self.limits.items:,} are the most")

    # ------------------------------------------------------------------ before the model

    def listed(
        self, predictor: Predictor, pictures: Sequence[str], texts: Sequence[str], picture: str = "pictures",
        text: str = "texts",
    ) -> Given:  # fmt: skip
        """Pictures and texts side by side, of fields with these names."""
        self.check_texts(texts, text, predictor)
        self._check_count(len(pictures), picture)
        opened = (
            open_upload(one, f"{picture}[{place}]", self.limits.pixels) for place, one in enumerate(pictures)
        )  # one at a time: the next is opened when this one has been made small
        return Given(tuple(at_size(one, predictor) for one in opened), tuple(texts))

    def about(self, predictor: Predictor, pictures: Mapping[str, str], texts: Sequence[str]) -> Given:
        """Texts that are each asked about the same pictures, which come by the names of their fields."""
        self.check_texts(texts, "texts", predictor)
        opened = (open_upload(one, name, self.limits.pixels) for name, one in pictures.items())
        return Given(tuple(at_size(one, predictor) for one in opened), tuple(texts))

    def to_locate(self, predictor: Predictor, picture: str, phrases: Sequence[str]) -> tuple[tuple[int, int], Given]:
        """As `about`, with the picture's width and height, which boxes are measured in."""
        self.check_texts(phrases, "phrases", predictor)
        opened = open_upload(picture, "picture", self.limits.pixels)
        return opened.size, Given((at_size(opened, predictor),), tuple(phrases))

    # ------------------------------------------------------------------ after it

    def located(
        self, predictor: Predictor, asked: schemas.LocateRequest, size: tuple[int, int], found: Sequence[Located]
    ) -> list[schemas.LocatedItem]:
        """Boxes on the picture of full size, by the maps that the model gave."""
        config = boxes_config(predictor.recipe, predictor.model)
        proposals = [(x, y, width, height) for x, y, width, height in asked.proposals or ()]
        results = []
        for one in found:
            box = find_box(torch.from_numpy(one.heat), size, proposals, config)
            heat = None
            if asked.heat:
                png = draw_heat(asked.picture, one.heat, box, "picture", self.limits.pixels)
                heat = schemas.Heat(map=one.heat.tolist(), png=png)
            results.append(schemas.LocatedItem(phrase=one.phrase, box=list(box), score=one.score, heat=heat))
        return results
