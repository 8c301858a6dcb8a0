"""Tells what stands out in the training data of a run, and whether they are still the data that it began with.

RUN/data.json holds the numbers (`data.profile.DataProfile`) of the data that the run has trained on, with the step from
which on it did.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.data.pictures import file_of
from diptych.data.profile import MOST_TEXTS, DataProfile, profile_texts
from diptych.data.record import AnyRecord
from diptych.data.sources.files import FileSource
from diptych.data.sources.mix import MixedImage, MixedSource
from diptych.data.tokenizer import Tokenizer
from diptych.logged import DATA, read_data
from diptych.run.splits import AnySource, accepted_records
from diptych.schema import Recipe

STREAMED = 200
"""Records that are read of a source which does not hold its records in memory, from its beginning. Reading one may
fetch a shard."""
SIZED = 200
"""Picture files whose sizes enter the digest, evenly spread over the records."""


def describe(recipe: Recipe, source: AnySource, tokenizer: Tokenizer) -> DataProfile:
    """Counts the training data of a recipe."""
    indices = _indices(source)
    records = list(accepted_records(source, indices))
    texts, pictures = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for number, record in enumerate(records):
        _add(texts, (*record.texts, *_labels(record)))
        images = (image.image if isinstance(image, MixedImage) else image for image in record.images)
        files = [image for image in images if isinstance(image, str)]
        _add(pictures, map(_own_name, files))
        if number % max(1, len(records) // SIZED) == 0:
            _add(pictures, map(_size, files))
    return DataProfile(
        place=recipe.data.path or recipe.data.source,
        records=len(source),
        skipped=sum(error.count for error in source.skipped),
        read=len(indices),
        text_digest=texts.hexdigest(),
        picture_digest=pictures.hexdigest(),
        texts=profile_texts(records[:: max(1, len(records) // MOST_TEXTS)], recipe.data.max_words, tokenizer),
    )


def _indices(source: AnySource) -> Sequence[int]:
    """Lists the records to read: all that are in memory, and the first ones of what is streamed."""
    if isinstance(source, FileSource):
        return range(len(source))
    if not isinstance(source, MixedSource):
        return range(min(len(source), STREAMED))
    indices: list[int] = []
    first = 0
    for part in source.sources:
        indices += [first + index for index in _indices(part)]
        first += len(part)
    return indices


def _add(digest: Any, parts: Iterable[str]) -> None:
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\x1f")
    digest.update(b"\x1e")


def _labels(record: AnyRecord) -> list[str]:
    """Returns what is to be learnt of a record beside its texts."""
    labels = (getattr(record, name, None) for name in ("label", "answers", "weights", "box"))
    return [str(label) for label in labels if label is not None]


def _own_name(image: str) -> str:
    """Returns the part of a picture's path that stays when a folder is moved."""
    return os.path.basename(image)  # noqa: PTH119 — a million Path objects take seconds


def _size(image: str) -> str:
    try:
        return str(Path(file_of(image)).stat().st_size)
    except (OSError, ValueError):
        return "missing"


def warnings_about(profile: DataProfile, recipe: Recipe) -> Iterator[str]:
    """Says what keeps a run from learning, each with the way out."""
    if unknown := profile.texts.unknown_words():
        yield f"{unknown}: set tokenizer.vocabulary to one of this language, or none to learn it from the captions"
    contrast = recipe.task.contrast
    if contrast is None or contrast.ignores_true_texts or not (repeated := profile.texts.repetition()):
        return
    if profile.texts.same_for_all or not contrast.offers_true_texts:
        yield f"{repeated}; contrast counts them as each other's negatives: give texts that tell more"
    else:
        yield (
            f"{repeated}, and contrast counts them as each other's negatives: set task.ignore_true_texts=true, or give "
            "texts that tell more"
        )


def _last(entries: Sequence[Mapping[str, Any]]) -> DataProfile | None:
    """Returns the last entry of `data.json`, or None without one and for one that another version wrote."""
    try:
        return DataProfile.from_json(entries[-1])
    except (IndexError, KeyError, TypeError):
        return None


def note_data(folder: Path, profile: DataProfile, recipe: Recipe, step: int) -> None:
    """Prints what stands out, names other data than those that the run has had so far, and writes `data.json`.

    `step` is the step that the run goes on from. Runs of earlier versions have no `data.json`, and get one.
    """
    for warning in warnings_about(profile, recipe):
        print(f"warning: {warning}", file=sys.stderr)
    had = read_data(folder)
    before = _last(had)
    if before is not None:
        if others := before.differences(profile):
            print(
                f"warning: these are other data than the run had up to step {step} ({before.place}): "
                f"{'; '.join(others)}. It goes on with them, but will not end as it would have",
                file=sys.stderr,
            )
        elif before.place == profile.place:
            return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{DATA}.unfinished"
    unfinished.write_text(json.dumps([*had, {"since": step, **profile.to_json()}], indent=1), encoding="utf-8")
    unfinished.replace(folder / DATA)
