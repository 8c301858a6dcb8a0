"""Visual question answering with either of two heads: answers written by a decoder (ALBEF §5), or chosen (VLMo §4).

Both read the fused states of question and picture. What they share stands first: the record, the measure, the ability.

B questions, D width of the fused states, V vocabulary, N answers to all questions, R their words, M candidates,
k candidates or answers kept, L words of the longest, A answers of a closed set.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.answers import SHORTEST, answer_vocabulary, encode_answers
from diptych.data.collate import check_different, pad_texts
from diptych.data.loader import EvaluationBatch
from diptych.data.record import Question, has_word
from diptych.data.submissions import write_vqa
from diptych.data.tokenizer import Tokenizer
from diptych.facts import COMMONEST, Ability, Answer, Argument, Option, Submission, TaskReport, as_count
from diptych.losses.answers import answer_losses, closed_set_loss, closed_set_score, weighted_answer_loss
from diptych.losses.distillation import alpha_at
from diptych.metrics.accuracy import Estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, check_finite, has_label
from diptych.metrics.vqa import FULL, Normalisation, VqaAccuracy, vqa_accuracy
from diptych.nn.decoder import AnswerDecoder, KeyValueCache, QuestionStates
from diptych.nn.heads import classifier
from diptych.nn.packed import PackedSequences
from diptych.schema import Recipe, Released, SpecialIds, VqaClosedSetConfig, VqaDecoderConfig
from diptych.task import Model
from diptych.tasks.distilled import DistilledHeadTask, HeadConfig
from diptych.types import Batch, Joint, Losses, OutputPositions, Progress, QuestionBatch, Term, Texts, expect, to_device

CANDIDATES_PER_CALL = 512
"""Candidates scored at once, over all questions; bounds the memory that their word scores take."""
Answerer = Callable[[Batch, int], list[list[Answer]]]
"""Gives the k likeliest answers to each question of a batch, the likeliest first; fewer where there are no more. Raises
ValueError for a k below 1."""

# --------------------------------------------------------------------------- both heads


def fuse_questions(model: Model, batch: Batch, positions: OutputPositions = None) -> Joint:
    """Fuses each question with its image."""
    images, image_index = model.distinct_images(batch.pixels, batch.repeats)
    text_index = torch.arange(len(batch), device=batch.pixels.device)
    return model.fuse(model.text_state(batch.texts), images, text_index, image_index, positions)


def ask(model: Model, batch: Batch) -> QuestionStates:
    """Computes what a decoder reads: all fused states of each question."""
    joint = fuse_questions(model, batch, positions="all")
    assert joint.hidden is not None
    assert joint.mask is not None
    return QuestionStates(joint.hidden, joint.mask)


class QuestionAnswering(DistilledHeadTask):
    """Visual question answering, whatever the head."""

    record = Question
    purpose = "visual question answering"
    hub_tag = "visual-question-answering"
    abilities = (
        Ability(
            "answer",
            about="questions",
            example='model.answer("a.jpg", "what colour is the car?")      # likeliest answers',
            description="Answers questions about a picture.",
            text=Argument("question", "questions", "Questions about the picture."),
            options=(
                Option("k", "count", 3, "The largest number of answers.", most=100),
                Option(
                    "answers",
                    "texts",
                    None,
                    "Answers to choose from, for a model that generates or ranks. A closed-set model has its own.",
                ),
            ),
            result=tuple[Answer, ...],
            record=lambda text: Question(repr(text), None, text, (), ""),
        ),
    )
    submission = Submission("visual question answering", write_vqa)
    report = TaskReport(
        title="Visual question answering",
        measure="VQA accuracy",
        how="An answer scores by how many people gave it: three of ten make it right, as a mean over each nine of "
        "them, with answers normalised as for published numbers.",
        judged="answers to questions",
        measures={"accuracy.intended": "VQA accuracy, people's answers normalised too"},
        references=COMMONEST,
        lists_answers=True,
    )

    config: VqaDecoderConfig | VqaClosedSetConfig

    @classmethod
    def with_data_settings(cls, config: Any, records: Callable[[], Iterable[Question]]) -> Any:
        """Takes the most frequent answers of the training data, unless the configuration lists some."""
        if config.answers:
            return config
        return replace(config, answers=answer_vocabulary(records(), config.answer_count))

    @classmethod
    def without_data_settings(cls, config: Any) -> Any:
        return replace(config, answers=())

    @abstractmethod
    def answerer(self, tokenizer: Tokenizer, answers: Sequence[str] = ()) -> Answerer:
        """Prepares answering in words, with a choice among `answers` if there are some.

        Raises ValueError for `answers` that the head cannot choose from.
        """

    def responder(
        self, tokenizer: Tokenizer, k: int = 3, answers: Sequence[str] | None = None, **options: Any
    ) -> Callable[[Batch], list[tuple[Answer, ...]]]:
        """Gives the k likeliest answers to each question. Raises ValueError for an answer without words."""
        offered = tuple(dict.fromkeys(answers or ()))
        for answer in offered:
            if not any(letter.isalnum() for letter in answer):
                raise ValueError(f"{answer!r} is no answer: it holds no word")
        best = self.answerer(tokenizer, offered)
        return lambda batch: [tuple(likeliest) for likeliest in best(batch, k)]

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures VQA accuracy as published numbers were computed, and as intended (metrics/vqa.py).

        The questions about one picture are resampled together. Questions that nobody answered are answered, not scored.
        """
        best = self.answerer(tokenizer)
        records: list[Question] = []
        predictions: list[Answer] = []
        for chunk in batches:
            likeliest = [answers[0] for answers in best(chunk.batch, 1)]
            check_finite(torch.tensor([[answer.probability] for answer in likeliest]), chunk.records)
            predictions += likeliest
            records += chunk.records
        labelled = [place for place, record in enumerate(records) if has_label(record)]
        scores: dict[str, Estimate] = {}
        references: dict[str, Estimate] = {}
        question_scores: dict[int, float] = {}
        if labelled:
            people = [_people(records[place]) for place in labelled]
            groups = [records[place].image_id for place in labelled]

            def measure(texts: Sequence[str], normalisation: Normalisation) -> VqaAccuracy:
                return vqa_accuracy(texts, people, normalisation, groups=groups, resamples=resamples)

            texts = [predictions[place].text for place in labelled]
            released = measure(texts, "released")
            scores = {MAIN: released.overall, "accuracy.intended": measure(texts, "intended").overall}
            question_scores = dict(zip(labelled, (released.questions / 100).tolist(), strict=True))
            (commonest,) = answer_vocabulary((records[place] for place in labelled), 1)
            references = {"commonest": measure([commonest] * len(labelled), "released").overall}
        decisions = [
            Decision(
                record.id, answer.text, answer.probability, list(record.answers) or None, question_scores.get(place)
            )
            for place, (record, answer) in enumerate(zip(records, predictions, strict=True))
        ]
        return TaskEvaluation(scores, references, decisions=tuple(decisions))


