"""Searches pictures and texts by a model's vectors, and re-ranks them with its fusion encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from diptych.apps.index.items import KINDS, Item, Kind
from diptych.apps.index.places import find_place
from diptych.apps.index.presence import notes_of_hits, presence
from diptych.apps.index.results import IndexHit, IndexInfo, SearchResults
from diptych.apps.index.states import ImageStateCache
from diptych.apps.index.store import Store
from diptych.predict import Picture, Predictor, as_count, unknown_words
from diptych.predict.duplicates import SPARE, fold, named_copies
from diptych.predict.queries import Query, read_query
from diptych.predict.results import MinMatch
from diptych.search.contract import State


def open_index(place: str | Path, predictor: Predictor) -> Index:
    """Opens the index in a folder or at a server's address.

    Raises ValueError if there is no index, if it is unfinished or damaged, and if another model made it.
    """
    store = find_place(place).open()
    store.description.model.check(predictor, store.place)
    return Index(store, predictor)


def index_info(place: str | Path) -> IndexInfo:
    """Describes an index without its model. Raises ValueError if there is no complete index."""
    store = find_place(place).open()
    description = store.description
    return IndexInfo(
        store.place,
        description.model.name,
        description.model.digest,
        description.width,
        {kind: store.count(kind) for kind in KINDS},
        {kind: store.search_method(kind) for kind in KINDS},
        tuple(root.folder for root in description.roots),
        store.skipped(),
        description.precision,
    )


@dataclass(frozen=True, eq=False)
class IndexQuery:
    """One of several searches; its fields are those of `Index.search`."""

    query: str | Picture
    k: int = 10
    min_match: float | None = None
    fold_copies: bool = False

    @property
    def text(self) -> str | None:
        """The query if it is a text. The file of a picture is a `Path`."""
        return self.query if isinstance(self.query, str) else None

    def folds(self, of: Kind) -> bool:
        return self.fold_copies and of == "picture"

    def looked_at(self, of: Kind) -> int:
        """The number of hits that are looked at, of which `k` are shown."""
        return self.k * SPARE if self.folds(of) else self.k


class Index:
    """Searches pictures and texts by words or by a picture. Threads may share it.

    An index in a folder stays as it was when it was opened; one in a server shows changes at once.
    """

    def __init__(self, store: Store, predictor: Predictor) -> None:
        """`predictor` must be the model that made the store, which `open_index` checks."""
        self._store, self.predictor = store, predictor
        self.states = ImageStateCache(predictor, predictor.recipe.evaluation.keep_bytes)
        """Encoded pictures of earlier re-rankings."""

    def __len__(self) -> int:
        """Number of pictures and texts."""
        return sum(self.counts.values())

    @property
    def counts(self) -> Mapping[Kind, int]:
        return {kind: self._store.count(kind) for kind in KINDS}

    @property
    def search_method(self) -> str:
        """How pictures, and texts, are searched, as in "exact, 1,000 vectors"."""
        kinds = [kind for kind in KINDS if self._store.count(kind)] or [KINDS[0]]
        methods = [self._store.search_method(kind) for kind in kinds]
        if len(kinds) == 1:
            return methods[0]
        return "; ".join(f"{kind}s: {method}" for kind, method in zip(kinds, methods, strict=True))

    def search(
        self,
        query: str | Picture,
        k: int = 10,
        of: Kind = "picture",
        rerank: bool = False,
        min_match: float | None = None,
        fold_copies: bool = False,
    ) -> SearchResults:
        """Finds the k pictures, or texts, that fit a text or a picture best.

        A `str` is a text, which may hold wanted and unwanted words, as in `a fox +snow -car` (`predict.queries`); the
        file of a picture is a `Path`. With `fold_copies` near-duplicates among pictures, such as one picture at two
        sizes, are one hit, which names the others. Hits are ordered by similarity. With `rerank` the most
        similar ones (`evaluation.rerank` of the recipe, at least k) are ordered by the recipe's `evaluation.score` of a
        text with pictures or of a picture with texts. Re-ranked pictures are encoded once, as long as their states fit
        into `evaluation.keep_bytes`. Re-ranked items that match with less than `min_match` are left out, and there may
        be no hit. None is the minimum match of the model's calibration; without calibration nothing is left out.

        Raises ValueError for k below 1, for a text without words, for re-ranking texts by a text or pictures by a
        picture, for a `min_match` above 0 without re-ranking, and for a kind that the index does not hold. Pictures
        that cannot be opened any more are left out of re-ranking. The result's `notes` say which, and which hits are
        gone or changed.
        """
        return self.search_many([IndexQuery(query, k, min_match, fold_copies)], of, rerank)[0]

    def search_many(
        self, queries: Sequence[IndexQuery], of: Kind = "picture", rerank: bool = False
    ) -> list[SearchResults]:
        """Searches by several texts or pictures, as `search` does by each. Raises ValueError if one of them is refused.

        All queries are encoded together, and so are the pictures that are re-ranked, each once for all queries.
        """
        queries = [replace(query, k=self._checked(query.text, query.k, of, rerank)) for query in queries]
        limits = [self.predictor.min_match(query.min_match, rerank, of_texts=of == "text") for query in queries]
        wanted = [None if query.text is None else read_query(query.text) for query in queries]
        states = self._encoded(queries) if rerank and of == "text" else None
        candidates = [
            self._candidates(query, vector, of, rerank)
            for query, vector in zip(queries, self._vectors(queries, wanted, states), strict=True)
        ]
        left_out: list[list[str]] = [[] for _ in queries]
        if rerank and of == "picture":
            candidates, left_out = self._openable(candidates)
        scores = self._scores(wanted, states, candidates) if rerank else [None] * len(queries)
        return [
            self._results(query, of, limit, text, nearest_items, score, ids)
            for query, limit, text, nearest_items, score, ids in zip(
                queries, limits, wanted, candidates, scores, left_out, strict=True
            )
        ]

    def _checked(self, text: str | None, k: int, of: Kind, rerank: bool) -> int:
        """Returns the number of hits. Raises ValueError for a search that this index cannot answer."""
        if of not in KINDS:
            raise ValueError(f"an index holds pictures and texts: of is picture or text, not {of!r}")
        k = as_count(k, of)
        if not self._store.count(of):
            raise ValueError(f"{self._store.place} holds no {of}s")
        if rerank and (text is None) == (of == "picture"):
            query, target = ("picture", "text") if text is None else ("text", "picture")
            raise ValueError(
                f"re-ranking matches pictures with texts: a {query} is re-ranked among {target}s (of={target})"
            )
        return k

    def _encoded(self, queries: Sequence[IndexQuery]) -> State:
        """Encodes the pictures of queries, those of files once for all searches."""
        states: list[Any] = [
            self.states.get([query.query]) if isinstance(query.query, Path) else self.predictor.encode(query.query)
            for query in queries
        ]
        return type(states[0]).cat(states)

    def _vectors(
        self, queries: Sequence[IndexQuery], wanted: Sequence[Query | None], states: State | None
    ) -> Float32[np.ndarray, "Q E"]:
        """Computes the vectors of queries; of pictures that are encoded already, from their `states`."""
        texts = [query for query in wanted if query is not None]
        of_texts = iter(self.predictor.embed_queries(texts) if texts else ())
        pictures = [query.query for query in queries if query.text is None]
        if states is not None:
            of_pictures = iter(self.predictor.embed_encoded(states))
        else:
            of_pictures = iter(self.predictor.embed_images(pictures) if pictures else ())
        vectors = [next(of_pictures if query is None else of_texts) for query in wanted]
        return torch.stack(vectors).numpy().astype(np.float32)

    def _candidates(
        self, query: IndexQuery, vector: Float32[np.ndarray, "E"], of: Kind, rerank: bool
    ) -> tuple[list[Item], list[float]]:
        """Finds the items that are nearest to a query, with their similarities."""
        looked_at = query.looked_at(of)
        near = nearest(
            self._store, of, vector,
            max(looked_at, self.predictor.recipe.evaluation.rerank) if rerank else looked_at,
        )  # fmt: skip
        return self._store.items([id for id, _ in near]), [similarity for _, similarity in near]

    def _openable(
        self, candidates: Sequence[tuple[list[Item], list[float]]]
    ) -> tuple[list[tuple[list[Item], list[float]]], list[list[str]]]:
        """Leaves out the pictures that cannot be opened any more, and returns their ids for each query.

        Only those that changed since they were embedded are opened to find out, and are then encoded already.
        """
        closed = {item.id for items, _ in candidates for item in items if not self._opens(item)}
        kept = [
            (
                [item for item in items if item.id not in closed],
                [similarity for item, similarity in zip(items, similarities, strict=True) if item.id not in closed],
            )
            for items, similarities in candidates
        ]
        return kept, [[item.id for item in items if item.id in closed] for items, _ in candidates]

    def _opens(self, item: Item) -> bool:
        file = self._store.description.file(item)
        match presence(item, file):
            case "there":
                return True
            case "gone":
                return False
        try:
            self.states.get([file])
        except ValueError:
            return False
        return True

    def _scores(
        self, wanted: Sequence[Query | None], states: State | None, candidates: Sequence[tuple[list[Item], list[float]]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Computes the match probability of each query's candidates, and what orders them."""
        if states is not None:
            return [
                self.predictor.score_hits(
                    states[torch.tensor([row], device=self.predictor.device)], [item.content for item in items],
                    torch.tensor(similarities)[None], of_texts=True,
                )
                for row, (items, similarities) in enumerate(candidates)
            ]  # fmt: skip
        listed = [[self._store.description.file(item) for item in items] for items, _ in candidates]
        place = {file: number for number, file in enumerate(dict.fromkeys(file for files in listed for file in files))}
        queries = [query for query in wanted if query is not None]
        scored = iter(
            self.predictor.score_queries(
                self.states.portions(list(place)),
                [query for query, files in zip(queries, listed, strict=True) if files],
                [[place[file] for file in files] for files in listed if files],
                [torch.tensor(similarities) for _, similarities in candidates if similarities],
            )
            if place
            else ()
        )
        return [next(scored) if files else (torch.empty(0), torch.empty(0)) for files in listed]

    def _results(
        self, query: IndexQuery, of: Kind, limit: MinMatch, wanted: Query | None,
        candidates: tuple[list[Item], list[float]], score: tuple[Tensor, Tensor] | None, left_out: Sequence[str],
    ) -> SearchResults:  # fmt: skip
        """Orders the candidates of a query, and leaves out what is not to be shown."""
        items, similarities = candidates
        matches: Sequence[float | None] = [None] * len(items)
        order = list(range(len(items)))
        if score is not None:
            matches = score[0].flatten().tolist()
            order = score[1].flatten().argsort(descending=True, stable=True).tolist()
        hits = [self._hit(items[i], similarities[i], matches[i]) for i in order]
        unknown = () if wanted is None else unknown_words(" ".join(wanted.texts), self.predictor.tokenizer)
        name = str(query.query) if isinstance(query.query, str | Path) else "a picture"
        shown = tuple(hit for hit in hits[: query.looked_at(of)] if hit.match is None or hit.match >= limit.least)
        if query.folds(of):
            groups = fold((hit.path for hit in shown if hit.path is not None), query.k)
            copies = named_copies(groups, [hit.id for hit in shown])
            shown = tuple(replace(shown[place], copies=names) for place, names in copies)
        best = hits[0].match if hits else None
        stored = {item.id: item for item in items}
        seen = [(hit.id, presence(stored[hit.id], hit.path)) for hit in shown if hit.path is not None]
        gone, changed = ([id for id, state in seen if state == wanted_state] for wanted_state in ("gone", "changed"))
        return SearchResults(
            name, shown, self._store.count(of), self._store.search_method(of), unknown, of, limit, best,
            notes_of_hits(gone, changed, left_out),
        )  # fmt: skip

    def _hit(self, item: Item, similarity: float, match: float | None) -> IndexHit:
        if item.kind == "picture":
            return IndexHit(item.id, item.kind, self._store.description.file(item), None, similarity, match)
        return IndexHit(item.id, item.kind, None, item.content, similarity, match)


def nearest(store: Store, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
    """Finds the ids and cosines of the k nearest vectors, best first and equal ones by id.

    A store returns any of the equal ones at the cut, so this requests more until the cut separates unequal cosines.
    """
    count = store.count(kind)
    requested = k
    while True:
        requested = min(requested + 1, count)
        hits = store.nearest(kind, query, requested)
        if len(hits) <= k or hits[-1][1] < hits[k - 1][1] or len(hits) >= count or len(hits) < requested:
            return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]
        requested *= 2
