"""A trained model and what can be asked of it.

N pictures, M texts, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych import catalog
from diptych.data.loader import evaluation_batch
from diptych.data.record import AnyRecord, BadRecord, PairStatement, Question
from diptych.data.record import Entailment as Hypothesis
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.predict.inputs import (
    Boxes,
    Given,
    Picture,
    Pictures,
    Strings,
    count_rows,
    given_boxes,
    given_pictures,
    given_strings,
    open_any,
    picture_name,
    prepare_texts,
)
from diptych.predict.results import Answer, Choice, Hit, Located
from diptych.schema import GroundingConfig, GroundingTrainingConfig, Recipe
from diptych.search.contract import State, evaluating
from diptych.search.index import CosineIndex
from diptych.search.rerank import match_logits, plan_calls
from diptych.task import Model, Task
from diptych.tasks import entailment, nlvr2
from diptych.tasks.entailment import Entailment
from diptych.tasks.grounding import find_box, phrase_maps
from diptych.tasks.nlvr2 import Nlvr2
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import Answerer, VqaClosedSet, VqaDecoding
from diptych.types import Batch, Texts, to_device

TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
"""Sentences that a label is read in; the second is CLIP's (Radford et al. 2021, §3.1.4)."""
ABILITIES: dict[str, str] = {
    "embed": "vectors",
    "match": "matching",
    "entail": "hypotheses",
    "answer": "questions",
    "compare": "statements about two pictures",
    "locate": "phrases",
}
"""What can be asked of a model, as in `Predictor.missing`, and what it is asked about."""
OF_PAIRS = ("match_logits", "fuse", "pooled")
"""Calls of a model that judge whether a picture and a text belong together."""
OF_VECTORS = ("embed_image", "embed_text")
Found = TypeVar("Found")
Kind = TypeVar("Kind", bound=Task)


