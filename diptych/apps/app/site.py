"""What the pages share: the models, example pictures, teachers, and where to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych import catalog
from diptych.apps.app.collection import Collection, open_collections
from diptych.apps.app.examples import Album, Captioned, album_of, thing_of
from diptych.apps.app.form import Example
from diptych.predict import ModelPool
from diptych.predict.teaching import Teacher

OFFERED = 4
"""Examples on a page."""


@dataclass(frozen=True)
class Site:
    """Everything that is loaded once."""

    pool: ModelPool
    album: Album
    teachers: Mapping[str, Teacher]
    """By the model's name."""
    collections: Mapping[str, Collection]
    """Where to search, by the model's name."""

    @classmethod
    def load(
        cls, runs: Sequence[str | Path], images: Path | None = None, index: str | None = None, device: str = "auto"
    ) -> Site:
        """Raises ValueError for what cannot be loaded."""
        pool = ModelPool.load(runs, device)
        album = album_of([Path(run) for run in runs], images)
        taught = [one for one in pool.models if catalog.task_class(one.predictor.recipe.task).keeps_teacher]
        teachers = {one.name: Teacher.beside(one.predictor) for one in taught}
        return cls(pool, album, teachers, open_collections(pool, album, index))

    def missing(self, ability: str) -> str | None:
        """Why none of the models can be asked, with what to train; None where one can."""
        return None if self.pool.able(ability) else self.pool.models[0].predictor.missing(ability)

    def captioned_pictures(self) -> tuple[Captioned, ...]:
        return self.album.pictures[:OFFERED]

    def things(self) -> tuple[tuple[Captioned, str], ...]:
        """Pictures with a thing that their caption names."""
        named = ((one, thing_of(one.caption)) for one in self.captioned_pictures() if one.caption)
        return tuple((one, thing) for one, thing in named if thing)

    def captioned(self) -> tuple[Example, ...]:
        """Pictures with their captions, as examples of a picture and a text."""
        return tuple(
            Example(one.caption, (one.picture, one.caption)) for one in self.captioned_pictures() if one.caption
        )
