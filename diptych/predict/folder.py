"""Searches the pictures of a folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.data.files import files_below
from diptych.data.picture_kinds import SUFFIXES, PassedOver, is_picture
from diptych.data.record import BadRecord
from diptych.predict.duplicates import SPARE, copies_noted, fold, named_copies
from diptych.predict.inputs import unknown_words
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

    def __str__(self) -> str:
        lines = [f'"{self.query}" among {self.searched} pictures in {self.folder}', ""]
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
        }  # fmt: skip


def search_folder(
    predictor: Predictor,
    query: str,
    folder: str | Path,
    k: int = 10,
    rerank: bool | None = None,
    min_match: float | None = None,
    fold_copies: bool = False,
) -> SearchResult:
    """Finds the k pictures in and below `folder` that fit the query best, by `Predictor.rank`.

    With `fold_copies` near-duplicates, such as one picture at two sizes, are one hit, which names the others. There may
    be no hit, because pictures that match with less than `min_match` are left out. Pictures that cannot be
    read are named in the result. Raises ValueError if there is nothing to search.
    """
    folder = expand_home(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name one that holds pictures")
    seen = PassedOver()
    files = [folder / file for file in files_below(folder, seen) if is_picture(file)]
    if not files:
        raise ValueError(f"no pictures in {folder}: looked for {', '.join(sorted(SUFFIXES))}{seen.after}")
    skipped: list[BadRecord] = []
    ranking = predictor.rank_readable(query, files, k * SPARE if fold_copies else k, rerank, skipped, min_match)
    if not ranking.searched:
        raise ValueError(f"none of the {len(files)} pictures in {folder} can be read; the first: {skipped[0]}")
    named = tuple(replace(hit, name=files[hit.index].relative_to(folder).as_posix()) for hit in ranking.hits)
    if fold_copies:
        groups = fold((files[hit.index] for hit in named), k)
        copies = named_copies(groups, [hit.name for hit in named])
        named = tuple(replace(named[place], copies=names) for place, names in copies)
    unknown = unknown_words(" ".join(read_query(query).texts), predictor.tokenizer)
    return SearchResult(
        query, folder, named, ranking.searched, tuple(skipped), unknown, ranking.min_match, ranking.best_match, seen
    )
