"""Searches the pictures of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diptych.data.files import names_below
from diptych.data.picture_kinds import SUFFIXES, PassedOver, is_picture
from diptych.data.record import BadRecord
from diptych.facts import as_count
from diptych.predict.duplicates import SPARE, copies_noted, fold, named_copies
from diptych.predict.inputs import Picture, unknown_words
from diptych.predict.kept_vectors import KeptVectors
from diptych.predict.predictor import Predictor
from diptych.predict.queries import read_query
from diptych.predict.results import EVERYTHING, Hit, MinMatch
from diptych.printable import printable
from diptych.reading import expand_home


@dataclass(frozen=True)
class SearchResult:
    """The best pictures of a folder for a query; `print` shows them as a table, or says that there are none."""

    query: str
    folder: Path
    hits: tuple[Hit, ...]
    searched: int
    """The number of pictures that could be read."""
    skipped: tuple[BadRecord, ...]
    unknown_words: tuple[str, ...]
    """Words of the query for which the tokenizer has no pieces."""
    min_match: MinMatch = EVERYTHING
    """Pictures that match with less were left out."""
    best_match: float | None = None
    """The highest probability of a match, whether that picture is among the hits or not."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """The files that look like pictures and are not read as such."""
    embedded: int = 0
    """The number of pictures that were embedded for this search. The vectors of the others were kept."""
    notes: tuple[str, ...] = ()
    """What hinders keeping the vectors, each in a line."""

    def __str__(self) -> str:
        lines = [f'"{self.query}" among {self.searched} pictures in {printable(str(self.folder))}', ""]
        lines.append(
            "      match  similarity  picture" if self.hits else self.min_match.nothing("picture", self.best_match)
        )
        for place, hit in enumerate(self.hits, start=1):
            match = "–" if hit.match is None else f"{100 * hit.match:.1f} %"
            lines.append(
                f"{place:3} {match:>7}  {hit.similarity:10.3f}  {printable(hit.name)}{copies_noted(hit.copies)}"
            )
        if self.min_match.note:
            lines += ["", self.min_match.note]
        if self.unknown_words:
            lines += ["", f"words the model cannot read: {', '.join(self.unknown_words)}"]
        if self.skipped:
            lines += ["", f"{len(self.skipped)} could not be read:", *(f"  {error}" for error in self.skipped)]
        if self.passed_over:
            lines += ["", str(self.passed_over)]
        if self.notes:
            lines += ["", *map(printable, self.notes)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: what was searched, and each hit with the path of its picture."""
        return {
            "query": self.query, "searched": self.searched, "min_match": self.min_match.least,
            "best_match": self.best_match,
            "hits": [
                {
                    "name": hit.name, "path": str((self.folder / hit.name).resolve()), "similarity": hit.similarity,
                    "match": hit.match, "copies": list(hit.copies),
                }
                for hit in self.hits
            ],
            "unknown_words": list(self.unknown_words), "skipped": [str(error) for error in self.skipped],
            "notes": list(self.notes),
        }  # fmt: skip


def search_folder(
    predictor: Predictor,
    query: str,
    folder: str | Path,
    k: int = 10,
    rerank: bool | None = None,
    min_match: float | None = None,
    fold_copies: bool = False,
    cache: bool = True,
) -> SearchResult:
    """Finds the k pictures in and below `folder` that fit the query best, by `Predictor.rank`.

    With `fold_copies` near-duplicates, such as one picture at two sizes, are one hit, which names the others. There may
    be no hit, because pictures that match with less than `min_match` are left out. Pictures that cannot be
    read are named in the result. With `cache` the vectors are kept in the cache folder (`predict.kept_vectors`), and a
    later search with the same model embeds only what is new or has changed. Raises ValueError if there is nothing to
    search.
    """
    folder, k = expand_home(folder), as_count(k, "picture")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name one that holds pictures")
    seen = PassedOver()
    names = [name for name in names_below(folder, seen) if is_picture(name)]
    if not names:
        raise ValueError(f"no pictures in {folder}: looked for {', '.join(sorted(SUFFIXES))}{seen.after}")
    files = [folder / name for name in names]
    kept = KeptVectors(predictor, folder) if cache else None
    skipped: list[BadRecord] = []

    def embed(pictures: Sequence[Picture]) -> tuple[list[int], Float[Tensor, "N E"]]:
        places, vectors, errors = predictor.embed_readable(pictures) if kept is None else kept.embed(names)
        skipped.extend(errors)
        return places, vectors

    ranking = predictor.rank_embedded(query, files, embed, k * SPARE if fold_copies else k, rerank, min_match)
    if not ranking.searched:
        raise ValueError(f"none of the {len(files)} pictures in {folder} can be read; the first: {skipped[0]}")
    named = tuple(replace(hit, name=Path(names[hit.index]).as_posix()) for hit in ranking.hits)
    if fold_copies:
        groups = fold((files[hit.index] for hit in named), k)
        copies = named_copies(groups, [hit.name for hit in named])
        named = tuple(replace(named[place], copies=others) for place, others in copies)
    unknown = unknown_words(" ".join(read_query(query).texts), predictor.tokenizer)
    return SearchResult(
        query, folder, named, ranking.searched, tuple(skipped), unknown, ranking.min_match, ranking.best_match, seen,
        embedded=ranking.searched if kept is None else kept.embedded, notes=() if kept is None else tuple(kept.notes),
    )  # fmt: skip
