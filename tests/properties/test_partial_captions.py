"""Tests that captions are shown in part as configured, and that texts known to be true of an image are no negatives."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.catalog import build_task, find_recipe
from diptych.data.collate import identity_number
from diptych.data.loader import PairLoader, evaluation_batches
from diptych.data.phrases import claims_of, draw_part, parts_of, said_by
from diptych.data.record import Record
from diptych.data.sources.scenes import open_scenes
from diptych.data.tokenizer import Tokenizer
from diptych.evaluate.nouns import evaluate_nouns, noun_measures
from diptych.losses.contrastive import known_true
from diptych.metrics.roc import roc_areas
from diptych.nn.gather import Processes
from diptych.nn.queue import FeatureQueue
from diptych.predict.loading import make_predictor
from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.run.splits import check_partial
from diptych.schema import DataConfig, ScenesConfig
from diptych.synthetic.evaluation import noun_queries
from diptych.synthetic.generator import Scene
from diptych.tasks.phrases import PhraseContrast
from diptych.types import KNOWN, NO_CLAIM, SAID, Batch, Claims, Phrases, Progress, Term
from tests import tiny
from tests.properties.test_data_loader import SIZE, TOKENIZER, MadeSource, same, take
from tests.properties.test_scenes_captions import Reader, Reading

LATER = Progress(step=5, epoch=2.0)
SHORT = DataConfig(workers=0, bad_share=0.5, partial_captions=0.4, single_phrases=0.4)
WHOLE = DataConfig(workers=0, bad_share=0.5)
LISTS = ("a red fox, a blue car and a tree", "one fox with two cars while three trees stand near a tree")


def loader(
    config: DataConfig = SHORT, claims: bool = True, batch: int = 4, phrases: bool = False, **shares: int
) -> PairLoader:
    source = MadeSource(24, captions=LISTS)
    return PairLoader(source, TOKENIZER, config, SIZE, batch, 3, claims=claims, phrases=phrases, **shares)


def said(text: str) -> tuple[str, ...]:
    return said_by(parts_of(text)[0], 30)


# --------------------------------------------------------------------------- cutting


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a fox", ["a fox"]),
        ("A man riding a horse with a hat, and a dog.", ["A man riding a horse", "a hat", "a dog."]),
        ("1,000 people; red or blue but not green", ["1,000 people", "red", "blue", "not green"]),
        ("hills covered with snow while a band plays", ["hills covered with snow", "a band plays"]),
        ("a fox, and with a hat AND a sandy android", ["a fox", "a hat", "a sandy android"]),
        (" , a fox, !, ", ["a fox"]),
    ],
)
def test_captions_are_cut_at_commas_and_conjunctions(caption: str, phrases: list[str]) -> None:
    whole, *shorter = parts_of(caption)
    assert whole.text == caption
    assert [phrase.strip(" ,") for phrase in whole.phrases] == phrases
    runs = [phrases[i:j] for i in range(len(phrases)) for j in range(i + 1, len(phrases) + 1) if j - i < len(phrases)]
    assert [[phrase.strip(" ,") for phrase in part.phrases] for part in shorter] == runs
    assert all(part.text in caption for part in shorter)


def test_shares_of_parts_are_as_configured_and_all_runs_are_equally_likely() -> None:
    record, config = Record("r", None, ("a, b, c, d",), "i"), replace(SHORT, partial_captions=0.5, single_phrases=0.3)
    drawn = Counter(draw_part(record, "a, b, c, d", config, random.Random(seed)).text for seed in range(20_000))
    assert drawn["a, b, c, d"] / 20_000 == pytest.approx(0.2, abs=0.01)
    for text in "abcd":
        assert drawn[text] / 20_000 == pytest.approx(0.3 / 4 + 0.5 / 9, abs=0.01)
    for text in ("a, b", "b, c", "c, d", "a, b, c", "b, c, d"):
        assert drawn[text] / 20_000 == pytest.approx(0.5 / 9, abs=0.01)


@pytest.mark.parametrize("shares", [(-0.1, 0.5), (0.6, 0.5), (float("nan"), 0.0)])
def test_shares_that_are_not_shares_of_one_whole_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="together they are at most 1"):
        loader(replace(SHORT, partial_captions=shares[0], single_phrases=shares[1]))


def test_texts_that_are_no_captions_are_not_cut() -> None:
    recipe = override(find_recipe("albef_tiny_vqa"), {"data.single_phrases": 0.4})
    with pytest.raises(ValueError, match="learns from questions, which must stay whole: set both to 0"):
        check_partial(recipe)
    check_partial(override(find_recipe("albef_tiny_retrieval"), {"data.single_phrases": 0.4}))


# --------------------------------------------------------------------------- drawing


def test_parts_do_not_change_crops_flips_or_anything_else_of_a_sample() -> None:
    plain = replace(SHORT, partial_captions=0.0, single_phrases=0.0)
    short, whole = take(loader(), 12), take(loader(plain), 12)
    assert all(torch.equal(a.batch.pixels, b.batch.pixels) for a, b in zip(short, whole, strict=True))
    assert not all(same(a, b) for a, b in zip(short, whole, strict=True))


def test_without_shares_and_claims_samples_are_those_of_before() -> None:
    plain = replace(SHORT, partial_captions=0.0, single_phrases=0.0)
    (loaded,) = take(loader(plain, claims=False), 1)
    assert loaded.batch.claims is None
    texts = {tuple(TOKENIZER.encode([text.replace(",", "")], 25)[0]) for text in LISTS}
    rows = zip(loaded.batch.texts.input_ids.tolist(), loaded.batch.texts.attention_mask.sum(1).tolist(), strict=True)
    assert {tuple(ids[:length]) for ids, length in rows} <= texts


def same_with_claims(first: Any, second: Any) -> bool:
    one, other = first.batch.claims, second.batch.claims
    return same(first, second) and torch.equal(one.said, other.said) and torch.equal(one.known, other.known)


def test_parts_are_the_same_after_a_resume_with_other_numbers_of_workers_and_processes() -> None:
    uninterrupted = take(loader(), 9)
    resumed = take(loader(replace(SHORT, workers=2)), 5, start=4)
    assert all(same_with_claims(a, b) for a, b in zip(uninterrupted[4:], resumed, strict=True))
    halves = [take(loader(rank=rank, size=2), 3) for rank in range(2)]
    for step, whole in enumerate(uninterrupted[:3]):
        parts = [half[step].batch for half in halves]
        assert torch.equal(torch.cat([part.claims.said for part in parts]), whole.batch.claims.said)
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.batch.pixels)


def test_another_epoch_draws_other_parts() -> None:
    batches = take(loader(batch=24), 2)
    orders = [sorted(zip(b.batch.image_ids.tolist(), b.batch.claims.said.tolist(), strict=True)) for b in batches]
    assert orders[0] != orders[1]


# --------------------------------------------------------------------------- made scenes

SCENES = open_scenes(DataConfig(scenes=ScenesConfig(count=300, evaluation_count=20, objects=(1, 4))), "train")
READER = Reader(SCENES.config)


def true_of(reading: Reading, scene: Scene) -> bool:
    """Reads a text generously: at least as many things, of this size if it says one."""
    for name, count, size in reading.things:
        members = [item for item in scene.objects if item.name == name and size in ("", item.size)]
        if len(members) < count:
            return False
    return reading.background in (None, scene.background)


def test_parts_of_made_captions_are_sentences_of_their_grammar_and_true() -> None:
    lengths = Counter[int]()
    for index in range(200):
        record, scene = SCENES.record(index), SCENES.scene(index)
        assert record.truth is not None
        whole, *shorter = record.truth.parts()
        assert whole.text == record.captions[0]
        for part in shorter:
            reading = READER.read(part.text)
            assert true_of(reading, scene), part
            lengths[len(part.phrases)] += 1
            if len(part.phrases) == 1:
                assert len(reading.things) == 1
    assert lengths[1] > 200
    assert lengths[2] > 100


def test_what_a_made_scene_shows_is_true_of_it_and_names_every_thing() -> None:
    for index in range(200):
        scene, truth = SCENES.scene(index), SCENES.record(index).truth
        assert truth is not None
        background, *phrases = truth.shown()
        assert background.split(" ")[1] == scene.background
        readings = [READER.read(phrase) for phrase in phrases]
        assert all(true_of(reading, scene) for reading in readings)
        counted = {(name, count) for reading in readings for name, count, size in reading.things if not size}
        assert {(name, count) for name, count in scene.counts.items()} <= counted
        assert {(name, 1) for name in scene.counts} <= counted


def test_noisy_captions_are_cut_by_their_words() -> None:
    noisy = open_scenes(DataConfig(scenes=ScenesConfig(count=300, evaluation_count=20, noise=1.0)), "train")
    record = noisy.record(3)
    assert record.truth is not None
    assert not record.truth.parts()
    assert draw_part(
        record, record.captions[0], replace(SHORT, partial_captions=0.0, single_phrases=0.0), random.Random(0)
    )


def test_evaluations_show_whole_captions() -> None:
    config = replace(SHORT, scenes=SCENES.config)
    source = open_scenes(config, "validation")
    tokenizer = Tokenizer.train([source.record(index).captions[0] for index in range(20)], 300)
    (found,) = evaluation_batches(source, tokenizer, config, SIZE, 20)
    (whole,) = evaluation_batches(
        source, tokenizer, replace(config, partial_captions=0.0, single_phrases=0.0), SIZE, 20
    )
    assert torch.equal(found.batch.texts.input_ids, whole.batch.texts.input_ids)


# --------------------------------------------------------------------------- what is known to be true


def test_a_text_is_true_of_an_image_if_all_its_phrases_are_known() -> None:
    record = Record("r", None, ("a fox, a dog", "two cats while it rains"), "i")
    known = {*claims_of(record, parts_of("a fox, a dog")[0], 30)[1]}
    for text, is_true in {
        "a dog and a fox": True, "A FOX!": True, "it rains": True, "a fox with two cats": True,
        "a fox and a cat": False, "a fox a dog": False, "rains": False,
    }.items():  # fmt: skip
        assert ({*said(text)} <= known) is is_true, text
    assert said("a, b, c, d, e") == ("a b c d e",)
    assert claims_of(Record("r", None, ("a, b, c, d, e",), "i"), parts_of("a")[0], 30) == (("a",), ("a", "a b c d e"))


def claims(texts: list[str], known: list[list[str]]) -> Claims:
    said_by_texts = [[identity_number(claim) for claim in said(text)] for text in texts]
    return tiny.claims(said_by_texts, [[identity_number(claim) for claim in row] for row in known])


TEXTS = ["a fox", "a dog and a fox", "a cat", "a fox"]
SHOWN = [["a fox"], ["a dog", "a fox"], ["a cat", "a dog"], ["a fox", "a cat"]]
TRUE = torch.tensor([[{*said(text)} <= {*shown} for shown in SHOWN] for text in TEXTS])
"""Whether text q is true of image k."""


def test_true_texts_are_found_by_their_numbers() -> None:
    made = claims(TEXTS, SHOWN)
    assert torch.equal(known_true(made.said, made.known), TRUE)
    assert TRUE.sum() == 9
    assert known_true(made.said[:0], made.known).shape == (0, 4)
    assert not known_true(torch.full((2, SAID), NO_CLAIM), made.known).any()


def claimed(batch: Batch) -> Batch:
    return replace(batch, claims=claims(TEXTS, SHOWN))


BUILD = {"albef": tiny.pretraining, "vlmo": tiny.vlmo_pretraining}


def traced(name: str, batch: Batch, **changes: Any) -> tuple[Any, Any]:
    task, traces = BUILD[name](**changes), list[Any]()
    losses = task.eval()(batch, LATER, trace=traces)
    return losses, traces[0]


def logits_of(trace: Any) -> Any:
    similarities = trace.similarities
    return similarities["main"] if isinstance(similarities, dict) else similarities


@pytest.mark.parametrize("name", BUILD)
def test_itc_is_that_of_the_candidates_that_are_no_false_negatives(name: str) -> None:
    """The expected loss sums the exponentials of the remaining candidates, row by row."""
    own = {"albef": {"queue_size": 0, "alpha_itc": 0.0}, "vlmo": {"itc_branches": "main"}}[name]
    batch = claimed(tiny.batch())
    free, masked = traced(name, batch, **own), traced(name, batch, ignore_true_texts=True, **own)
    logits, total = logits_of(free[1]), 0.0
    for b in range(4):
        texts = [k for k in range(4) if k == b or not TRUE[k, b]]
        images = [k for k in range(4) if k == b or not TRUE[b, k]]
        total -= (logits.image_to_text[b, b] - logits.image_to_text[b, texts].logsumexp(0)).item() / 2
        total -= (logits.text_to_image[b, b] - logits.text_to_image[b, images].logsumexp(0)).item() / 2
    found: Term = masked[0].terms["itc"][1]
    assert found.sum.item() == pytest.approx(total, rel=1e-5)
    assert free[0].terms["itc"][1].sum.item() > total
    assert masked[0].measures["true_texts"].mean == 1.0
    assert "true_texts" not in free[0].measures


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("name", BUILD)
def test_itm_draws_no_text_that_is_true_of_the_image(name: str, hard: bool) -> None:
    images, texts = traced(name, claimed(tiny.batch()), ignore_true_texts=True, hard_negatives=hard)[1].negative_weights
    own = torch.eye(4).bool()
    assert torch.equal(images == 0, TRUE | own)
    assert torch.equal(texts == 0, TRUE.T | own)
    torch.testing.assert_close(images.sum(1), torch.ones(4))


@pytest.mark.parametrize("name", BUILD)
def test_where_all_candidates_are_true_one_of_them_is_drawn_all_the_same(name: str) -> None:
    everything = replace(tiny.batch(), claims=claims(["a fox"] * 4, [["a fox"]] * 4))
    losses, trace = traced(name, everything, ignore_true_texts=True)
    for weights in trace.negative_weights:
        torch.testing.assert_close(weights, (1 - torch.eye(4)) / 3)
    assert losses.total.isfinite()


@pytest.mark.parametrize("name", BUILD)
def test_by_default_claims_change_nothing(name: str) -> None:
    plain, given = traced(name, tiny.batch()), traced(name, claimed(tiny.batch()))
    assert torch.equal(plain[0].total, given[0].total)
    with pytest.raises(ValueError, match="needs a batch with claims"):
        traced(name, tiny.batch(), ignore_true_texts=True)


# --------------------------------------------------------------------------- the contrast of phrases


def test_a_batch_holds_one_phrase_of_each_caption() -> None:
    batch = take(loader(WHOLE, batch=24, phrases=True), 1)[0].batch
    assert batch.phrases is not None
    spoken = {
        tuple(TOKENIZER.encode([phrase], 25)[0]): identity_number(phrase) for text in LISTS for phrase in said(text)
    }
    lengths = batch.phrases.texts.attention_mask.sum(1).tolist()
    found = [tuple(ids[:length]) for ids, length in zip(batch.phrases.texts.input_ids.tolist(), lengths, strict=True)]
    assert len(set(found)) > 3, "phrases differ"
    assert [spoken[ids] for ids in found] == batch.phrases.said[:, 0].tolist()
    assert all(claim in known for (claim,), known in zip(batch.phrases.said, batch.claims.known, strict=True))


def test_phrases_change_nothing_else_and_are_the_same_with_workers_and_processes() -> None:
    plain, given = take(loader(), 9), take(loader(phrases=True), 9)
    assert all(same_with_claims(a, b) for a, b in zip(plain, given, strict=True))
    later = take(loader(replace(SHORT, workers=2), phrases=True), 5, start=4)
    assert [b.batch.phrases.said.tolist() for b in given[4:]] == [b.batch.phrases.said.tolist() for b in later]
    halves = [take(loader(phrases=True, rank=rank, size=2), 1)[0].batch.phrases.said for rank in range(2)]
    assert torch.equal(torch.cat(halves), given[0].batch.phrases.said)


def test_an_image_is_not_flipped_if_only_its_phrase_tells_of_sides() -> None:
    """The part that is shown may leave out what the phrase says."""
    config = DataConfig(
        workers=0, single_phrases=1.0, flip=1.0, crop=(1.0, 1.0), randaugment=(0, 0), bad_share=0.5
    )  # fmt: skip
    source = MadeSource(24, captions=("a fox on the left and a car", "a car and a fox on the left"))

    def views(**more: bool) -> Any:
        return take(PairLoader(source, TOKENIZER, config, SIZE, 24, 3, claims=True, **more), 1)[0].batch

    alone, beside = views(), views(phrases=True)
    sided = beside.phrases.said[:, 0] == identity_number("a fox on the left")
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(alone.pixels, beside.pixels, strict=True)])
    shown_sided = alone.claims.said[:, 0] == identity_number("a fox on the left")
    assert torch.equal(flipped, sided & ~shown_sided)
    assert flipped.any()


PHRASES = ["a fox", "a dog", "a cat", "a fox"]


def with_phrases(batch: Batch) -> Batch:
    numbers = [[identity_number(phrase)] for phrase in PHRASES]
    return replace(claimed(batch), phrases=Phrases(tiny.texts((4, 3, 4, 4), 5), torch.tensor(numbers)))


@pytest.mark.parametrize("name", BUILD)
def test_the_contrast_of_phrases_is_that_with_images_of_which_they_are_not_known_to_be_true(name: str) -> None:
    """The expected loss sums the exponentials of the remaining candidates, row by row."""
    own = {"albef": {}, "vlmo": {"itc_branches": "main"}}[name]
    task, batch = BUILD[name](phrases=0.5, **own).eval(), with_phrases(tiny.batch())
    losses = task(batch, LATER)
    weight, term = losses.terms["phrases"]
    model = task.model
    with torch.no_grad():
        images = model.embed_image(model.image_state(batch.pixels))["main"]
        phrases = model.embed_text(model.text_state(batch.phrases.texts))["main"]
    logits, total = images @ phrases.T / 0.07, 0.0
    true = [[PHRASES[t] in SHOWN[i] for t in range(4)] for i in range(4)]
    for b in range(4):
        texts = [t for t in range(4) if t == b or not true[b][t]]
        pictures = [i for i in range(4) if i == b or not true[i][b]]
        total -= (2 * logits[b, b] - logits[b, texts].logsumexp(0) - logits[pictures, b].logsumexp(0)).item() / 2
    assert (weight, term.count.item()) == (0.5, 4)
    assert term.sum.item() == pytest.approx(total, rel=1e-5)
    plain = BUILD[name](**own).eval()(with_phrases(tiny.batch()), LATER)
    assert "phrases" not in plain.terms
    assert losses.total.item() == pytest.approx(plain.total.item() + 0.5 * term.mean.item(), rel=1e-5)
    with pytest.raises(ValueError, match="needs a batch with phrases"):
        task(claimed(tiny.batch()), LATER)


@pytest.mark.parametrize("name", BUILD)
def test_matching_of_phrases_is_that_with_their_image_and_with_one_of_which_they_are_not_known_to_be_true(
    name: str,
) -> None:
    """Fuses each phrase with its own image and with each wrong one by itself: the drawn ones are among these."""
    task, batch = BUILD[name](phrases=0.3, match_phrases=True, fused_share=0.5).eval(), with_phrases(tiny.batch())
    model, losses = task.model, task(batch, LATER)
    weight, term = losses.terms["phrases_itm"]
    fused = task.draw(batch, LATER).fused
    with torch.no_grad():
        images, phrases = model.image_state(batch.pixels), model.text_state(batch.phrases.texts)
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        each = -model.match_logits(model.fuse(phrases, images, *pairs.T)).log_softmax(1).reshape(4, 4, 2)
    wrong = [[i for i in range(4) if PHRASES[t] not in SHOWN[i]] for t in range(4)]
    sums = [
        sum(each[t, t, 1].item() + each[t, i, 0].item() for t, i in zip(fused.tolist(), images, strict=True))
        for images in itertools.product(*(wrong[t] for t in fused.tolist()))
    ]
    assert len(fused) == 2
    assert len(sums) > 1
    assert (weight, term.count.item()) == (0.3, 4)
    assert min(abs(term.sum.item() - total) for total in sums) < 1e-5
    plain = BUILD[name](phrases=0.3, fused_share=0.5).eval()(batch, LATER)
    assert losses.total.item() == pytest.approx(plain.total.item() + 0.3 * term.mean.item(), rel=1e-5)
    assert "phrases_itm" not in plain.terms
    for missing in ("phrases", "itm"):
        losses = BUILD[name](**{"phrases": 0.3, "match_phrases": True, missing: 0.0})(with_phrases(tiny.batch()), LATER)
        assert "phrases_itm" not in losses.terms


@pytest.mark.parametrize("name", BUILD)
def test_the_wrong_image_of_a_phrase_is_as_likely_as_it_is_similar(name: str) -> None:
    task, batch = BUILD[name](phrases=1.0).eval(), with_phrases(tiny.batch())
    with torch.no_grad():
        image = task.model.embed_image(task.model.image_state(batch.pixels))["main"]
        phrase = task.model.embed_text(task.model.text_state(batch.phrases.texts))["main"]
    contrast = PhraseContrast.of(image, phrase, batch, Processes.meet(4))
    drawn, rows = torch.zeros(4, 4), torch.arange(4)
    for step in range(2000):
        drawn[rows, contrast.draw_images(rows, task.config, replace(LATER, step=step), Processes.meet(4))] += 1
    wrong = torch.tensor([[PHRASES[t] not in SHOWN[i] for i in range(4)] for t in range(4)])
    expected = (phrase @ image.T / 0.07).masked_fill(~wrong, -torch.inf).softmax(1)
    torch.testing.assert_close(drawn / 2000, expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("name", BUILD)
def test_phrases_train_before_fusion_and_need_itc(name: str) -> None:
    losses = BUILD[name](phrases=1.0, fuse_start=10)(with_phrases(tiny.batch()), LATER)
    assert {*losses.terms} == {"itc", "phrases"}
    with pytest.raises(ValueError, match=r"task.phrases=1.0 extends ITC to phrases, but task.itc is 0"):
        BUILD[name](phrases=1.0, itc=0.0)


def test_the_queue_keeps_claims_and_true_texts_in_it_are_ignored() -> None:
    task = tiny.pretraining(ignore_true_texts=True, alpha_itc=0.0)
    task.queue = FeatureQueue(6, 8, (SAID, KNOWN))
    assert {"queue.said", "queue.known"} <= task.state_dict().keys()
    assert not {"queue.said", "queue.known"} & tiny.pretraining().state_dict().keys()
    task.after_step(task(claimed(tiny.batch()), LATER).carry)
    later = replace(
        tiny.batch(ids=(20, 21, 22, 23)), claims=claims(["a tree", "a dog", "a fox", "a car"], [["a cat"]] * 4)
    )
    traces: list[Any] = []
    task(later, LATER, trace=traces)
    texts, images = (
        x[:, 4:] < -1e8 for x in (traces[0].similarities.image_to_text, traces[0].similarities.text_to_image)
    )
    assert torch.equal(texts, torch.tensor([[False, False, True, False]] * 4))
    assert torch.equal(
        images, torch.tensor([[False] * 4, [False, True, True, False], [True, True, False, True], [False] * 4])
    )


def test_two_batches_give_a_queue_its_newest_claims() -> None:
    queue, numbers = FeatureQueue(3, 2, (SAID, KNOWN)), itertools.count(1)
    for _ in range(2):
        pushed = torch.tensor([next(numbers), next(numbers)])
        features, rows = torch.zeros(2, 2), pushed[:, None]
        queue.push(features, features, pushed, Claims(rows.expand(-1, SAID), rows.expand(-1, KNOWN)))
    assert queue.said[:, 0].tolist() == queue.known[:, -1].tolist() == queue.ids.tolist() == [4, 2, 3]


# --------------------------------------------------------------------------- search by a single noun


def test_noun_queries_say_which_scenes_show_each_noun() -> None:
    found = [SCENES.scene(index) for index in range(40)]
    queries = noun_queries(found, SCENES.config)
    assert len(queries.texts) == len(set(queries.texts)) > 100
    for text, shown in zip(queries.texts, queries.shown_TN, strict=True):
        ((name, count, size),) = READER.read(text).things
        assert (count, size) == (1, "")
        assert [name in scene.counts for scene in found] == shown.tolist()


def test_measures_of_nouns_are_those_counted_by_hand() -> None:
    shown = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    scores = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.8, 0.3, 0.3, 0.2], [0.1, 0.4, 0.2, 0.1]])
    measures = noun_measures(scores, shown)
    assert measures["right_first"] == 50.0
    # Noun 0: 0.9 beats both others, 0.2 beats one of two. Noun 1: 0.3 ties with one, beats one, loses to one.
    assert measures["roc_area"] == pytest.approx((3 / 4 + 1.5 / 3) / 2)
    assert measures["best_shown"] == pytest.approx((0.9 + 0.8) / 2)
    assert measures["best_not_shown"] == pytest.approx((0.5 + 0.8 + 0.4) / 3)
    assert measures["presence_area"] == pytest.approx((3 + 2.5) / 6)


@pytest.mark.parametrize("relevant", [[True, True], [False, False]])
def test_an_area_needs_right_and_wrong_candidates(relevant: list[bool]) -> None:
    with pytest.raises(ValueError, match="needs a relevant and an irrelevant candidate"):
        roc_areas(torch.tensor([[0.1, 0.2]]), torch.tensor([relevant]))


def test_a_model_with_random_weights_finds_nouns_by_chance() -> None:
    recipe = albef_tiny()
    recipe = replace(recipe, data=replace(recipe.data, scenes=ScenesConfig(evaluation_count=20)))
    tokenizer = Tokenizer.train(["a fox and a dog on a green background"], 100)
    task = build_task(recipe, tokenizer)
    predictor = make_predictor(recipe, tokenizer, task.state_dict(), Path("random"), device="cpu")
    measures = evaluate_nouns(predictor, scenes=20, split="validation")
    assert measures["scenes"] == 20
    assert measures["nouns"] + measures["nouns_not_shown"] > 100
    assert measures["similarity.roc_area"] == pytest.approx(0.5, abs=0.15)
    assert measures["match.roc_area"] == pytest.approx(0.5, abs=0.15)
    assert measures["chance.right_first"] < 20
