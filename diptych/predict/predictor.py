"""A trained model and everything that can be asked of it.

N pictures, M texts, P pairs, E embedding width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych import catalog
from diptych.data.collate import check_different
from diptych.data.loader import evaluation_batch
from diptych.data.record import BadRecord
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.facts import Ability, Answer, Choice, Option, as_count
from diptych.nn.lowered import Precision
from diptych.predict.inputs import (
    Boxes,
    Inputs,
    Picture,
    Pictures,
    Strings,
    as_boxes,
    as_list,
    as_pictures,
    as_places,
    as_strings,
    count_results,
    open_any,
    picture_name,
    prepare_texts,
)
from diptych.predict.queries import Query, QueryError, read_query
from diptych.predict.results import Hit, Located, MinMatch, Ranking
from diptych.schema import Recipe
from diptych.search.calibration import MatchCalibration
from diptych.search.contract import State, evaluating
from diptych.search.index import CosineIndex
from diptych.search.rerank import evidence, match_logits, plan_calls, sum_temperature
from diptych.task import Model, Task
from diptych.tasks.grounding import boxes_config, check_within, find_box, phrase_maps
from diptych.types import Texts, to_device

TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
"""Sentences that a label is read in; the second is CLIP's (Radford et al. 2021, §3.1.4)."""
OF_PAIRS = ("match_logits", "fuse", "pooled")
"""Calls of a model that judge whether a picture and a text belong together."""
LEAST_LENGTH = 1e-3
"""The length of a weighted sum of unit vectors below which nothing is left of a query."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Predictor:
    """A trained model with its tokenizer and transform. Calls take one or many pictures or texts and batch them.

    Where a call takes pictures with texts, a single one goes with each of many, and lists are paired item by item. The
    result is a tuple with one entry for each pair, or a single result if all inputs are single.
    Every call raises ValueError for lists of different lengths, for empty ones and for a text without words, and
    BadRecord, which is a ValueError, for an unreadable file.

    The model itself embeds, matches and locates. Whatever a task's head can be asked is a method of the name that the
    task gives its ability (`diptych.facts.Ability`): `entail`, `answer` and `compare` for the library's tasks, and
    those of added tasks.
    """

    model: Model
    tokenizer: Tokenizer
    transform: EvaluationTransform
    recipe: Recipe
    device: torch.device
    origin: Path
    """The checkpoint."""
    task: Task | None = None
    """The model with its head, if its task has one."""
    untrained: frozenset[str] = frozenset()
    """Parts of the model whose weights were not trained with these encoders: random ones that a published file lacked,
    and those that fine-tuning for another task left behind."""
    calibration: MatchCalibration | None = None
    """How match logits become the probability that a hit of a search is right; None before `diptych evaluate`."""
    precision: Precision = "fp32"
    """The precision of the products in its transformer blocks."""
    precision_note: str = ""
    """Why it is that precision, where `auto` chose it."""

    # ------------------------------------------------------------------ pictures and texts

    def open(self, picture: Picture) -> Image.Image:
        """Opens an upright RGB picture of at most `data.largest_pixels`, in any form that calls take.

        Raises BadRecord for a file that is no picture or too large, ValueError for any other such value.
        """
        return open_any(picture, self.recipe.data.largest_pixels)

    def embed_images(self, images: Pictures) -> Float[Tensor, "N E"]:
        """Computes normalised vectors of pictures, comparable with those of texts."""
        self._require("embed_image")
        return self._embed(as_pictures(images).items, None)[1]

    def embed_readable(self, images: Iterable[Picture]) -> tuple[list[int], Float[Tensor, "N E"], list[BadRecord]]:
        """Embeds those of many pictures that can be read. Returns their places, their vectors, and the errors of the
        others, which name their places. Raises ValueError for what is no list of pictures."""
        self._require("embed_image")
        skipped: list[BadRecord] = []
        places, vectors = self._embed(as_list(images), skipped)
        return places, vectors, skipped

    def embed_texts(self, texts: Strings) -> Float[Tensor, "M E"]:
        """Computes normalised vectors of texts."""
        self._require("embed_text")
        with evaluating(self.model):
            return self.model.embed_text(self._text_state(self.texts(texts)))["main"].cpu()

    def embed_encoded(self, images: State) -> Float[Tensor, "N E"]:
        """Computes the vectors of pictures that `encode` has encoded, as `embed_images` does."""
        self._require("embed_image")
        with evaluating(self.model):
            return self.model.embed_image(images)["main"].cpu()

    def embed_queries(self, queries: Sequence[Query]) -> Float[Tensor, "Q E"]:
        """Computes the vector of each query: the normalised sum of its terms' vectors, each times its weight.

        Raises QueryError for terms that cancel each other.
        """
        texts, place = _distinct_texts(queries)
        vectors = self.embed_texts(texts)
        return torch.cat([_sum_terms(vectors[[place[text] for text in query.texts]], query) for query in queries])

    def score_queries(
        self, images: Iterable[State], queries: Sequence[Query], candidates: Sequence[Sequence[int]],
        similarities: Sequence[Float[Tensor, "_"]],
    ) -> list[tuple[Float[Tensor, "_"], Float[Tensor, "_"]]]:  # fmt: skip
        """Scores pictures, which `encode` has encoded, as hits of queries. Each text and each picture is encoded once.

        `images` yields the pictures in order and in portions, of which one is alive at a time. `candidates` are the
        places of each query's pictures among them, and `similarities` their similarities to the query. Returns for each
        query the probability that a hit is right, of the query's first term alone, and the score that orders hits: that
        of the first term, and the log odds of a match of every other term times its weight.
        """
        self._require(*OF_PAIRS)
        texts, place = _distinct_texts(queries)
        pairs = [
            image * len(texts) + place[text]
            for query, images_of_query in zip(queries, candidates, strict=True)
            for image in images_of_query
            for text in query.texts
        ]
        keys, of_query = torch.tensor(pairs, dtype=torch.long).unique(return_inverse=True)
        image, text = keys // len(texts), keys % len(texts)
        words, logits, start = self.texts(texts), torch.empty(len(keys), 2), 0
        with evaluating(self.model):
            text_state = self._text_state(words)
            for state in images:
                first, last = torch.searchsorted(image, torch.tensor([start, start + len(state)])).tolist()
                here = slice(first, last)
                logits[here] = self._some_logits(state, words, text_state, image[here] - start, text[here])
                start += len(state)
        counts = [len(query.terms) * len(chosen) for query, chosen in zip(queries, candidates, strict=True)]
        return [
            self._score_terms(logits[rows].view(-1, len(query.terms), 2), query, similarity)
            for rows, query, similarity in zip(of_query.split(counts), queries, similarities, strict=True)
        ]

    def match(self, images: Pictures, texts: Strings) -> Float[Tensor, "N M"]:
        """Computes the probability that picture n and text m match for every pair: the softmax of ITM's logits.

        It is not calibrated. `rank` and the searches give the calibrated probability that a hit is right, where the
        checkpoint has a calibration.
        """
        return _softmax(self._pair_logits(images, texts))

    def match_pairs(self, images: Pictures, texts: Strings, pairs: Iterable[tuple[int, int]]) -> Float[Tensor, "P"]:
        """Matches some pairs only. A pair is the place of a picture and of a text; pairs are in ascending order.

        Raises ValueError for a place that there is not, and for what is no list of pairs of whole numbers.
        """
        self._require(*OF_PAIRS)
        pictures, words = as_pictures(images).items, self.texts(texts)
        places = as_places(pairs)
        for place in places:
            if not (0 <= place[0] < len(pictures) and 0 <= place[1] < len(words)):
                raise ValueError(
                    f"there is no pair {place} of {len(pictures)} pictures and {len(words)} texts, which are "
                    "counted from 0"
                )
        if not places:
            return torch.empty(0)
        image, text = torch.tensor(places).T
        start, logits = 0, []
        with evaluating(self.model):
            text_state = self._text_state(words)
            for batch in self._batches(pictures):
                here = (image >= start) & (image < start + len(batch))
                if here.any():
                    logits.append(
                        self._some_logits(self._encode(batch), words, text_state, image[here] - start, text[here])
                    )
                start += len(batch)
        return _softmax(torch.cat(logits))

    def encode(self, images: Pictures) -> State:
        """Computes what can be kept of pictures for `match_encoded`: ALBEF's encoded tokens, VLMo's embedded patches.

        `state[index]` selects pictures.
        """
        self._require(*OF_PAIRS)
        with evaluating(self.model):
            states = [self._encode(batch) for batch in self._batches(as_pictures(images).items)]
        return type(states[0]).cat(states)

    def match_encoded(self, images: State, texts: Strings) -> Float[Tensor, "N M"]:
        """Matches pictures that `encode` has encoded."""
        return _softmax(self._encoded_logits(images, texts))

    def score_hits(
        self, images: State, texts: Strings, similarity: Float[Tensor, "N M"], of_texts: bool = False
    ) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N M"]]:
        """Scores pictures, which `encode` has encoded, as hits of a search by texts, or the reverse (`of_texts`).

        Returns the probability that the hit is right, which is that of `match_encoded` without calibration and for
        `of_texts`, and the score that orders hits (`evaluation.score`).
        """
        return self._score(self._encoded_logits(images, texts), texts, similarity, calibrated=not of_texts)

    def min_match(self, least: float | None, rerank: bool, of_texts: bool = False) -> MinMatch:
        """Settles the least probability of a match with which a search shows a hit.

        None is that of the calibration, and leaves nothing out without calibration or re-ranking. A search for texts
        by a picture (`of_texts`) is never calibrated. Raises ValueError for a number outside 0..1, and for one above 0
        without re-ranking, since only the fusion encoder gives a match probability.
        """
        if isinstance(least, str):
            raise ValueError(f"the minimum match is a number from 0 to 1, such as 0.5, not the text {least!r}")
        if least is not None and not 0 <= least <= 1:
            raise ValueError(f"the minimum match is a probability from 0 to 1, not {least:g}")
        if least and not rerank:
            raise ValueError(
                f"a minimum match of {least:g} needs re-ranking, since only the fusion encoder gives the probability "
                "of a match: re-rank, or leave the minimum match out"
            )
        calibration = self.calibration if rerank and not of_texts else None
        if least is None:
            least = 0.0 if calibration is None else calibration.min_match
        return MinMatch(least, calibration is not None)

    def rank(
        self, text: str, images: Pictures, k: int = 10, rerank: bool | None = None, min_match: float | None = 0.0
    ) -> tuple[Hit, ...]:
        """Finds the k pictures that fit the text best, the best first.

        The text may hold wanted and unwanted words, as in `a fox +snow -car` (`predict.queries`). Similarity decides.
        With `rerank`, the most similar pictures (`evaluation.rerank` of the recipe, at least k) are then ordered by the
        recipe's `evaluation.score`. None follows the recipe, in which `evaluation.rerank` 0 means no. Pictures that
        match with less than `min_match` are left out, so that there may be none. By default all are kept, and None is
        the minimum match of the model's calibration, as `search_folder` has it (`Predictor.min_match`).
        """
        return self.rank_embedded(
            text, as_pictures(images).items, lambda pictures: self._embed(pictures, None), k, rerank, min_match
        ).hits

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
        """Chooses among labels for a picture without training for them (zero-shot, as in CLIP).

        A label's vector is that of `embed_labels`, in whose `templates` it replaces `{}`. Probabilities are the softmax
        of similarity / temperature. Raises ValueError for fewer than two different labels, and for a template without
        `{}`.
        """
        self._require("embed_image", "embed_text", "temperature")
        images, names = as_pictures(image), list(as_strings(labels, "labels").items)
        vectors = self.embed_labels(names, templates)
        similarity = self.embed_images(images.items) @ vectors.T
        probabilities = (similarity / self.model.temperature().item()).softmax(dim=1)
        return _shaped([Choice.of(names, row) for row in probabilities.tolist()], images)

    def embed_labels(self, labels: Strings, templates: Strings = TEMPLATES) -> Float[Tensor, "L E"]:
        """Computes the vector of each label: the normalised mean of its normalised vectors in all templates.

        Raises ValueError for fewer than two labels that differ for the model, and for a template without `{}`.
        """
        labels, templates = as_strings(labels, "labels").items, as_strings(templates, "templates").items
        if len(set(labels)) < max(2, len(labels)):
            raise ValueError(f"cannot choose among {', '.join(labels)}: give two or more labels, each once")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"the template {template!r} has no {{}} for the label")
        check_different(labels, self.texts(labels))  # within a template, a label without words would not show
        sentences = [template.replace("{}", label) for label in labels for template in templates]
        return F.normalize(self.embed_texts(sentences).view(len(labels), len(templates), -1).mean(1), dim=-1)

    # ------------------------------------------------------------------ by the head of a task

    def ask(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        """Asks the task's head, with the arguments that the task's ability states: pictures, a text, options.

        Raises ValueError for a model that was not trained for it, and for options that its head cannot follow.
        """
        ability = catalog.find_ability(name)
        task = self._headed(ability)
        bound = _signature(ability).bind(*arguments, **named)
        bound.apply_defaults()
        values = bound.arguments
        respond = task.responder(
            self.tokenizer, **{option.name: _option(option, values[option.name]) for option in ability.options}
        )
        texts = [as_strings(values[ability.text.name], ability.text.field)] if ability.text else []
        pictures = [as_pictures(values[picture.name]) for picture in ability.pictures]
        assert ability.record is not None
        results: list[Any] = []
        with evaluating(task):
            for rows in self._rows(*texts, *pictures):
                records = [ability.record(texts[0].at(row) if texts else "") for row in rows]
                views = list(zip(*(self._pixels(each, rows) for each in pictures), strict=True))
                batch = evaluation_batch(records, views, self.tokenizer, self.recipe.data)
                results += respond(to_device(batch, self.device))
        return _shaped(results, *texts, *pictures)

    if not TYPE_CHECKING:  # so that a type checker still finds misspelled methods

        def __getattr__(self, name: str) -> Callable[..., Any]:
            """Gives every ability of a task's head a method, also those of tasks that are not the library's."""
            ability = None if name.startswith("__") else catalog.abilities().get(name)
            if ability is None or ability.calls is not None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            method = partial(self.ask, name)
            method.__doc__, method.__signature__ = ability.description, _signature(ability)
            return method

    # The library's abilities once more, for type checkers and editors.

    @overload
    def entail(self, image: Picture, hypothesis: str) -> Choice: ...  # type: ignore[overload-overlap]
    @overload
    def entail(self, image: Pictures, hypothesis: Strings) -> tuple[Choice, ...]: ...
    def entail(self, image: Pictures, hypothesis: Strings) -> Any:
        """Tells whether a picture makes a hypothesis true (entailment) or false (contradiction), or leaves it open
        (neutral).

        Raises ValueError for a model that was not trained for it.
        """
        return self.ask("entail", image, hypothesis)

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, image: Picture, question: str, k: int = 3, answers: Strings | None = None
    ) -> tuple[Answer, ...]: ...
    @overload
    def answer(
        self, image: Pictures, question: Strings, k: int = 3, answers: Strings | None = None
    ) -> tuple[tuple[Answer, ...], ...]: ...
    def answer(self, image: Pictures, question: Strings, k: int = 3, answers: Strings | None = None) -> Any:
        """Gives the k likeliest answers to a question about a picture, the likeliest first; fewer if there are no more.

        A closed set chooses among its own answers. A decoder chooses from `answers`; without them it follows its
        recipe, and chooses from the list of its training or writes. Without a list, as in published files, it writes.
        The meaning of the probabilities follows from that (`Answer`).

        Raises ValueError for a model that was not trained for it, for `answers` to a closed set, and for an answer
        without words.
        """
        return self.ask("answer", image, question, k, answers)

    @overload
    def compare(self, image_a: Picture, image_b: Picture, statement: str) -> Choice: ...  # type: ignore[overload-overlap]
    @overload
    def compare(self, image_a: Pictures, image_b: Pictures, statement: Strings) -> tuple[Choice, ...]: ...
    def compare(self, image_a: Pictures, image_b: Pictures, statement: Strings) -> Any:
        """Tells whether a statement about a left and a right picture is `true` or `false`.

        Raises ValueError for a model that was not trained for it.
        """
        return self.ask("compare", image_a, image_b, statement)

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
        """Finds the place in a picture of the thing that a phrase names.

        The box is the best of the `proposals` or, without any, comes from the map itself. `proposals` is a list of
        boxes, or such a list for each result. Any model can be asked if its match head was trained; one that was
        fine-tuned for grounding does best. The map is that of `boxes_config`.
        """
        self._check(catalog.abilities()["locate"])
        config = boxes_config(self.recipe, self.model)
        images, phrases, offered = as_pictures(image), as_strings(phrase, "phrases"), as_boxes(proposals)
        words = self.texts(phrases.items)
        results = []
        with evaluating(self.model):
            for rows in self._rows(images, phrases, offered):
                # Each picture of the batch is opened and encoded once.
                opened = {place: self.open(images.items[place]) for place in {images.place(row) for row in rows}}
                pixels = torch.stack([self.transform(picture) for picture in opened.values()])
                order = {place: number for number, place in enumerate(opened)}
                image_index = torch.tensor([order[images.place(row)] for row in rows])
                which = torch.tensor([phrases.place(row) for row in rows])
                texts = to_device(Texts(words.input_ids[which], words.attention_mask[which]), self.device)
                averages_padding = self.recipe.released.heat_map_averages_padding
                pixels, image_index = pixels.to(self.device), image_index.to(self.device)
                maps = phrase_maps(self.model, pixels, texts, config, image_index, averages_padding)
                for row, heat, fit in zip(rows, maps.phrase.cpu(), maps.fit.tolist(), strict=True):
                    size = opened[images.place(row)].size
                    check_within(offered.at(row), size)
                    box = find_box(heat, size, offered.at(row), config)
                    results.append(Located(phrases.at(row), box, fit, heat.numpy(), images.at(row)))
        return _shaped(results, images, phrases, offered)

    def texts(self, texts: Strings) -> Texts:
        """Encodes texts as the model reads them: cleaned and cut to the longest that evaluation reads."""
        return prepare_texts(as_strings(texts).items, self.tokenizer, self.recipe.data)

    def rank_embedded(
        self,
        text: str,
        pictures: Sequence[Picture],
        embed: Callable[[Sequence[Picture]], tuple[list[int], Float[Tensor, "N E"]]],
        k: int,
        rerank: bool | None,
        min_match: float | None = None,
    ) -> Ranking:
        """Ranks as `rank` does those pictures of which `embed` returns the places and the vectors, and counts them.

        `embed` is called once, after everything else has been checked. By default it leaves out pictures below the
        minimum match of the model's calibration.
        """
        k = as_count(k, "picture")
        rerank = self.recipe.evaluation.rerank > 0 if rerank is None else rerank
        limit = self.min_match(min_match, rerank)
        wanted = read_query(text)
        query = self.embed_queries([wanted])
        places, vectors = embed(pictures)
        if not places:
            return Ranking((), 0, limit, None)
        near = CosineIndex(vectors).search(query, max(k, self.recipe.evaluation.rerank) if rerank else k)
        candidates = [places[i] for i in near.indices[0].tolist()]
        matches: list[float | None] = [None] * len(candidates)
        order = list(range(len(candidates)))
        if rerank:
            logits = self._pair_logits([pictures[place] for place in candidates], wanted.texts)
            probability, score = self._score_terms(logits, wanted, near.scores[0])
            matches, order = probability.tolist(), score.argsort(descending=True, stable=True).tolist()
        similarities = near.scores[0].tolist()
        hits = [
            Hit(candidates[i], picture_name(pictures[candidates[i]], candidates[i]), similarities[i], matches[i])
            for i in order
        ]
        shown = tuple(hit for hit in hits[:k] if hit.match is None or hit.match >= limit.least)
        return Ranking(shown, len(places), limit, hits[0].match)

    # ------------------------------------------------------------------ trained or not

    def missing(self, ability: str) -> str | None:
        """Explains why this model lacks an ability and names the recipe to train; None if it has it.

        `ability` is a name of `diptych.catalog.abilities()`; `embed` stands for `embed_images`, `embed_texts` and
        `rank`. Raises ValueError for a name that is none of these.
        """
        wanted = catalog.find_ability(ability)
        try:
            self._check(wanted)
        except ValueError as error:
            return str(error)
        return None

    def check_exact(self) -> None:
        """Raises ValueError for a model in lower precision, which has no weights to write any more."""
        if self.precision != "fp32":
            raise ValueError(f"{self.origin} was loaded in {self.precision}: load it in fp32 to export it")

    def _check(self, ability: Ability) -> None:
        """Raises ValueError for an ability that the model lacks."""
        if ability.calls is None:
            self._headed(ability)
        else:
            self._require(*ability.calls(self.recipe, self.model))

    def _require(self, *calls: str) -> None:
        """Raises ValueError if calls would use weights that were not trained with these encoders.

        The results would look like numbers all the same: the model of an earlier demo told the captions of 50 unseen
        scenes from others with an area under the curve of 0.997 by `match`, after fine-tuning for entailment with
        0.93, for VQA with 0.51.
        """
        used = (part for call in calls for part in self.model.call_parts.get(call, ()))
        if part := next((part for part in used if part in self.untrained), None):
            how = self._training(lambda task: any(ability.calls for ability in task.abilities), calls)
            raise ValueError(
                f"{self.origin} holds no trained {part}: its encoders were trained for something else. "
                f"Take a pre-trained checkpoint, or {how}"
            )

    def _headed(self, ability: Ability) -> Task:
        """Returns the task whose head has the ability. Raises ValueError for a model without such a head."""
        if self.task is not None and ability in self.task.abilities:
            return self.task
        how = self._training(lambda task: ability in task.abilities)
        raise ValueError(f"this model was not trained for {ability.about}: {how}")

    def _training(self, fits: Callable[[type[Task]], bool], calls: Sequence[str] = ()) -> str:
        """Names the recipes that train such a task and all `calls` of the model, if possible of this model's size."""
        recipes = [
            recipe
            for recipe in _recipes(*catalog.RECIPES.values())
            if type(recipe.model) is type(self.recipe.model)
            and fits(task := catalog.task_class(recipe.task))
            and {*calls} <= {*task.trained(recipe.task)}
        ]
        same_size = [recipe for recipe in recipes if recipe.model.width == self.recipe.model.width]
        names = [recipe.name for recipe in same_size or recipes]
        if not names:
            return "no recipe of the library trains it"
        return f"train {' or '.join(names)} (diptych train {names[0]} init_from=RUN, a pre-trained one)"

    # ------------------------------------------------------------------ batches

    def _rows(self, *inputs: Inputs[Any]) -> Iterator[range]:
        """Yields the numbers of the results, a batch at a time."""
        count, size = count_results(*inputs), self.recipe.evaluation.batch_size
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def _pixels(self, images: Inputs[Picture], rows: range) -> list[Float[Tensor, "3 H W"]]:
        """Reads the pixels of each row; each picture is opened once."""
        places = [images.place(row) for row in rows]
        pixels = {place: self.transform(self.open(images.items[place])) for place in dict.fromkeys(places)}
        return [pixels[place] for place in places]

    def _embed(
        self, pictures: Sequence[Any], skipped: list[BadRecord] | None
    ) -> tuple[list[int], Float[Tensor, "N E"]]:
        """Embeds the readable pictures and returns their places too. Others go to `skipped`; without it they raise."""
        places: list[int] = []
        vectors: list[Tensor] = []
        with evaluating(self.model):
            for start, batch in enumerate(self._batches(pictures)):
                pixels: list[Tensor] = []
                for place, picture in enumerate(batch, start * self.recipe.evaluation.batch_size):
                    try:
                        pixels.append(self.transform(open_any(picture, self.recipe.data.largest_pixels)))
                        places.append(place)
                    except BadRecord as error:
                        if skipped is None:
                            raise
                        skipped.append(error)
                    except ValueError as error:  # it is no picture at all, such as None in a column
                        if skipped is None:
                            raise
                        skipped.append(BadRecord(picture_name(picture, place), "not a picture", str(error)))
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
        pixels = torch.stack([self.transform(self.open(picture)) for picture in pictures])
        return self.model.image_state(pixels.to(self.device))

    def _pair_logits(self, images: Pictures, texts: Strings) -> Float[Tensor, "N M 2"]:
        """Computes the match logits of every pair, a batch of pictures at a time."""
        self._require(*OF_PAIRS)
        pictures, words = as_pictures(images).items, self.texts(texts)
        with evaluating(self.model):
            text_state = self._text_state(words)
            return torch.cat(
                [self._all_logits(self._encode(batch), words, text_state) for batch in self._batches(pictures)]
            )

    def _encoded_logits(self, images: State, texts: Strings) -> Float[Tensor, "N M 2"]:
        """Computes the match logits of every pair of texts with pictures that `encode` has encoded."""
        self._require(*OF_PAIRS)
        words, size = self.texts(texts), self.recipe.evaluation.batch_size
        with evaluating(self.model):
            text_state = self._text_state(words)
            parts = torch.arange(len(images), device=self.device).split(size)
            return torch.cat([self._all_logits(images[part], words, text_state) for part in parts])

    def _all_logits(self, images: State, words: Texts, text_state: Any) -> Float[Tensor, "N M 2"]:
        """Computes the match logits of every pair of some pictures and all texts."""
        image = torch.arange(len(images)).repeat_interleave(len(words))
        text = torch.arange(len(words)).repeat(len(images))
        return self._some_logits(images, words, text_state, image, text).view(len(images), len(words), 2)

    def _some_logits(
        self, images: State, words: Texts, text_state: Any, image: Int[Tensor, "P"], text: Int[Tensor, "P"]
    ) -> Float[Tensor, "P 2"]:
        """Computes the match logits of pairs in ascending order of their pictures."""
        logits = torch.empty(len(image), 2)
        rows = words.attention_mask.sum(dim=1)[text] + self.model.fused_image_tokens
        for call in plan_calls(image, rows, self.recipe.evaluation.tokens_per_call):
            logits[call] = match_logits(self.model, text_state, images, text[call], image[call], self.device)
        return logits

    def _score(
        self,
        logits: Float[Tensor, "N M 2"],
        texts: Strings,
        similarity: Float[Tensor, "N M"],
        calibrated: bool = True,
    ) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N M"]]:
        """Computes the probability that hits are right or, without calibration, ITM's own, and what orders them."""
        temperature = sum_temperature(self.model, self.recipe.evaluation)
        odds = evidence(logits[..., 1] - logits[..., 0], similarity, temperature)
        if self.calibration is None or not calibrated:
            return _softmax(logits), odds
        tokens = self.texts(texts).attention_mask.sum(dim=1)
        return self.calibration.probability(odds, tokens), odds

    def _score_terms(
        self, logits: Float[Tensor, "N T 2"], query: Query, similarity: Float[Tensor, "N"]
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """Computes what `score_queries` returns of a query from the match logits of all terms."""
        first, *others = query.terms
        match, score = (column[:, 0] for column in self._score(logits[:, :1], first.text, similarity[:, None]))
        if others:
            odds = logits[:, 1:, 1] - logits[:, 1:, 0]
            score = first.weight * score + odds @ torch.tensor([term.weight for term in others])
        return match, score

    def _batches(self, pictures: Sequence[Any]) -> Iterator[Sequence[Any]]:
        size = self.recipe.evaluation.batch_size
        return (pictures[start : start + size] for start in range(0, len(pictures), size))


def _distinct_texts(queries: Sequence[Query]) -> tuple[list[str], dict[str, int]]:
    """Returns the texts of queries, each once, and the place of each."""
    texts = list(dict.fromkeys(text for query in queries for text in query.texts))
    return texts, {text: place for place, text in enumerate(texts)}


def _sum_terms(vectors: Float[Tensor, "T E"], query: Query) -> Float[Tensor, "1 E"]:
    """Sums the vectors of a query's terms. Raises QueryError for terms that cancel each other."""
    if query.is_plain:
        return vectors
    summed = torch.tensor([[term.weight for term in query.terms]]) @ vectors
    if float(summed.norm()) < LEAST_LENGTH:
        raise QueryError(f"{' '.join(query.texts)}: what is wanted and what is unwanted cancel each other")
    return F.normalize(summed, dim=1)


@lru_cache(maxsize=1)
def _recipes(*makers: Callable[[], Recipe]) -> tuple[Recipe, ...]:
    """Makes all recipes once: a pool asks many models what they miss."""
    return tuple(make() for make in makers)


def _signature(ability: Ability) -> inspect.Signature:
    """Builds the signature of an ability's method: its pictures, its text, then its options with their defaults."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [*(picture.name for picture in ability.pictures), *([ability.text.name] if ability.text else ())]
    options = [inspect.Parameter(option.name, kind, default=option.default) for option in ability.options]
    return inspect.Signature([*(inspect.Parameter(name, kind) for name in names), *options])


def _softmax(logits: Float[Tensor, "*P 2"]) -> Float[Tensor, "*P"]:
    """Computes ITM's own probability of a match."""
    return logits.softmax(dim=-1)[..., 1]


def _option(option: Option, value: Any) -> Any:
    """Checks the value of an option. Raises ValueError for values that are not texts where texts are needed."""
    return value if option.kind == "count" or value is None else as_strings(value, option.name).items


def _shaped(results: Sequence[Result], *inputs: Inputs[Any]) -> Any:
    """Returns the single result if all inputs are single, otherwise a tuple."""
    return results[0] if all(each.single for each in inputs) else tuple(results)