def _people(record: Question, people: int = 10) -> Sequence[str]:
    """Lists the answer of each person. Weights, and people too few for VQA accuracy, become shares of ten people.

    Shares are rounded by largest remainders, so that the ten people give ten answers.
    """
    if not record.weights and (len(record.answers) == 1 or len(record.answers) > FULL):
        return record.answers
    total = sum(weight for _, weight in record.targets)
    shares = {answer: people * weight / total for answer, weight in record.targets}
    counts = {answer: int(share) for answer, share in shares.items()}
    by_remainder = sorted(shares, key=lambda answer: counts[answer] - shares[answer])
    for answer in by_remainder[: people - sum(counts.values())]:
        counts[answer] += 1
    return [answer for answer, count in counts.items() for _ in range(count)]


def _named(answers: Sequence[str], places: Int[Tensor, "B k"], values: Float[Tensor, "B k"]) -> list[list[Answer]]:
    """Pairs the chosen answers of each question with their probabilities."""
    return [
        [Answer(answers[place], value) for place, value in zip(*row, strict=True)]
        for row in zip(places.tolist(), values.tolist(), strict=True)
    ]


# --------------------------------------------------------------------------- answers that are written


@dataclass(frozen=True)
class Ranked:
    """The best candidates of a list for each question, the best first."""

    index: Int[Tensor, "B k"]
    """Places in the list."""
    score: Float[Tensor, "B k"]
    """The score that `VqaDecoderConfig.score` names, in nats."""
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


