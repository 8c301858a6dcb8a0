"""Visual question answering with either of two heads: answers written by a decoder (ALBEF §5), or chosen (VLMo §4).

B questions, D width of the fused states, V vocabulary, N answers to all questions, R their words, M candidates,
k candidates or answers kept, L words of the longest, A answers of a closed set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.answers import SHORTEST, encode_answers
from diptych.data.collate import pad_texts
from diptych.data.tokenizer import Tokenizer
from diptych.losses.answers import answer_losses, closed_set_loss, closed_set_score, weighted_answer_loss
from diptych.losses.distillation import alpha_at
from diptych.nn.decoder import AnswerDecoder, KeyValueCache, QuestionStates
from diptych.nn.heads import classifier
from diptych.nn.packed import PackedSequences
from diptych.schema import Recipe, Released, SpecialIds, VqaClosedSetConfig, VqaDecoderConfig
from diptych.task import Model
from diptych.tasks.distilled import HeadConfig, TaughtTask
from diptych.types import Batch, Joint, Losses, OutputPositions, Progress, QuestionBatch, Term, Texts, expect, to_device

CANDIDATES_PER_CALL = 512
"""Candidates scored at once, over all questions; bounds the memory that their word scores take."""

# --------------------------------------------------------------------------- what both heads share


def fuse_questions(model: Model, batch: Batch, positions: OutputPositions = None) -> Joint:
    """Each question with its image."""
    images, image_index = model.distinct_images(batch.pixels)
    text_index = torch.arange(len(batch), device=batch.pixels.device)
    return model.fuse(model.text_state(batch.texts), images, text_index, image_index, positions)


def ask(model: Model, batch: Batch) -> QuestionStates:
    """What a decoder reads: all fused states of each question."""
    joint = fuse_questions(model, batch, positions="all")
    assert joint.hidden is not None
    assert joint.mask is not None
    return QuestionStates(joint.hidden, joint.mask)


# --------------------------------------------------------------------------- answers that are written


@dataclass(frozen=True)
class Ranked:
    """The best of a list of candidates for each question, the best first."""

    index: Int[Tensor, "B k"]
    """Places in the list."""
    score: Float[Tensor, "B k"]
    """What `VqaDecoderConfig.score` names, in nats."""
    probability: Float[Tensor, "B k"]
    """Softmax of the scores: an answer's share among these k."""


@dataclass(frozen=True)
class Generated:
    """Answers written freely to each question, the likeliest first."""

    ids: Int[Tensor, "B k L"]
    """Words and [SEP], then padding."""
    log_probability: Float[Tensor, "B k"]
    """log P(answer, [SEP] included) in nats, among all that could be written."""

    @property
    def probability(self) -> Float[Tensor, "B k"]:
        return self.log_probability.exp()


