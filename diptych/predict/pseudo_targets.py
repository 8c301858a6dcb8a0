"""Shows the pseudo-targets of the momentum encoder of an ALBEF pre-training (ALBEF §3.2, §3.3).

Prediction does not use the momentum encoder, so `diptych.load` leaves it out; here it is loaded from the same
checkpoint.

R masked pieces of a word, V vocabulary, M texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.checkpoints.sizes import check_size
from diptych.data.tokenizer import CONTINUES, Tokenizer
from diptych.models.albef import Albef
from diptych.predict.inputs import Picture
from diptych.predict.predictor import Predictor
from diptych.search.contract import evaluating
from diptych.types import Texts, TokenPositions, to_device

Guesses = tuple[tuple[str, float], ...]
"""Pieces of words with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class HiddenPiece:
    """A masked piece of a word, and the pieces that model and momentum encoder expect in its place."""

    before: str
    label: str
    after: str
    student: Guesses
    momentum_encoder: Guesses


@dataclass(frozen=True)
class MomentumEncoder:
    """A pre-trained ALBEF with its momentum encoder."""

    student: Predictor
    network: Albef

    @classmethod
    def beside(cls, student: Predictor) -> MomentumEncoder:
        """Loads the momentum encoder from the model's own checkpoint. Raises ValueError if it has none."""
        if not catalog.task_class(student.recipe.task).keeps_momentum_encoder:
            raise ValueError(f"{student.origin} holds no momentum encoder: only ALBEF's pre-training keeps one")
        checkpoint, recipe = store.load_from(student.origin), student.recipe
        shapes = checkpoint.stored("weights").shapes
        check_size(lambda: catalog.build_task(recipe, student.tokenizer), recipe, shapes, checkpoint.folder)
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn from the run's seed, and not kept
            task = catalog.build_task(student.recipe, student.tokenizer)
        store.load_into(task, checkpoint.weights(), checkpoint.folder)
        assert isinstance(task.momentum_encoder, Albef)
        return cls(student, task.momentum_encoder.to(student.device).eval())

    def words(self, picture: Picture, text: str, word: str | None = None, k: int = 5) -> tuple[HiddenPiece, ...]:
        """Predicts a masked word of the text, or each of its words in turn, by both encoders.

        A word is masked as a whole; each of its pieces is predicted. Raises ValueError for a word that is not in the
        text.
        """
        texts = self.student.texts(text)
        ids, tokenizer = texts.input_ids[0].tolist(), self.student.tokenizer
        words = _words(ids, tokenizer)
        if word is not None and word.strip():
            words = [places for places in words if tokenizer.decode(ids[i] for i in places) == word.strip().lower()]
            if not words:
                there = ", ".join(
                    dict.fromkeys(tokenizer.decode(ids[i] for i in places) for places in _words(ids, tokenizer))
                )
                raise ValueError(f"'{word.strip()}' is no word of the text: hide one of {there}")
        hidden = texts.input_ids.repeat(len(words), 1)
        for row, places in enumerate(words):
            hidden[row, places] = tokenizer.mask_id
        pairs = [row for row, places in enumerate(words) for _ in places]
        rows = TokenPositions(torch.tensor(pairs), torch.tensor([place for places in words for place in places]))
        batch = Texts(hidden, texts.attention_mask.repeat(len(words), 1))
        student, momentum_encoder = (
            self._guess(model, picture, batch, rows, k) for model in (self.student.model, self.network)
        )
        spans = [places for places in words for _ in places]
        return tuple(
            HiddenPiece(
                tokenizer.decode(ids[: span[0]]), tokenizer.token(ids[place]), tokenizer.decode(ids[span[-1] + 1 :]),
                student[row], momentum_encoder[row],
            )
            for row, (place, span) in enumerate(zip(rows.position.tolist(), spans, strict=True))
        )  # fmt: skip

    def texts(self, picture: Picture, texts: Sequence[str], k: int = 5) -> tuple[tuple[str, float], ...]:
        """Finds the k texts that the momentum encoder prefers, with their shares among all texts of the call.

        The shares are made as the pseudo-targets of ITC: the softmax of the momentum encoder's similarities divided by
        the model's temperature.
        """
        model, words = self.network, to_device(self.student.texts(texts), self.student.device)
        with evaluating(model):
            image = model.embed_image(model.image_state(self._pixels(picture)))["main"]
            text = torch.cat(
                [
                    model.embed_text(model.text_state(words[rows]))["main"]
                    for rows in torch.arange(len(words), device=self.student.device).split(
                        self.student.recipe.evaluation.batch_size
                    )
                ]
            )
            shares = (image @ text.T / self.student.model.temperature()).softmax(dim=1)[0]
        best = shares.topk(min(k, len(texts)))
        return tuple(
            (texts[place], share) for place, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )

    def _pixels(self, picture: Picture) -> Float[Tensor, "1 3 H W"]:
        return self.student.transform(self.student.open(picture))[None].to(self.student.device)

    def _guess(self, model: object, picture: Picture, texts: Texts, rows: TokenPositions, k: int) -> list[Guesses]:
        """Predicts the k likeliest pieces at each position."""
        assert isinstance(model, Albef)
        texts, rows = to_device(texts, self.student.device), to_device(rows, self.student.device)
        with evaluating(model):
            pairs = torch.arange(len(texts), device=self.student.device)
            joint = model.fuse(
                model.text_state(texts), model.image_state(self._pixels(picture)), pairs, torch.zeros_like(pairs), rows
            )
            assert joint.hidden is not None
            best = model.word_logits(joint.hidden).float().softmax(dim=1).topk(k)
        token = self.student.tokenizer.token
        return [
            tuple((token(number), share) for number, share in zip(numbers, shares, strict=True))
            for numbers, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _words(ids: Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Groups the positions of a text's pieces by word."""
    words: list[list[int]] = []
    for place, number in enumerate(ids):
        if number in tokenizer.special_ids:
            continue
        if words and words[-1][-1] == place - 1 and tokenizer.token(number).startswith(CONTINUES):
            words[-1].append(place)
        else:
            words.append([place])
    return words