@dataclass(frozen=True)
class Predictor:
    """A trained model with all that its inputs need. Takes one or many pictures or texts, in batches of its own.

    Where a call takes pictures with texts, a single one goes with each of many, and lists go together one by one. The
    result is a tuple with one entry for each, and a single result where all that was given is single.
    Every call raises ValueError for lists of different lengths, for empty ones and for a text without words, and
    BadRecord, which is a ValueError, for an unreadable file.
    """

    model: Model
    tokenizer: Tokenizer
    transform: EvaluationTransform
    recipe: Recipe
    device: torch.device
    origin: Path
    """The checkpoint."""
    task: Task | None = None
    """The model with its head, where its task has one."""
    untrained: frozenset[str] = frozenset()
    """Parts of the model whose weights nobody trained for these encoders: random ones, since a published file lacked
    them, and those that fine-tuning for another task left behind."""

    # ------------------------------------------------------------------ pictures and texts

    def embed_images(self, images: Pictures) -> Float[Tensor, "N E"]:
        """Normalised vectors of pictures, comparable with those of texts."""
        self._require("embed_image")
        return self._embed(given_pictures(images).items, None)[1]

    def embed_readable(self, images: Sequence[Picture]) -> tuple[list[int], Float[Tensor, "N E"], list[BadRecord]]:
        """As `embed_images`, of many of which some may be broken: the places of the readable ones, their vectors, and
        why the others were passed over."""
        self._require("embed_image")
        skipped: list[BadRecord] = []
        places, vectors = self._embed(images, skipped)
        return places, vectors, skipped

    def embed_texts(self, texts: Strings) -> Float[Tensor, "M E"]:
        """Normalised vectors of texts."""
        self._require("embed_text")
        with evaluating(self.model):
            return self.model.embed_text(self._text_state(self.texts(texts)))["main"].cpu()

    def match(self, images: Pictures, texts: Strings) -> Float[Tensor, "N M"]:
        """Probability that picture n and text m belong together, by the fusion encoder, for every pair."""
        self._require(*OF_PAIRS)
        pictures, words = given_pictures(images).items, self.texts(texts)
        with evaluating(self.model):
            text_state = self._text_state(words)
            found = [self._match(self._encode(batch), words, text_state) for batch in self._batches(pictures)]
        return torch.cat(found)

    def match_pairs(self, images: Pictures, texts: Strings, pairs: Sequence[tuple[int, int]]) -> Float[Tensor, "P"]:
        """As `match`, for some pairs only: each the place of a picture and of a text, in ascending order."""
        self._require(*OF_PAIRS)
        pictures, words = given_pictures(images).items, self.texts(texts)
        image, text = torch.tensor(pairs).T
        start, found = 0, []
        with evaluating(self.model):
            text_state = self._text_state(words)
            for batch in self._batches(pictures):
                here = (image >= start) & (image < start + len(batch))
                if here.any():
                    found.append(
                        self._match_some(self._encode(batch), words, text_state, image[here] - start, text[here])
                    )
                start += len(batch)
        return torch.cat(found)

    def encode(self, images: Pictures) -> State:
        """What of pictures can be computed once and kept for `match_encoded`; `state[index]` cuts it.

        ALBEF: encoded tokens, VLMo: embedded patches.
        """
        self._require(*OF_PAIRS)
        with evaluating(self.model):
            states = [self._encode(batch) for batch in self._batches(given_pictures(images).items)]
        return type(states[0]).cat(states)

    def match_encoded(self, images: State, texts: Strings) -> Float[Tensor, "N M"]:
        """As `match`, of pictures that `encode` has seen."""
        self._require(*OF_PAIRS)
        words, size = self.texts(texts), self.recipe.evaluation.batch_size
        with evaluating(self.model):
            text_state = self._text_state(words)
            parts = torch.arange(len(images), device=self.device).split(size)
            return torch.cat([self._match(images[part], words, text_state) for part in parts])

    def rank(self, text: str, images: Pictures, k: int = 10, rerank: bool | None = None) -> tuple[Hit, ...]:
        """The k pictures that fit the text best, the best first.

        Similarity decides; with `rerank` the most similar ones (`evaluation.rerank` of the recipe, at least k) are then
        ordered by the probability of a match. None: as the recipe evaluates, where `evaluation.rerank` 0 says no.
        """
        return self.rank_readable(text, given_pictures(images).items, k, rerank, None)[0]

    # A text is a sequence of texts too, so that mypy sees an overlap: the first signature that fits is meant.
    @overload
    def classify(self, image: Picture, labels: Sequence[str], templates: Strings = TEMPLATES) -> Choice: ...  # type: ignore[overload-overlap]
    @overload
    def classify(
        self, image: Sequence[Picture], labels: Sequence[str], templates: Strings = TEMPLATES
    ) -> tuple[Choice, ...]: ...
    def classify(
        self, image: Pictures, labels: Sequence[str], templates: Strings = TEMPLATES
    ) -> Choice | tuple[Choice, ...]:
        """Which of the labels a picture shows, without training for it (zero-shot, as in CLIP).

        A label's vector is the mean, normalised, of its normalised vectors in all `templates`, in which it stands for
        `{}`. Probabilities are the softmax of similarity / temperature. Raises ValueError for fewer than two different
        labels, and a template without `{}`.
        """
        self._require("embed_image", "embed_text", "temperature")
        images, names = given_pictures(image), list(given_strings(labels, "labels").items)
        vectors = self._label_vectors(names, list(given_strings(templates, "templates").items))
        similarity = self.embed_images(images.items) @ vectors.T
        probabilities = (similarity / self.model.temperature().item()).softmax(dim=1)
        return _shaped([Choice.of(names, row) for row in probabilities.tolist()], images)

    # ------------------------------------------------------------------ by a head of its own

    @overload
    def entail(self, image: Picture, hypothesis: str) -> Choice: ...  # type: ignore[overload-overlap]
    @overload
    def entail(self, image: Pictures, hypothesis: Strings) -> tuple[Choice, ...]: ...
    def entail(self, image: Pictures, hypothesis: Strings) -> Choice | tuple[Choice, ...]:
        """Whether a picture makes a hypothesis true (entailment) or false (contradiction), or leaves it open (neutral).

        Raises ValueError for a model that was not trained for it.
        """
        task = self._headed(ABILITIES["entail"], Entailment)

        def say(batch: Batch) -> list[Choice]:
            return [Choice.of(entailment.CLASSES, row) for row in task.predict(batch).tolist()]

        def record(text: str) -> AnyRecord:
            return Hypothesis(repr(text), None, text, "", "")

        return self._ask(task, say, record, given_strings(hypothesis, "hypotheses"), given_pictures(image))

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, image: Picture, question: str, k: int = 3, answers: Strings | None = None
    ) -> tuple[Answer, ...]: ...
    @overload
    def answer(
        self, image: Pictures, question: Strings, k: int = 3, answers: Strings | None = None
    ) -> tuple[tuple[Answer, ...], ...]: ...
    def answer(
        self, image: Pictures, question: Strings, k: int = 3, answers: Strings | None = None
    ) -> tuple[Answer, ...] | tuple[tuple[Answer, ...], ...]:
        """The k likeliest answers to a question about a picture, the likeliest first; fewer where there are no more.

        A closed set chooses among its own answers. A decoder chooses from `answers`, or else does what its recipe says:
        it chooses from the list of its training, or writes; without a list, as in published files, it writes. What the
        probabilities are of follows from that (`Answer`).

        Raises ValueError for a model that was not trained for it, `answers` to a closed set, and an answer without
        words.
        """
        task = self._headed(ABILITIES["answer"], VqaDecoding, VqaClosedSet)
        assert isinstance(task, VqaDecoding | VqaClosedSet)
        offered = () if answers is None else tuple(dict.fromkeys(given_strings(answers, "answers").items))
        for one in offered:
            if not any(letter.isalnum() for letter in one):
                raise ValueError(f"{one!r} is no answer: it holds no word")
        answerer = Answerer(task, self.tokenizer, offered)

        def say(batch: Batch) -> list[tuple[Answer, ...]]:
            return [tuple(best) for best in answerer.best(batch, k)]

        def record(text: str) -> AnyRecord:
            return Question(repr(text), None, text, (), "")

        return self._ask(task, say, record, given_strings(question, "questions"), given_pictures(image))

    @overload
    def compare(self, image_a: Picture, image_b: Picture, statement: str) -> Choice: ...  # type: ignore[overload-overlap]
    @overload
    def compare(self, image_a: Pictures, image_b: Pictures, statement: Strings) -> tuple[Choice, ...]: ...
    def compare(self, image_a: Pictures, image_b: Pictures, statement: Strings) -> Choice | tuple[Choice, ...]:
        """Whether a statement about a left and a right picture is `true` or `false`.

        Raises ValueError for a model that was not trained for it.
        """
        task = self._headed(ABILITIES["compare"], Nlvr2)

        def say(batch: Batch) -> list[Choice]:
            return [Choice.of(nlvr2.CLASSES, row) for row in task.predict(batch).tolist()]

        def record(text: str) -> AnyRecord:
            return PairStatement(repr(text), (None, None), text, False, ("", ""), text)

        pairs = given_pictures(image_a), given_pictures(image_b)
        return self._ask(task, say, record, given_strings(statement, "statements"), *pairs)

    # ------------------------------------------------------------------ where

    @overload
    def locate(self, image: Picture, phrase: str, proposals: Boxes | None = None) -> Located: ...  # type: ignore[overload-overlap]
    @overload
    def locate(
        self, image: Pictures, phrase: Strings, proposals: Boxes | Sequence[Boxes] | None = None
    ) -> tuple[Located, ...]: ...
    def locate(
        self, image: Pictures, phrase: Strings, proposals: Boxes | Sequence[Boxes] | None = None
    ) -> Located | tuple[Located, ...]:
        """Where in a picture is what a phrase names: the best of the `proposals` or, without any, the map's own box.

        `proposals`: a list of boxes, or such a list for each result. Any model can be asked whose match head was
        trained, best one fine-tuned for grounding; the map is that of `boxes_config`.
        """
        config = boxes_config(self.recipe, self.model)
        self._require(*self._locating(config))
        images, phrases, offered = given_pictures(image), given_strings(phrase, "phrases"), given_boxes(proposals)
        words = self.texts(phrases.items)
        found = []
        with evaluating(self.model):
            for rows in self._rows(images, phrases, offered):
                opened = {place: open_any(images.items[place]) for place in {images.place(row) for row in rows}}
                pixels = torch.stack([self.transform(one) for one in opened.values()])
                nth = {place: number for number, place in enumerate(opened)}
                which = torch.tensor([nth[images.place(row)] for row in rows])
                asked = torch.tensor([phrases.place(row) for row in rows])
                texts = to_device(Texts(words.input_ids[asked], words.attention_mask[asked]), self.device)
                averages_padding = self.recipe.released.heat_map_averages_padding
                pixels, which = pixels.to(self.device), which.to(self.device)
                maps = phrase_maps(self.model, pixels, texts, config, which, averages_padding)
                for row, heat, fit in zip(rows, maps.phrase.cpu(), maps.fit.tolist(), strict=True):
                    box = find_box(heat, opened[images.place(row)].size, offered.at(row), config)
                    found.append(Located(phrases.at(row), box, fit, heat.numpy(), images.at(row)))
        return _shaped(found, images, phrases, offered)

    def texts(self, texts: Strings) -> Texts:
        """Texts as the model reads them: cleaned, cut to the longest that was evaluated, as ids."""
        return prepare_texts(given_strings(texts).items, self.tokenizer, self.recipe.data)

    def rank_readable(
        self, text: str, pictures: Sequence[Picture], k: int, rerank: bool | None, skipped: list[BadRecord] | None
    ) -> tuple[tuple[Hit, ...], int]:
        """As `rank`, and how many pictures were readable; others go to `skipped`, or raise without it."""
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one picture")
        rerank = self.recipe.evaluation.rerank > 0 if rerank is None else rerank
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
            Hit(place, picture_name(pictures[place], place), similarity, match)
            for place, similarity, match in zip(candidates, near.scores[0].tolist(), matches, strict=True)
        ]
        # A stable sort: without a match, and among equal ones, the order of similarity stays.
        return tuple(sorted(hits, key=lambda hit: -(hit.match or 0.0))[:k]), len(places)

    # ------------------------------------------------------------------ what it was trained for

    def missing(self, ability: str) -> str | None:
        """Why this model cannot be asked, with the recipe to train, or None where it can.

        `ability`: a key of `ABILITIES`; `embed` stands for `embed_images`, `embed_texts` and `rank`.
        """
        checks: dict[str, Callable[[], object]] = {
            "embed": lambda: self._require(*OF_VECTORS),
            "match": lambda: self._require(*OF_PAIRS),
            "entail": lambda: self._headed(ABILITIES["entail"], Entailment),
            "answer": lambda: self._headed(ABILITIES["answer"], VqaDecoding, VqaClosedSet),
            "compare": lambda: self._headed(ABILITIES["compare"], Nlvr2),
            "locate": lambda: self._require(*self._locating(boxes_config(self.recipe, self.model))),
        }
        try:
            checks[ability]()
        except ValueError as error:
            return str(error)
        return None

    def _locating(self, config: GroundingConfig) -> tuple[str, ...]:
        return OF_PAIRS if config.mode == "itm" else (*OF_VECTORS, "temperature")

    def _require(self, *calls: str) -> None:
        """Raises ValueError where calls would use weights that nobody trained for these encoders.

        They look like numbers all the same: the demo's model tells the captions of 50 unseen scenes from others with
        an area under the curve of 0.997 by `match`, after fine-tuning for entailment with 0.93, for VQA with 0.51.
        """
        used = (part for call in calls for part in self.model.call_parts.get(call, ()))
        if part := next((part for part in used if part in self.untrained), None):
            raise ValueError(
                f"{self.origin} holds no trained {part}: its encoders were trained for something else. "
                f"Take a pre-trained checkpoint, or {self._training(Retrieval, calls=calls)}"
            )

    def _headed(self, purpose: str, *kinds: type[Kind]) -> Kind:
        for kind in kinds:
            if isinstance(self.task, kind):
                return self.task
        raise ValueError(f"this model was not trained for {purpose}: {self._training(*kinds)}")

    def _training(self, *kinds: type[Task], calls: Sequence[str] = ()) -> str:
        """How to come by a model with such a task: the recipes for it, those of this model's size if there are any.

        Only those that train all `calls` of the model.
        """
        same = [one for one in _made(*catalog.RECIPES.values()) if type(one.model) is type(self.recipe.model)]
        tasks = {one.name: cast("type[Task]", catalog.TASKS[type(one.task)]) for one in same}
        fit = [one for one in same if tasks[one.name] in kinds]
        fit = [one for one in fit if {*calls} <= {*tasks[one.name].trained(one.task)}]
        alike = [one for one in fit if one.model.width == self.recipe.model.width]
        names = [one.name for one in alike or fit]
        return f"train {' or '.join(names)} (diptych train {names[0]} init_from=RUN, a pre-trained one)"

    # ------------------------------------------------------------------ batches

    def _ask(
        self,
        task: Task,
        say: Callable[[Batch], Iterable[Found]],
        record: Callable[[str], AnyRecord],
        texts: Given[str],
        *images: Given[Picture],
    ) -> Any:
        """What the task says of each text with its pictures, read as in evaluation."""
        found: list[Found] = []
        with evaluating(task):
            for rows in self._rows(texts, *images):
                seen = [self._see(given, rows) for given in images]
                records = [record(texts.at(row)) for row in rows]
                batch = evaluation_batch(records, list(zip(*seen, strict=True)), self.tokenizer, self.recipe.data)
                found += say(to_device(batch, self.device))
        return _shaped(found, texts, *images)

    def _rows(self, *given: Given[Any]) -> Iterator[range]:
        """The results' numbers, a batch at a time."""
        count, size = count_rows(*given), self.recipe.evaluation.batch_size
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def _see(self, images: Given[Picture], rows: range) -> list[Float[Tensor, "3 H W"]]:
        """The pixels of each row; each picture is opened once."""
        places = [images.place(row) for row in rows]
        pixels = {place: self.transform(open_any(images.items[place])) for place in dict.fromkeys(places)}
        return [pixels[place] for place in places]

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
                        pixels.append(self.transform(open_any(picture)))
                        places.append(place)
                    except BadRecord as error:
                        if skipped is None:
                            raise
                        skipped.append(error)
                if pixels:
                    state = self.model.image_state(torch.stack(pixels).to(self.device))
                    vectors.append(self.model.embed_image(state)["main"].cpu())
        return places, torch.cat(vectors) if vectors else torch.empty(0, self.model.embed_dim)

    def _text_state(self, texts: Texts) -> Any:
        size = self.recipe.evaluation.batch_size
        parts = zip(texts.input_ids.split(size), texts.attention_mask.split(size), strict=True)
        states = [self.model.text_state(to_device(Texts(*part), self.device)) for part in parts]
        return type(states[0]).cat(states)

    def _encode(self, pictures: Sequence[Picture]) -> Any:
        pixels = torch.stack([self.transform(open_any(picture)) for picture in pictures])
        return self.model.image_state(pixels.to(self.device))

    def _match(self, images: State, words: Texts, text_state: Any) -> Float[Tensor, "N M"]:
        """Probabilities of every pair of some pictures and all texts."""
        image = torch.arange(len(images)).repeat_interleave(len(words))
        text = torch.arange(len(words)).repeat(len(images))
        return self._match_some(images, words, text_state, image, text).view(len(images), len(words))

    def _match_some(
        self, images: State, words: Texts, text_state: Any, image: Int[Tensor, "P"], text: Int[Tensor, "P"]
    ) -> Float[Tensor, "P"]:
        """Probabilities of pairs in ascending order of their pictures."""
        scores = torch.empty(len(image))
        rows = words.attention_mask.sum(dim=1)[text] + self.model.fused_image_tokens
        for call in plan_calls(image, rows, self.recipe.evaluation.tokens_per_call):
            both = match_logits(self.model, text_state, images, text[call], image[call], self.device)
            scores[call] = both.softmax(dim=1)[:, 1]
        return scores

    def _batches(self, pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
        size = self.recipe.evaluation.batch_size
        return (pictures[start : start + size] for start in range(0, len(pictures), size))

    def _label_vectors(self, labels: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "L E"]:
        if len(set(labels)) < max(2, len(labels)):
            raise ValueError(f"cannot choose among {', '.join(labels)}: give two or more labels, each once")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"the template {template!r} has no {{}} for the label")
        self.texts(labels)  # within a template, a label without words would not show
        sentences = [template.replace("{}", label) for label in labels for template in templates]
        return F.normalize(self.embed_texts(sentences).view(len(labels), len(templates), -1).mean(1), dim=-1)


@lru_cache(maxsize=1)
def _made(*makers: Callable[[], Recipe]) -> tuple[Recipe, ...]:
    """The recipes, made once: a pool asks many models what they miss."""
    return tuple(make() for make in makers)


def boxes_config(recipe: Recipe, model: Model) -> GroundingConfig:
    """How a model finds boxes: as its recipe says or, where that is of another task, as published for its depth.

    Published: the cross-attention of the third of six fusion layers (ALBEF §6.4), so half way up. Lower layers have
    hardly met the picture; above, a word's row has taken in the others' and speaks for the whole text.
    """
    if isinstance(recipe.task, GroundingTrainingConfig):
        return recipe.task.boxes
    layers = model.map_layers
    return GroundingConfig(layer=layers[(len(layers) - 1) // 2])


def _shaped(found: Sequence[Found], *given: Given[Any]) -> Any:
    """The single result where all that was given is single."""
    return found[0] if all(one.one for one in given) else tuple(found)
