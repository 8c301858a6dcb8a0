"""Holds what the pages share: models, example pictures, momentum encoders, and collections to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych import catalog
from diptych.apps.app.collection import Collection, open_collections
from diptych.apps.app.examples import Album, Captioned, album_of, thing_of
from diptych.apps.app.form import Example
from diptych.data.pictures import LARGEST_PIXELS
from diptych.predict import ModelPool
from diptych.predict.pseudo_targets import MomentumEncoder
from diptych.reading import expand_home

OFFERED = 4
"""Number of examples on a page."""


@dataclass(frozen=True)
class Site:
    """Everything that is loaded once for all pages."""

    pool: ModelPool
    album: Album
    momentum_encoders: Mapping[str, MomentumEncoder]
    """By the model's name."""
    collections: Mapping[str, Collection]
    """By the model's name."""
    largest_pixels: int = LARGEST_PIXELS
    """Larger uploads are refused."""

    @classmethod
    def load(
        cls,
        runs: Sequence[str | Path],
        images: Path | None = None,
        index: str | None = None,
        device: str = "auto",
        largest_pixels: int = LARGEST_PIXELS,
        precision: str = "fp32",
    ) -> Site:
        """Raises ValueError for runs, pictures or an index that cannot be loaded."""
        pool = ModelPool.load(runs, device, largest_pixels, precision)
        album = album_of([expand_home(run) for run in runs], images)
        pretrained = [
            model for model in pool.models if catalog.task_class(model.predictor.recipe.task).keeps_momentum_encoder
        ]
        momentum_encoders = {model.name: MomentumEncoder.beside(model.predictor) for model in pretrained}
        return cls(pool, album, momentum_encoders, open_collections(pool, album, index), largest_pixels)

    def missing(self, ability: str) -> str | None:
        """Says why none of the models has an ability, and what to train. None if one has it."""
        return None if self.pool.able(ability) else self.pool.models[0].predictor.missing(ability)

    def captioned_pictures(self) -> tuple[Captioned, ...]:
        return self.album.pictures[:OFFERED]

    def things(self) -> tuple[tuple[Captioned, str], ...]:
        """Returns pictures, each with a thing that its caption names."""
        named = ((entry, thing_of(entry.caption)) for entry in self.captioned_pictures() if entry.caption)
        return tuple((entry, thing) for entry, thing in named if thing)

    def captioned(self) -> tuple[Example, ...]:
        """Returns pictures and their captions as examples of a picture and a text."""
        return tuple(
            Example(entry.caption, (entry.picture, entry.caption))
            for entry in self.captioned_pictures()
            if entry.caption
        )