class VqaDecoding(QuestionAnswering):
    """A decoder that reads the question's fused states and learns P(answer). It ranks a list, or writes freely.

    `rank` and `generate` need the task in evaluation mode.
    """

    changeable = (
        "task.answers", "task.inference", "task.score", "task.candidates", "task.beams", "task.max_answer_tokens",
        "released.count_first_answer_token_twice",
    )  # fmt: skip

    head: AnswerDecoder
    momentum_head: AnswerDecoder | None
    config: VqaDecoderConfig

    @classmethod
    def trained(cls, config: HeadConfig) -> tuple[str, ...]:
        """Names the calls that it trains: the decoder reads all tokens of a pair, not the pooled vector."""
        return "fuse", "all_tokens"

    @classmethod
    def for_use(cls, config: Any) -> Any:
        """A decoder without a list to choose from writes, as published files do."""
        return replace(config, alpha=0.0, inference=config.inference if config.answers else "generate")

    @classmethod
    def meaning(cls, config: Any, **options: Any) -> str:
        if offered := options.get("answers"):
            return f"Shares among the {len(offered)} answers that you offered."
        if config.inference == "generate" or not config.answers:
            return "Generated word by word: shares among all possible texts."
        return "Shares among the answers of its training."

    def __init__(
        self, model: Model, config: VqaDecoderConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        if config.max_answer_tokens < 2:
            raise ValueError(f"task.max_answer_tokens={config.max_answer_tokens}: a word and [SEP] take two")
        head = AnswerDecoder(config.decoder, model.vocab_size, special.pad, model.joint_width())
        super().__init__(model, head, config, released)
        self.special = special

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Starts the decoder from those weights of the model that fit, unless a decoder is stored (ALBEF §5)."""
        return self.decoder_start(state) | super().adapt(state, origin)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Raises ValueError for a batch without answers."""
        needs = "questions with weighted answers"
        questions = expect(batch, QuestionBatch, needs)
        answers, answer_of = questions.answers, questions.answer_of
        if answers is None or answer_of is None or questions.weights is None:
            raise ValueError(f"this task needs {needs}, which the batch does not have")
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        # Each question is fused once; its N answers, in all R words, read it by cross-attention.
        logits, labels, answer = self.word_logits(self.model, self.head, questions, answers, answer_of)
        # Pseudo-targets: the momentum copy's distribution of every next word.
        momentum_logits = None
        if alpha and self.momentum_encoder is not None and self.momentum_head is not None:
            with torch.no_grad():
                parts = self.momentum_encoder, self.momentum_head
                momentum_logits, _, _ = self.word_logits(*parts, questions, answers, answer_of)
        # The loss of an answer is the sum over its words; answers count by the share of people who gave them.
        losses = answer_losses(logits, labels, answer, len(answers), momentum_logits, alpha)
        measures = {
            "word_accuracy": Term.over((logits.detach().argmax(1) == labels).float()),
            "alpha": Term.over(losses.new_full((1,), alpha)),
        }
        loss = weighted_answer_loss(losses, questions.weights, len(questions))
        return Losses.weighted(measures=measures, answer=(1.0, loss))

    @staticmethod
    def word_logits(
        model: Model, head: AnswerDecoder, batch: Batch, answers: Texts, answer_of: Int[Tensor, "N"]
    ) -> tuple[Float[Tensor, "R V"], Int[Tensor, "R"], Int[Tensor, "R"]]:
        """Computes the scores [R, V] of every next word, the right word [R], and the answer that it belongs to [R]."""
        ids, labels, packed = _next_words(answers)
        hidden, _ = head(ids, packed, ask(model, batch), answer_of)
        return head.word_logits(hidden), labels, packed.sequence_ids

    @classmethod
    def with_data_settings(cls, config: Any, records: Callable[[], Iterable[Question]]) -> Any:
        """Raises ValueError at once for a listed answer that no model could write, and not at the first validation."""
        if config.inference == "rank" and (empty := [answer for answer in config.answers if not has_word(answer)]):
            raise ValueError(f"task.answers holds {empty[0]!r}, which is no answer: it holds no word. Take it out")
        return super().with_data_settings(config, records)

    # ------------------------------------------------------------------ ranking a list

    @torch.no_grad()
    def rank(self, batch: Batch, candidates: Texts, k: int | None = None) -> Ranked:
        """Picks the k candidates ([CLS] … [SEP]) with the likeliest first words and orders them by their whole score.

        `k` defaults to `config.candidates` and is cut to the length of the list. Equal candidates keep the order of the
        list. Raises ValueError for a candidate without words.
        """
        k = min(self.config.candidates if k is None else k, len(candidates))
        if k < 1:
            raise ValueError(f"cannot rank {k} answers: give a list of one or more, and k of 1 or more")
        if int(candidates.attention_mask.sum(1).min()) < SHORTEST:
            raise ValueError("a candidate answer holds no word")
        questions = ask(self.model, batch)
        # log P(first word) of every candidate [B, M]; the k best go on.
        words, memory = self.first_words(questions)
        by_first_word = words[:, candidates.input_ids[:, 1]].sort(dim=1, descending=True, stable=True)
        chosen, first = by_first_word.indices[:, :k], by_first_word.values[:, :k]
        # The whole answers of these [B, k], some questions at a time.
        step = max(1, CANDIDATES_PER_CALL // k)
        scores = torch.cat(
            [
                self._scores(questions[part], [layer[part] for layer in memory], candidates, chosen[part], first[part])
                for part in (slice(start, start + step) for start in range(0, len(questions), step))
            ]
        )
        order = scores.sort(dim=1, descending=True, stable=True)
        return Ranked(chosen.gather(1, order.indices), order.values, order.values.softmax(1))

    def first_words(self, questions: QuestionStates) -> tuple[Float[Tensor, "B V"], tuple[KeyValueCache, ...]]:
        """Computes log P(first word) of each question's answer, and the keys and values of [CLS]."""
        here = torch.arange(len(questions), device=questions.hidden.device)
        return self._follow(here.new_full((len(questions),), self.special.cls), questions, here, ())

    def _follow(
        self,
        ids: Int[Tensor, "G"],
        questions: QuestionStates,
        question_of: Int[Tensor, "G"],
        past: Sequence[KeyValueCache],
    ) -> tuple[Float[Tensor, "G V"], tuple[KeyValueCache, ...]]:
        """Reads one more word of each of G answers and computes log P of the word behind it."""
        hidden, memory = self.head(ids, PackedSequences(torch.ones_like(ids)), questions, question_of, past)
        return F.log_softmax(self.head.word_logits(hidden), dim=1), memory

    def _scores(
        self,
        questions: QuestionStates,
        memory: Sequence[KeyValueCache],
        candidates: Texts,
        chosen: Int[Tensor, "b k"],
        first: Float[Tensor, "b k"],
    ) -> Float[Tensor, "b k"]:
        """Scores the chosen candidates. `first` and `memory` hold what [CLS], with which all begin, has given."""
        which = chosen.flatten()
        question_of = torch.arange(len(questions), device=which.device).repeat_interleave(chosen.shape[1])
        rest = Texts(candidates.input_ids[which, 1:], candidates.attention_mask[which, 1:])
        ids, labels, packed = _next_words(rest)
        hidden, _ = self.head(ids, packed, questions, question_of, [layer.select(question_of) for layer in memory])
        loss = answer_losses(self.head.word_logits(hidden), labels, packed.sequence_ids, len(which)).view_as(first)
        if self.released.count_first_answer_token_twice:
            return 2 * first - loss
        if self.config.score == "mean":
            return (first - loss) / (1 + packed.lengths.view_as(first))
        return first - loss

    # ------------------------------------------------------------------ writing freely

    @torch.no_grad()
    def generate(self, batch: Batch, beams: int | None = None) -> Generated:
        """Writes answers by beam search: after each word, the likeliest `beams` beginnings of each question go on.

        One beam is greedy. An answer holds at least one word, and [SEP] at place `config.max_answer_tokens` at the
        latest. Its probability is the decoder's own: words that cannot stand at a place keep their share.
        Raises ValueError for a number of beams below 1 or beyond the words that an answer can begin with.
        """
        beams = self.config.beams if beams is None else beams
        questions = ask(self.model, batch)
        words, memory = self.first_words(questions)
        following = self._allowed(words, place=0)
        if not 1 <= beams <= int((~following[0].isneginf()).sum()):
            raise ValueError(f"cannot keep {beams} beams: at least 1, at most one for each word to begin with")
        log_probability, word = following.topk(beams, dim=1)
        answers = Generated(word[:, :, None], log_probability)
        # All beams of all questions are one batch of G = B · beams answers; `parent` is the beam that each continues.
        question_of = torch.arange(len(questions), device=word.device).repeat_interleave(beams)
        parent = question_of
        for place in range(1, self.config.max_answer_tokens):
            last = answers.ids[:, :, -1]
            ended = (last == self.special.sep) | (last == self.special.pad)
            if bool(ended.all()):
                break
            past = [layer.select(parent) for layer in memory]
            words, memory = self._follow(last.flatten(), questions, question_of, past)
            following = self._allowed(words, place).unflatten(0, (len(questions), beams))
            answers, chosen = self._extend(answers, following, ended)
            parent = question_of * beams + chosen.flatten()
        return answers

    def _allowed(self, words: Float[Tensor, "G V"], place: int) -> Float[Tensor, "G V"]:
        """Sets log P of the words that cannot stand at a place to −∞."""
        special = self.special
        if place == self.config.max_answer_tokens - 1:
            only = torch.full_like(words, -torch.inf)
            only[:, special.sep] = words[:, special.sep]
            return only
        never = [special.pad, special.unk, special.cls, special.mask] + [special.sep] * (place == 0)
        return words.index_fill(1, torch.tensor(never, device=words.device), -torch.inf)

    def _extend(
        self, answers: Generated, following: Float[Tensor, "B k V"], ended: Bool[Tensor, "B k"]
    ) -> tuple[Generated, Int[Tensor, "B k"]]:
        """Finds the likeliest k longer answers, and the answer that each of them continues. Ended ones get padding."""
        beams, vocabulary = following.shape[1:]
        padding = following.new_full((vocabulary,), -torch.inf)
        padding[self.special.pad] = 0.0
        totals = answers.log_probability[:, :, None] + torch.where(ended[:, :, None], padding, following)
        best = totals.flatten(1).topk(beams, dim=1)
        parent, word = best.indices // vocabulary, best.indices % vocabulary
        before = answers.ids.gather(1, parent[:, :, None].expand_as(answers.ids))
        return Generated(torch.cat([before, word[:, :, None]], dim=2), best.values), parent

    # ------------------------------------------------------------------ answering in words

    def answerer(self, tokenizer: Tokenizer, answers: Sequence[str] = ()) -> Answerer:
        """Prepares answering from `answers` if there are some, otherwise as `config.inference` says.

        A list is encoded once. Raises ValueError for a decoder that is to choose from a list and has none.
        """
        listed = tuple(answers) or self.config.answers
        if not answers and self.config.inference != "rank":
            return lambda batch, k: self._written(batch, k, tokenizer)
        if not listed:
            raise ValueError("task.answers is empty: name the answers to choose from, or set inference=generate")
        candidates = pad_texts(encode_answers(listed, tokenizer), tokenizer.pad_id)
        if answers:
            check_different(listed, candidates)

        def chosen(batch: Batch, k: int) -> list[list[Answer]]:
            k = as_count(k, "answer")
            ranked = self.rank(batch, to_device(candidates, batch.pixels.device), max(k, self.config.candidates))
            return _named(listed, ranked.index[:, :k], ranked.probability[:, :k])

        return chosen

    def _written(self, batch: Batch, k: int, tokenizer: Tokenizer) -> list[list[Answer]]:
        """Writes the k likeliest answers. Beams that spell the same text count once, by the likeliest."""
        k = as_count(k, "answer")
        generated = self.generate(batch, max(k, self.config.beams))
        answers = []
        for ids, probabilities in zip(generated.ids.tolist(), generated.probability.tolist(), strict=True):
            texts = [tokenizer.decode(beam) for beam in ids]
            likeliest = dict(zip(reversed(texts), reversed(probabilities), strict=True))
            answers.append([Answer(text, likeliest[text]) for text in dict.fromkeys(texts)][:k])
        return answers


def _next_words(texts: Texts) -> tuple[Int[Tensor, "R"], Int[Tensor, "R"], PackedSequences]:
    """Packs every token but each text's last, with the tokens that follow them."""
    follows = texts.attention_mask[:, 1:].bool()
    return texts.input_ids[:, :-1][follows], texts.input_ids[:, 1:][follows], PackedSequences(follows.sum(1))


# --------------------------------------------------------------------------- answers that are chosen


class VqaClosedSet(QuestionAnswering):
    """A classifier on the pooled vector that gives each answer of a closed set its own probability."""

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
        # One answer among all is right. With even odds for each at the start, the first gradients would be so large
        # that Adam's steps stay too short for a thousand steps (docs/decisions.md 37).
        nn.init.constant_(last.bias, -math.log(len(config.answers)))
        super().__init__(model, head, config, released)

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Takes over a classifier only if it has the same answers in the same order, even where the shapes fit."""
        start = super().adapt(state, origin)
        if isinstance(origin.task, VqaClosedSetConfig) and origin.task.answers == self.config.answers:
            return start
        return {name: value for name, value in start.items() if name.startswith(("model.", "momentum_encoder."))}

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Raises ValueError for a batch without scores, or with scores of another set of answers."""
        questions, answers = expect(batch, QuestionBatch, "questions with scored answers"), len(self.config.answers)
        if questions.scores is None or questions.scores.shape[1] != answers:
            raise ValueError(f"this task needs a score for each of its {answers} answers, and the batch has other ones")
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        logits = self.logits(questions)
        # Pseudo-targets: the momentum copy's probability of each answer.
        momentum_logits = None
        if alpha and self.momentum_encoder is not None and self.momentum_head is not None:
            with torch.no_grad():
                momentum_logits = self.momentum_head(fuse_questions(self.momentum_encoder, questions).pooled)
        measures = {
            "answer_score": closed_set_score(logits, questions.scores),
            "alpha": Term.over(logits.new_full((1,), alpha)),
        }
        # Binary cross-entropy of each answer by itself with how right it is, in 0..1 (VLMo §4).
        loss = closed_set_loss(logits, questions.scores, momentum_logits, alpha)
        return Losses.weighted(measures=measures, answer=(1.0, loss))

    def logits(self, batch: Batch) -> Float[Tensor, "B A"]:
        """Computes a score for each answer, whose sigmoid is its probability."""
        return self.head(fuse_questions(self.model, batch).pooled).float()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B A"]:
        """Computes the probability that each answer is right, whatever the others are. In evaluation mode."""
        return torch.sigmoid(self.logits(batch))

    @classmethod
    def closed_set(cls, config: VqaClosedSetConfig) -> tuple[str, ...]:
        return config.answers

    @classmethod
    def classes(cls, config: VqaClosedSetConfig) -> tuple[tuple[str, ...], str]:
        return config.answers, "sigmoid"

    @classmethod
    def with_placeholders(cls, config: VqaClosedSetConfig) -> VqaClosedSetConfig:
        """Stands in made-up names for as many answers as training will find."""
        if config.answers:
            return config
        return replace(config, answers=tuple(f"answer {number}" for number in range(config.answer_count)))

    @classmethod
    def meaning(cls, config: VqaClosedSetConfig, **options: Any) -> str:
        return f"Each by itself: how likely it is right. {len(config.answers):,} answers to choose from."

    def answerer(self, tokenizer: Tokenizer, answers: Sequence[str] = ()) -> Answerer:
        if answers:
            raise ValueError(
                f"a closed set has its own {len(self.config.answers)} answers: only a decoder takes others"
            )

        @torch.no_grad()
        def chosen(batch: Batch, k: int) -> list[list[Answer]]:
            k = as_count(k, "answer")
            # By logits: probabilities near 1 are equal long before the logits are.
            top = self.logits(batch).sort(dim=1, descending=True, stable=True)
            return _named(self.config.answers, top.indices[:, :k], top.values[:, :k].sigmoid())

        return chosen
