"""What a user does with a trained model: embed, match and rank pictures and texts, search a folder.

    predictor = load("runs/demo")
    print(search_folder(predictor, "a fox left of a red car", "pictures"))

N pictures, M texts, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.pictures import SUFFIXES, open_picture, to_rgb
from diptych.data.record import BadRecord
from diptych.data.sources.folder import files_below
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.device import find_device
from diptych.schema import DataConfig, Recipe
from diptych.search.contract import PairModel, evaluating
from diptych.search.index import CosineIndex
from diptych.search.rerank import match_logits, plan_calls
from diptych.serialize import from_dict
from diptych.types import Texts, to_device

Picture = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image, or an array of bytes [H, W, 3] or [H, W]."""
Pictures = Picture | Sequence[Picture]
Strings = str | Sequence[str]


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    index: int
    """Its place among the pictures that were searched."""
    name: str
    similarity: float
    """Cosine of picture and text, in -1..1."""
    match: float | None
    """Probability that they belong together, by the fusion encoder; None where it was not asked."""


@dataclass(frozen=True)
class SearchResult:
    """The best pictures of a folder for a query; `print` shows them as a table."""

    query: str
    folder: Path
    hits: tuple[Hit, ...]
    searched: int
    """Pictures that could be read."""
    skipped: tuple[BadRecord, ...]
    unknown_words: tuple[str, ...]
    """Words of the query that the tokenizer has no pieces for."""

    def __str__(self) -> str:
        lines = [f'"{self.query}" among {self.searched} pictures in {self.folder}', ""]
        lines.append("      match  similarity  picture")
        for place, hit in enumerate(self.hits, start=1):
            match = "–" if hit.match is None else f"{100 * hit.match:.1f} %"
            lines.append(f"{place:3} {match:>7}  {hit.similarity:10.3f}  {hit.name}")
        if self.unknown_words:
            lines += ["", f"words the model cannot read: {', '.join(self.unknown_words)}"]
        if self.skipped:
            lines += ["", f"{len(self.skipped)} could not be read:", *(f"  {error}" for error in self.skipped)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Predictor:
    """A trained model with all that its inputs need. Takes one or many pictures or texts, in batches of its own."""

    model: PairModel
    tokenizer: Tokenizer
    transform: EvaluationTransform
    recipe: Recipe
    device: torch.device
    origin: Path
    """The checkpoint."""
    untrained: frozenset[str] = frozenset()
    """Parts of the model that its checkpoint holds no trained weights for, as of a published file of another task."""

    def embed_images(self, images: Pictures) -> Float[Tensor, "N E"]:
        """Normalised vectors of pictures, comparable with those of texts. Raises BadRecord for an unreadable file."""
        self._require("image_proj")
        return self._embed(_many(images), None)[1]

    def embed_texts(self, texts: Strings) -> Float[Tensor, "M E"]:
        """Normalised vectors of texts. Raises ValueError for a text without words."""
        self._require("text_proj")
        with evaluating(self.model):
            return self.model.embed_text(self._text_state(self.texts(texts)))["main"].cpu()

    def match(self, images: Pictures, texts: Strings) -> Float[Tensor, "N M"]:
        """Probability that picture n and text m belong together, by the fusion encoder, for every pair."""
        self._require("match_head")
        pictures, words = _many(images), self.texts(texts)
        lengths = words.attention_mask.sum(dim=1)
        found: list[Tensor] = []
        with evaluating(self.model):
            text_state = self._text_state(words)
            for batch in self._batches(pictures):
                image_state = self._encode(batch)
                image = torch.arange(len(batch)).repeat_interleave(len(words))
                text = torch.arange(len(words)).repeat(len(batch))
                scores = torch.empty(len(image))
                for call in plan_calls(image, lengths[text], self.recipe.evaluation.tokens_per_call):
                    both = match_logits(self.model, text_state, image_state, text[call], image[call], self.device)
                    scores[call] = both.softmax(dim=1)[:, 1]
                found.append(scores.view(len(batch), len(words)))
        return torch.cat(found)

    def rank(self, text: str, images: Pictures, k: int = 10, rerank: bool = True) -> tuple[Hit, ...]:
        """The k pictures that fit the text best, the best first.

        Similarity decides; with `rerank` the most similar ones (`evaluation.rerank` of the recipe, at least k) are then
        ordered by the probability of a match. Raises BadRecord for an unreadable file.
        """
        return self._rank(text, _many(images), k, rerank, None)[0]

    def texts(self, texts: Strings) -> Texts:
        """Texts as the model reads them: cleaned, cut to the longest that was evaluated, as ids."""
        return prepare_texts([texts] if isinstance(texts, str) else texts, self.tokenizer, self.recipe.data)

    # ------------------------------------------------------------------ inside

    def _require(self, part: str) -> None:
        """Raises ValueError where an answer would come from random weights."""
        if part in self.untrained:
            raise ValueError(
                f"{self.origin} holds no trained {part}: it comes from a file of another task. "
                "Take a pre-trained checkpoint, or one that was fine-tuned for retrieval"
            )

    def _rank(
        self, text: str, pictures: Sequence[Picture], k: int, rerank: bool, skipped: list[BadRecord] | None
    ) -> tuple[tuple[Hit, ...], int]:
        """The best k, and how many were readable."""
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one picture")
        query = self.embed_texts(text)
        places, vectors = self._embed(pictures, skipped)
        if not places:
            return (), 0
        near = CosineIndex(vectors).search(query, max(k, self.recipe.evaluation.rerank) if rerank else k)
        candidates = [places[i] for i in near.indices[0].tolist()]
        matches: list[float | None] = [None] * len(candidates)
        if rerank:
            matches = self.match([pictures[place] for place in candidates], text)[:, 0].tolist()
        hits = [
            Hit(place, _name(pictures[place], place), similarity, match)
            for place, similarity, match in zip(candidates, near.scores[0].tolist(), matches, strict=True)
        ]
        # A stable sort: without a match, and among equal ones, the order of similarity stays.
        return tuple(sorted(hits, key=lambda hit: -(hit.match or 0.0))[:k]), len(places)

    def _embed(
        self, pictures: Sequence[Picture], skipped: list[BadRecord] | None
    ) -> tuple[list[int], Float[Tensor, "N E"]]:
        """Places of the readable pictures and their vectors. Unreadable ones go to `skipped`, or raise without it."""
        places: list[int] = []
        vectors: list[Tensor] = []
        with evaluating(self.model):
            for start, batch in enumerate(self._batches(pictures)):
                pixels: list[Tensor] = []
                for place, picture in enumerate(batch, start * self.recipe.evaluation.batch_size):
                    try:
                        pixels.append(self.transform(_open(picture)))
                        places.append(place)
                    except BadRecord as error:
                        if skipped is None:
                            raise
                        skipped.append(error)
                if pixels:
                    state = self.model.image_state(torch.stack(pixels).to(self.device))
                    vectors.append(self.model.embed_image(state)["main"].cpu())
        return places, torch.cat(vectors) if vectors else torch.empty(0, self.recipe.model.embed_dim)

    def _text_state(self, texts: Texts) -> Any:
        size = self.recipe.evaluation.batch_size
        parts = zip(texts.input_ids.split(size), texts.attention_mask.split(size), strict=True)
        states = [self.model.text_state(to_device(Texts(*part), self.device)) for part in parts]
        return type(states[0]).cat(states)

    def _encode(self, pictures: Sequence[Picture]) -> Any:
        pixels = torch.stack([self.transform(_open(picture)) for picture in pictures])
        return self.model.image_state(pixels.to(self.device))

    def _batches(self, pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
        size = self.recipe.evaluation.batch_size
        return (pictures[start : start + size] for start in range(0, len(pictures), size))


def load(path: str | Path, device: str = "auto") -> Predictor:
    """The model of a run (its best checkpoint, else its latest) or of a checkpoint folder, ready to use.

    Raises ValueError for a folder without a checkpoint, a damaged one, or weights that do not fit the recipe.
    """
    checkpoint = store.load(store.find(path))
    recipe = from_dict(checkpoint.recipe)
    tokenizer = Tokenizer.load(checkpoint.tokenizer)
    model = catalog.build_model(recipe.model, tokenizer)
    weights = {k.removeprefix("model."): v for k, v in checkpoint.weights().items() if k.startswith("model.")}
    store.load_into(model, weights, checkpoint.folder)
    place = find_device(device)
    return Predictor(
        model=model.to(place).eval(),
        tokenizer=tokenizer,
        transform=EvaluationTransform(recipe.model.vision.image_size),
        recipe=recipe,
        device=place,
        origin=checkpoint.folder,
        untrained=frozenset(checkpoint.state.get("fresh", ())),
    )


def search_folder(
    predictor: Predictor, query: str, folder: str | Path, k: int = 10, rerank: bool = True
) -> SearchResult:
    """The k pictures in and below `folder` that fit the query best, by `Predictor.rank`.

    Pictures that cannot be read are named in the result. Raises ValueError where there is nothing to search.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name one that holds pictures")
    files = [folder / file for file in files_below(folder) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"no pictures in {folder}: looked for {', '.join(sorted(SUFFIXES))}")
    skipped: list[BadRecord] = []
    hits, searched = predictor._rank(query, files, k, rerank, skipped)
    if not hits:
        raise ValueError(f"none of the {len(files)} pictures in {folder} can be read; the first: {skipped[0]}")
    named = tuple(
        Hit(hit.index, files[hit.index].relative_to(folder).as_posix(), hit.similarity, hit.match) for hit in hits
    )
    return SearchResult(query, folder, named, searched, tuple(skipped), unknown_words(query, predictor.tokenizer))


def prepare_texts(texts: Sequence[str], tokenizer: Tokenizer, config: DataConfig) -> Texts:
    """Texts as evaluation reads them. Raises ValueError for one without words."""
    cleaned = [clean_caption(text, config.max_words) for text in texts]
    if not cleaned:
        raise ValueError("no texts given")
    for text, clean in zip(texts, cleaned, strict=True):
        if not clean:
            raise ValueError(f"{text!r} holds no words to search by")
    return pad_texts(tokenizer.encode(cleaned, config.max_tokens_evaluation), tokenizer.pad_id)


def unknown_words(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Words that the tokenizer can only read as [UNK]."""
    words = clean_caption(text, max_words=len(text)).split()
    return tuple(word for word in words if tokenizer.unk_id in tokenizer.encode([word])[0])


def _many(pictures: Pictures) -> Sequence[Picture]:
    if isinstance(pictures, str | Path | Image.Image | np.ndarray):
        return [pictures]
    if len(pictures) == 0:
        raise ValueError("no pictures given")
    return pictures


def _name(picture: Picture, place: int) -> str:
    return str(picture) if isinstance(picture, str | Path) else f"picture {place}"


def _open(picture: Picture) -> Image.Image:
    """An RGB picture. Raises BadRecord for a file that is none, ValueError for an array of another kind."""
    if isinstance(picture, str | Path):
        return open_picture(picture, str(picture))
    if isinstance(picture, np.ndarray):
        colours = picture.ndim == 3 and picture.shape[2] in (3, 4)
        if picture.dtype != np.uint8 or not (colours or picture.ndim == 2):
            raise ValueError(
                f"an array of {picture.dtype} {list(picture.shape)} is no picture: give uint8, [H, W, 3] or [H, W]"
            )
        picture = Image.fromarray(picture)
    return to_rgb(picture)
