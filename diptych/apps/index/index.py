"""An index of pictures and texts by a model's vectors, with re-ranking by its fusion encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.items import KINDS, Item, Kind
from diptych.apps.index.results import Found, IndexHit, Info
from diptych.apps.index.states import States
from diptych.apps.index.store import Store, find_place
from diptych.predict import Picture, Predictor, unknown_words


def open_index(place: str | Path, predictor: Predictor) -> Index:
    """The index at a place: a folder, or a server's address.

    Raises ValueError where there is none, where its building is not finished, for a damaged one, and for one that
    another model made.
    """
    store = find_place(place).open()
    store.about.maker.check(predictor, store.place)
    return Index(store, predictor)


def index_info(place: str | Path) -> Info:
    """What an index is. Its model is not needed. Raises ValueError where there is no complete index."""
    store = find_place(place).open()
    about = store.about
    return Info(
        store.place, about.maker.name, about.maker.digest, about.width, {kind: store.count(kind) for kind in KINDS},
        {kind: store.how(kind) for kind in KINDS}, tuple(root.folder for root in about.roots), store.skipped(),
    )  # fmt: skip


class Index:
    """Pictures and texts that can be searched by words or by a picture. Threads may share it.

    It stays as it was when it was opened, if in a folder; a server's shows changes as they are made.
    """

    def __init__(self, store: Store, predictor: Predictor) -> None:
        """Of an opened store whose model `predictor` is: see `open_index`."""
        self._store, self.predictor = store, predictor
        self.states = States(predictor, predictor.recipe.evaluation.keep_bytes)
        """Encoded pictures that re-ranking has met."""

    def __len__(self) -> int:
        """Pictures and texts."""
        return sum(self.counts.values())

    @property
    def counts(self) -> Mapping[Kind, int]:
        return {kind: self._store.count(kind) for kind in KINDS}

    @property
    def how(self) -> str:
        """How pictures, and texts, are searched, as in "exact, 1,000 vectors"."""
        held = [kind for kind in KINDS if self._store.count(kind)] or [KINDS[0]]
        said = [self._store.how(kind) for kind in held]
        return said[0] if len(said) == 1 else "; ".join(f"{kind}s: {how}" for kind, how in zip(held, said, strict=True))

    def search(self, query: str | Picture, k: int = 10, of: Kind = "picture", rerank: bool = False) -> Found:
        """The k pictures, or texts, that fit a text or a picture best.

        A `str` is a text; a picture's file is given as a `Path`. Similarity decides; with `rerank` the most similar
        ones (`evaluation.rerank` of the recipe, at least k) are then ordered by the probability of a match, of a text
        with pictures or of a picture with texts. Pictures are encoded for it once, as long as they fit into
        `evaluation.keep_bytes`.

        Raises ValueError for k below 1, for a text without words, for re-ranking like with like, for a kind that the
        index does not hold, and, when re-ranking, for a picture that is no longer there.
        """
        text = query if isinstance(query, str) else None
        self._check(text, k, of, rerank)
        vectors = self.predictor.embed_images(query) if text is None else self.predictor.embed_texts(text)
        wanted = max(k, self.predictor.recipe.evaluation.rerank) if rerank else k
        near = nearest(self._store, of, vectors[0].numpy().astype(np.float32), wanted)
        items = self._store.items([id for id, _ in near])
        matches: Sequence[float | None] = self._matches(query, items) if rerank and items else [None] * len(items)
        hits = [
            self._hit(item, similarity, match)
            for item, (_, similarity), match in zip(items, near, matches, strict=True)
        ]
        if rerank:  # a stable sort: equal matches stay in the order of similarity
            hits.sort(key=lambda hit: -(hit.match or 0.0))
        unknown = () if text is None else unknown_words(text, self.predictor.tokenizer)
        count, how = self._store.count(of), self._store.how(of)
        return Found(_said(query), tuple(hits[:k]), count, how, unknown)

    def _check(self, text: str | None, k: int, of: Kind, rerank: bool) -> None:
        if of not in KINDS:
            raise ValueError(f"an index holds pictures and texts: of is picture or text, not {of!r}")
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one {of}")
        if not self._store.count(of):
            raise ValueError(f"{self._store.place} holds no {of}s")
        if rerank and (text is None) == (of == "picture"):
            one, other = ("picture", "texts") if text is None else ("text", "pictures")
            raise ValueError(
                f"re-ranking judges pictures with texts: a {one} is re-ranked among {other} (of={other[:-1]})"
            )

    def _matches(self, query: str | Picture, items: Sequence[Item]) -> list[float]:
        if isinstance(query, str):
            states = self.states.of([self._store.about.file(item) for item in items])
            return self.predictor.match_encoded(states, query)[:, 0].tolist()
        texts = [item.content for item in items]
        state = self.states.of([query]) if isinstance(query, Path) else self.predictor.encode(query)
        return self.predictor.match_encoded(state, texts)[0].tolist()

    def _hit(self, item: Item, similarity: float, match: float | None) -> IndexHit:
        picture = item.kind == "picture"
        path = self._store.about.file(item) if picture else None
        return IndexHit(item.id, item.kind, path, None if picture else item.content, similarity, match)


def nearest(store: Store, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
    """Ids and cosines of the k nearest, best first, equal ones by id: also where k cuts through equal ones, of which
    the store gives any."""
    count = store.count(kind)
    asked = k
    while True:
        asked = min(asked + 1, count)
        found = store.nearest(kind, query, asked)
        if len(found) <= k or found[-1][1] < found[k - 1][1] or len(found) >= count or len(found) < asked:
            return sorted(found, key=lambda one: (-one[1], one[0]))[:k]
        asked *= 2


def _said(query: Any) -> str:
    return str(query) if isinstance(query, str | Path) else "a picture"