class VqaDecoding(TaughtTask):
    """A decoder that reads the question's fused states. It learns P(answer); it ranks a list, or writes freely.

    `rank` and `generate` want the task in evaluation mode.
    """

    head: AnswerDecoder
    teacher_head: AnswerDecoder | None
    config: VqaDecoderConfig

    @classmethod
    def trained(cls, config: HeadConfig) -> tuple[str, ...]:
        """The decoder reads rows."""
        return "fuse", "all_tokens"

    def __init__(
        self, model: Model, config: VqaDecoderConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        if config.max_answer_tokens < 2:
            raise ValueError(f"task.max_answer_tokens={config.max_answer_tokens}: a word and [SEP] take two")
        width = model.joint_width()
        with torch.no_grad():
            words = model.word_logits(next(model.parameters()).new_zeros(1, width)).shape[1]
        super().__init__(model, AnswerDecoder(config.decoder, words, special.pad, width), config, released)
        self.special = special

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """The decoder begins with what the model has for it and fits, unless a decoder is stored (ALBEF §5)."""
        own = {name: value.shape for name, value in self.state_dict().items()}
        start = self.model.decoder_start(state)
        fits = {name: value for name, value in start.items() if own.get(name) == value.shape}
        return fits | super().adapt(state, origin)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Raises ValueError for a batch without answers."""
        needs = "questions with weighted answers"
        given = expect(batch, QuestionBatch, needs)
        if given.answers is None or given.answer_of is None or given.weights is None:
            raise ValueError(f"this task needs {needs}, which the batch does not have")
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        logits, labels, answer = self.word_logits(self.model, self.head, given, given.answers, given.answer_of)
        teacher_logits = None
        if alpha and self.teacher is not None and self.teacher_head is not None:
            with torch.no_grad():
                parts = self.teacher, self.teacher_head
                teacher_logits, _, _ = self.word_logits(*parts, given, given.answers, given.answer_of)
        losses = answer_losses(logits, labels, answer, len(given.answers), teacher_logits, alpha)
        measures = {
            "word_accuracy": Term.over((logits.detach().argmax(1) == labels).float()),
            "alpha": Term.over(losses.new_full((1,), alpha)),
        }
        return Losses.weighted(measures=measures, answer=(1.0, weighted_answer_loss(losses, given.weights, len(given))))

    @staticmethod
    def word_logits(
        model: Model, head: AnswerDecoder, batch: Batch, answers: Texts, answer_of: Int[Tensor, "N"]
    ) -> tuple[Float[Tensor, "R V"], Int[Tensor, "R"], Int[Tensor, "R"]]:
        """Scores of each next word, the word that stands there, and its answer."""
        ids, labels, packed = _next_words(answers)
        hidden, _ = head(ids, packed, ask(model, batch), answer_of)
        return head.word_logits(hidden), labels, packed.sequence_ids

    # ------------------------------------------------------------------ ranking a list

    @torch.no_grad()
    def rank(self, batch: Batch, candidates: Texts, k: int | None = None) -> Ranked:
        """The k candidates ([CLS] … [SEP]) with the likeliest first words, ordered by the score of the whole answer.

        `k`: `config.candidates`, and no more than there are. Equal ones keep the order of the list. Raises ValueError
        for a candidate without words.
        """
        k = min(self.config.candidates if k is None else k, len(candidates))
        if k < 1:
            raise ValueError(f"cannot rank {k} answers: give a list of one or more, and k of 1 or more")
        if int(candidates.attention_mask.sum(1).min()) < SHORTEST:
            raise ValueError("a candidate answer holds no word")
        asked = ask(self.model, batch)
        words, memory = self.first_words(asked)
        first = words[:, candidates.input_ids[:, 1]].sort(dim=1, descending=True, stable=True)
        chosen, first_words = first.indices[:, :k], first.values[:, :k]
        step = max(1, CANDIDATES_PER_CALL // k)
        cuts = [slice(start, start + step) for start in range(0, len(asked), step)]
        scores = torch.cat(
            [
                self._scores(asked[cut], [one[cut] for one in memory], candidates, chosen[cut], first_words[cut])
                for cut in cuts
            ]
        )
        order = scores.sort(dim=1, descending=True, stable=True)
        return Ranked(chosen.gather(1, order.indices), order.values, order.values.softmax(1))

    def first_words(self, asked: QuestionStates) -> tuple[Float[Tensor, "B V"], tuple[KeyValueCache, ...]]:
        """log P(first word) of each question's answer, and what goes on from [CLS]."""
        questions = torch.arange(len(asked), device=asked.hidden.device)
        return self._follow(questions.new_full((len(asked),), self.special.cls), asked, questions, ())

    def _follow(
        self, ids: Int[Tensor, "G"], asked: QuestionStates, question_of: Int[Tensor, "G"], past: Sequence[KeyValueCache]
    ) -> tuple[Float[Tensor, "G V"], tuple[KeyValueCache, ...]]:
        """One more word for each of G answers: log P of the words behind it."""
        hidden, memory = self.head(ids, PackedSequences(torch.ones_like(ids)), asked, question_of, past)
        return F.log_softmax(self.head.word_logits(hidden), dim=1), memory

    def _scores(
        self,
        asked: QuestionStates,
        memory: Sequence[KeyValueCache],
        candidates: Texts,
        chosen: Int[Tensor, "b k"],
        first: Float[Tensor, "b k"],
    ) -> Float[Tensor, "b k"]:
        """Scores of chosen candidates; `first` and `memory` hold what [CLS], which all begin with, has given."""
        which = chosen.flatten()
        question_of = torch.arange(len(asked), device=which.device).repeat_interleave(chosen.shape[1])
        rest = Texts(candidates.input_ids[which, 1:], candidates.attention_mask[which, 1:])
        ids, labels, packed = _next_words(rest)
        hidden, _ = self.head(ids, packed, asked, question_of, [one.select(question_of) for one in memory])
        loss = answer_losses(self.head.word_logits(hidden), labels, packed.sequence_ids, len(which)).view_as(first)
        if self.released.count_first_answer_token_twice:
            return 2 * first - loss
        if self.config.score == "mean":
            return (first - loss) / (1 + packed.lengths.view_as(first))
        return first - loss

    # ------------------------------------------------------------------ writing freely

    @torch.no_grad()
    def generate(self, batch: Batch, beams: int | None = None) -> Generated:
        """Answers word by word: after each, the likeliest `beams` beginnings of each question go on; 1 is greedy.

        An answer holds a word at least, and [SEP] in the place `config.max_answer_tokens` at the latest. Its
        probability is the decoder's own: what cannot stand in a place leaves its share to nobody.
        Raises ValueError for a number of beams below 1 or beyond the words that an answer can begin with.
        """
        beams = self.config.beams if beams is None else beams
        asked = ask(self.model, batch)
        words, memory = self.first_words(asked)
        following = self._allowed(words, place=0)
        if not 1 <= beams <= int((~following[0].isneginf()).sum()):
            raise ValueError(f"cannot keep {beams} beams: at least 1, at most one for each word to begin with")
        log_probability, word = following.topk(beams, dim=1)
        found = Generated(word[:, :, None], log_probability)
        question_of = torch.arange(len(asked), device=word.device).repeat_interleave(beams)
        parent = question_of
        for place in range(1, self.config.max_answer_tokens):
            last = found.ids[:, :, -1]
            ended = (last == self.special.sep) | (last == self.special.pad)
            if bool(ended.all()):
                break
            past = [one.select(parent) for one in memory]
            words, memory = self._follow(last.flatten(), asked, question_of, past)
            following = self._allowed(words, place).unflatten(0, (len(asked), beams))
            found, chosen = self._extend(found, following, ended)
            parent = question_of * beams + chosen.flatten()
        return found

    def _allowed(self, words: Float[Tensor, "G V"], place: int) -> Float[Tensor, "G V"]:
        """log P of the words that can stand in a place, −∞ for the others."""
        special = self.special
        if place == self.config.max_answer_tokens - 1:
            only = torch.full_like(words, -torch.inf)
            only[:, special.sep] = words[:, special.sep]
            return only
        never = [special.pad, special.unk, special.cls, special.mask] + [special.sep] * (place == 0)
        return words.index_fill(1, torch.tensor(never, device=words.device), -torch.inf)

    def _extend(
        self, found: Generated, following: Float[Tensor, "B k V"], ended: Bool[Tensor, "B k"]
    ) -> tuple[Generated, Int[Tensor, "B k"]]:
        """The likeliest k longer answers, and which answer each of them goes on from; ended ones stay as they are."""
        beams, vocabulary = following.shape[1:]
        padding = following.new_full((vocabulary,), -torch.inf)
        padding[self.special.pad] = 0.0
        totals = found.log_probability[:, :, None] + torch.where(ended[:, :, None], padding, following)
        best = totals.flatten(1).topk(beams, dim=1)
        parent, word = best.indices // vocabulary, best.indices % vocabulary
        before = found.ids.gather(1, parent[:, :, None].expand_as(found.ids))
        return Generated(torch.cat([before, word[:, :, None]], dim=2), best.values), parent


def _next_words(texts: Texts) -> tuple[Int[Tensor, "R"], Int[Tensor, "R"], PackedSequences]:
    """Every token but each text's last, the tokens that follow them, and how they lie."""
    follows = texts.attention_mask[:, 1:].bool()
    return texts.input_ids[:, :-1][follows], texts.input_ids[:, 1:][follows], PackedSequences(follows.sum(1))


# --------------------------------------------------------------------------- answers that are chosen


class VqaClosedSet(TaughtTask):
    """A classifier on the pooled vector, that gives each answer of a closed set its own probability."""

    config: VqaClosedSetConfig

    def __init__(
        self, model: Model, config: VqaClosedSetConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        """Raises ValueError if the closed set is empty."""
        if not config.answers:
            raise ValueError("task.answers is empty: name the answers to choose from, or take them from training data")
        head = classifier(model.joint_width(), len(config.answers), config.head)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        # One answer of all is right: begun at even odds for each, the first gradients are so large that Adam steps
        # too short for a thousand steps afterwards (docs/decisions.md 37).
        nn.init.constant_(last.bias, -math.log(len(config.answers)))
        super().__init__(model, head, config, released)

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """A classifier of other answers, or of the same in another order, is not taken over, though it may fit."""
        found = super().adapt(state, origin)
        if isinstance(origin.task, VqaClosedSetConfig) and origin.task.answers == self.config.answers:
            return found
        return {name: value for name, value in found.items() if name.startswith(("model.", "teacher."))}

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Raises ValueError for a batch without scores, or with scores of another set of answers."""
        given, answers = expect(batch, QuestionBatch, "questions with scored answers"), len(self.config.answers)
        if given.scores is None or given.scores.shape[1] != answers:
            raise ValueError(f"this task needs a score for each of its {answers} answers, and the batch has other ones")
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        logits = self.logits(given)
        teacher_logits = None
        if alpha and self.teacher is not None and self.teacher_head is not None:
            with torch.no_grad():
                teacher_logits = self.teacher_head(fuse_questions(self.teacher, given).pooled)
        measures = {
            "answer_score": closed_set_score(logits, given.scores),
            "alpha": Term.over(logits.new_full((1,), alpha)),
        }
        loss = closed_set_loss(logits, given.scores, teacher_logits, alpha)
        return Losses.weighted(measures=measures, answer=(1.0, loss))

    def logits(self, batch: Batch) -> Float[Tensor, "B A"]:
        """A score for each answer; the sigmoid makes it a probability."""
        return self.head(fuse_questions(self.model, batch).pooled).float()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B A"]:
        """The probability that each answer is right, whatever the others are. In evaluation mode."""
        return torch.sigmoid(self.logits(batch))


# --------------------------------------------------------------------------- answers in words, with either head


@dataclass(frozen=True)
class Answer:
    """An answer to a question."""

    text: str
    probability: float
    """Of a closed set: that it is right, whatever the others are. Of a list: its share among the candidates scored.
    Written: its share among all that could be written."""


class Answerer:
    """Answers in words. The list of a decoder is encoded once."""

    def __init__(self, task: VqaDecoding | VqaClosedSet, tokenizer: Tokenizer, answers: Sequence[str] = ()) -> None:
        """A decoder chooses from `answers`, where there are some, whatever its configuration says.

        Raises ValueError for a decoder that is to choose from a list and has none, and for `answers` to a closed set.
        """
        self.task, self.tokenizer = task, tokenizer
        self.answers = tuple(answers) or task.config.answers
        self.candidates: Texts | None = None
        if isinstance(task, VqaClosedSet):
            if answers:
                raise ValueError(
                    f"a closed set has its own {len(task.config.answers)} answers: only a decoder takes others"
                )
        elif answers or task.config.inference == "rank":
            if not self.answers:
                raise ValueError("task.answers is empty: name the answers to choose from, or set inference=generate")
            self.candidates = pad_texts(encode_answers(self.answers, tokenizer), tokenizer.pad_id)

    @torch.no_grad()
    def best(self, batch: Batch, k: int = 1) -> list[list[Answer]]:
        """The k likeliest answers to each question, the likeliest first; fewer where there are no more.

        Raises ValueError for a k below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one answer")
        if isinstance(self.task, VqaClosedSet):
            # By logits: probabilities near 1 are equal long before what they were made of.
            top = self.task.logits(batch).sort(dim=1, descending=True, stable=True)
            return _named(self.task.config.answers, top.indices[:, :k], top.values[:, :k].sigmoid())
        if self.candidates is None:
            return self._written(self.task, batch, k)
        candidates = to_device(self.candidates, batch.pixels.device)
        ranked = self.task.rank(batch, candidates, max(k, self.task.config.candidates))
        return _named(self.answers, ranked.index[:, :k], ranked.probability[:, :k])

    def _written(self, task: VqaDecoding, batch: Batch, k: int) -> list[list[Answer]]:
        made = task.generate(batch, max(k, task.config.beams))
        found = []
        for ids, probabilities in zip(made.ids.tolist(), made.probability.tolist(), strict=True):
            texts = [self.tokenizer.decode(one) for one in ids]
            likeliest = dict(zip(reversed(texts), reversed(probabilities), strict=True))
            found.append([Answer(text, likeliest[text]) for text in dict.fromkeys(texts)][:k])
        return found


def _named(answers: Sequence[str], places: Int[Tensor, "B k"], values: Float[Tensor, "B k"]) -> list[list[Answer]]:
    return [
        [Answer(answers[place], value) for place, value in zip(*row, strict=True)]
        for row in zip(places.tolist(), values.tolist(), strict=True)
    ]
