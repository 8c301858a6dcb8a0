"""What a trained model says for each task, against the task computed by hand on one picture at a time."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image

from diptych.catalog import MODELS, RECIPES, TASKS, build_task, find_recipe
from diptych.checkpoints.store import CheckpointError, CheckpointState, save_checkpoint
from diptych.data.answers import encode_answers
from diptych.data.cleanup import clean_caption, clean_question
from diptych.data.collate import pad_texts
from diptych.data.transforms import EvaluationTransform
from diptych.predict import Answer, Choice, Located, Picture, Predictor, load, make_predictor
from diptych.predict.inputs import TAKEN
from diptych.pretrained import export, from_pretrained
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    EntailmentConfig,
    EvaluationConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.serialize import to_dict
from diptych.tasks.entailment import CLASSES, Entailment
from diptych.tasks.grounding import boxes_config, find_box, phrase_maps
from diptych.tasks.nlvr2 import Nlvr2
from diptych.tasks.vqa import VqaClosedSet, VqaDecoding
from diptych.types import Batch, PicturePairs, Texts
from tests import tiny
from tests.runs import ANSWERS, TASK_CONFIGS, TEXTS, WORDS, recipe_of, save_run, trained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of each kind of task."""
    place = tmp_path_factory.mktemp("runs")
    return lambda kind: place / kind if (place / kind).exists() else save_run(place / kind, kind)


@pytest.fixture
def model(run: Callable[[str], Path]) -> Callable[[str], Predictor]:
    return lambda kind: load(run(kind), device="cpu")


def painted(seed: int, size: tuple[int, int] = (20, 30)) -> Image.Image:
    """Broad stripes of noise, so that a resized picture still has contrast. `size`: rows, columns."""
    few = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(few).resize(size[::-1], Image.Resampling.NEAREST)


PICTURES = [painted(seed) for seed in range(7)]


def read(text: str, question: bool = False) -> Texts:
    words = clean_question(text, 50) if question else clean_caption(text, 30)
    return pad_texts(WORDS.encode([words], None if question else 30), WORDS.pad_id)


def batch(image: Image.Image, text: str, question: bool = False) -> Batch:
    pixels = EvaluationTransform(DataConfig(), tiny.SIDE)(image)[None]
    return Batch(pixels, read(text, question), torch.zeros(1, dtype=torch.long))


def flat(found: Any) -> list[float]:
    """A result as numbers."""
    if isinstance(found, Choice):
        return [found.probabilities[name] for name in sorted(found.probabilities)]
    if isinstance(found, Located):
        return [*found.box, found.score, *found.heat.flatten().tolist()]
    return [one.probability for one in found]


def spread(found: Sequence[Choice]) -> float:
    """How much a class's probability varies between results: a comparison of equal ones would mean nothing."""
    return float(np.std([flat(one) for one in found], axis=0).max())


def same(found: Choice, names: Sequence[str], expected: torch.Tensor) -> None:
    assert found.probabilities == pytest.approx(dict(zip(names, expected.tolist(), strict=True)), abs=1e-5)
    assert list(found.probabilities.values()) == sorted(found.probabilities.values(), reverse=True)
    assert (found.label, found.probability) == next(iter(found.probabilities.items()))


# --------------------------------------------------------------------------- each task, by hand


def test_entail_gives_the_tasks_probabilities_for_each_pair(model: Callable[[str], Predictor]) -> None:
    texts = [*TEXTS, TEXTS[0], "A Boat!", TEXTS[3]]
    found = model("entailment").entail(PICTURES, texts)
    task = trained("entailment")
    assert isinstance(task, Entailment)
    for one, image, text in zip(found, PICTURES, texts, strict=True):
        same(one, ("contradiction", "neutral", "entailment"), task.predict(batch(image, text))[0])
    assert spread(found) > 0.05


def test_compare_knows_left_from_right(model: Callable[[str], Predictor]) -> None:
    task = trained("nlvr2")
    assert isinstance(task, Nlvr2)

    def by_hand(left: Image.Image, right: Image.Image, text: str) -> torch.Tensor:
        first, second = batch(left, text), batch(right, text)
        pair = PicturePairs(first.pixels, first.texts, first.image_ids, second_pixels=second.pixels)
        return task.predict(pair)[0]

    others = [painted(seed, (9, 31)) for seed in range(10, 17)]
    found = model("nlvr2").compare(PICTURES, others, TEXTS[0])
    turned = model("nlvr2").compare(others, PICTURES, TEXTS[0])
    for one, back, left, right in zip(found, turned, PICTURES, others, strict=True):
        same(one, ("false", "true"), by_hand(left, right, TEXTS[0]))
        same(back, ("false", "true"), by_hand(right, left, TEXTS[0]))
    assert spread(found) > 0.05
    assert found != turned


QUESTIONS = ["Is there a fox?", "what's in the boat", "how many dogs", "two  birds?"]


def test_a_closed_set_answers_with_its_likeliest(model: Callable[[str], Predictor]) -> None:
    task = trained("closed")
    assert isinstance(task, VqaClosedSet)
    found = model("closed").answer(PICTURES[:4], QUESTIONS, k=3)
    for answers, image, question in zip(found, PICTURES, QUESTIONS, strict=False):
        chance = task.predict(batch(image, question, question=True))[0]
        best = chance.argsort(descending=True)[:3].tolist()
        assert [one.text for one in answers] == [ANSWERS[place] for place in best]
        assert [one.probability for one in answers] == pytest.approx(chance[best].tolist(), abs=1e-5)
    assert len(model("closed").answer(PICTURES[0], QUESTIONS[0], k=100)) == len(ANSWERS)


@pytest.mark.parametrize("given", [None, ["no", "a boat", "two dogs", "no"]])
def test_a_decoder_ranks_its_list_or_the_one_given(model: Callable[[str], Predictor], given: list[str] | None) -> None:
    task = trained("decoder")
    assert isinstance(task, VqaDecoding)
    listed = ANSWERS if given is None else ("no", "a boat", "two dogs")
    candidates = pad_texts(encode_answers(listed, WORDS), WORDS.pad_id)
    found = model("decoder").answer(PICTURES[:4], QUESTIONS, k=2, answers=given)
    for answers, image, question in zip(found, PICTURES, QUESTIONS, strict=False):
        ranked = task.rank(batch(image, question, question=True), candidates)
        assert [one.text for one in answers] == [listed[place] for place in ranked.index[0, :2].tolist()]
        assert [one.probability for one in answers] == pytest.approx(ranked.probability[0, :2].tolist(), abs=1e-5)


def test_a_decoder_without_a_list_writes_and_can_be_given_one(model: Callable[[str], Predictor]) -> None:
    """As published files are: the recipe says `rank`, and nothing to rank."""
    task, predictor = trained("writer"), model("writer")
    assert isinstance(task, VqaDecoding)
    found = predictor.answer(PICTURES[:4], QUESTIONS, k=1)
    for answers, image, question in zip(found, PICTURES, QUESTIONS, strict=False):
        made = task.generate(batch(image, question, question=True))
        assert answers[0].text == WORDS.decode(made.ids[0, 0].tolist())
        assert answers[0].probability == pytest.approx(made.probability[0, 0].item(), rel=1e-3)
    assert len(predictor.answer(PICTURES[0], QUESTIONS[0], k=3)) == 3
    (one,) = predictor.answer(PICTURES[0], QUESTIONS[0], answers="two dogs")
    assert one == Answer("two dogs", 1.0)


def test_a_question_is_read_to_its_fiftieth_word(model: Callable[[str], Predictor]) -> None:
    """Captions are cut earlier, by words and by tokens."""
    predictor, long = model("closed"), " ".join(["a fox"] * 20)
    task = trained("closed")
    assert isinstance(task, VqaClosedSet)
    (best,) = predictor.answer(PICTURES[0], f"{long} two boat", k=1)
    chance = task.predict(batch(PICTURES[0], f"{long} two boat", question=True))[0]
    assert best.probability == pytest.approx(chance.max().item(), abs=1e-6)
    beyond = f"{long} {' '.join(['a'] * 10)}"
    assert predictor.answer(PICTURES[0], f"{beyond} two boat") == predictor.answer(PICTURES[0], beyond)
    assert best != predictor.answer(PICTURES[0], long, k=1)[0]


@pytest.mark.parametrize("templates", [("{}",), ("a {} on the beach", "{} two dogs", "{}")])
def test_classify_is_a_softmax_over_mean_label_vectors(
    model: Callable[[str], Predictor], templates: Sequence[str]
) -> None:
    predictor, labels = model("pretraining"), ["fox", "boat", "small bird", "car"]
    found = predictor.classify(PICTURES, labels, templates)
    images = predictor.embed_images(PICTURES).numpy()
    vectors = []
    for label in labels:
        mean = np.mean([predictor.embed_texts(one.replace("{}", label)).numpy()[0] for one in templates], axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    task = trained("pretraining")
    logits = images @ np.array(vectors).T / task.model.temperature().item()
    odds = np.exp(logits - logits.max(1, keepdims=True))
    for one, row in zip(found, odds / odds.sum(1, keepdims=True), strict=True):
        same(one, labels, torch.from_numpy(row))
    assert spread(found) > 1e-3


@pytest.mark.parametrize("kind", ["pretraining", "retrieval", "grounding"])
def test_locate_gives_box_and_map_on_the_users_picture(model: Callable[[str], Predictor], kind: str) -> None:
    images = [painted(seed, size) for seed, size in enumerate([(16, 16), (40, 20), (25, 90), (16, 16)])]
    proposals = [(0.0, 0.0, 8.0, 8.0), (3.0, 2.0, 9.0, 5.0)]
    config = GroundingConfig(layer=2) if kind != "grounding" else GroundingConfig(layer=3, threshold=0.8)
    task = trained(kind)
    free = model(kind).locate(images, TEXTS)
    chosen = model(kind).locate(images, TEXTS, proposals)
    for one, best, image, text in zip(free, chosen, images, TEXTS, strict=True):
        alone = batch(image, text)
        maps = phrase_maps(task.model, alone.pixels, alone.texts, config)
        np.testing.assert_allclose(one.heat, maps.phrase[0].numpy(), rtol=1e-3, atol=1e-6)
        assert one.box == find_box(maps.phrase[0], image.size, (), config)
        assert best.box == find_box(maps.phrase[0], image.size, proposals, config)
        assert 0 <= one.box[0] < one.box[0] + one.box[2] <= image.width
        assert 0 <= one.box[1] < one.box[1] + one.box[3] <= image.height
        assert one.score == pytest.approx(model(kind).match(image, text).item(), abs=1e-5)
        assert one.phrase == text
    assert {one.heat.max() > 0 for one in free} == {True}
    assert {one.box for one in chosen} == set(proposals)


def test_a_located_phrase_can_be_drawn(model: Callable[[str], Predictor], tmp_path: Path) -> None:
    painted(3, (48, 64)).save(tmp_path / "picture.png")
    found = model("grounding").locate(tmp_path / "picture.png", "a boat", [(10.0, 12.0, 30.0, 20.0)])
    drawn = found.draw()
    assert drawn.size[0] == 64
    assert drawn.size[1] > 48
    assert drawn.getpixel((10, 20)) == drawn.getpixel((39, 20)) == drawn.getpixel((25, 12)) == (255, 255, 255)
    assert str(found).startswith("a boat: 30 × 20 pixels at 10, 12 (score ")


def test_a_turned_photograph_is_located_upright(model: Callable[[str], Predictor], tmp_path: Path) -> None:
    """As every viewer shows it: its box has to fit there."""
    upright, exif = painted(5, (40, 24)), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    found = model("grounding").locate(tmp_path / "turned.png", TEXTS[0])
    expected = model("grounding").locate(upright, TEXTS[0])
    assert found.box == expected.box
    assert found.draw().size == expected.draw().size


def test_the_mode_of_a_grounding_recipe_decides_what_is_asked(run: Callable[[str], Path]) -> None:
    boxes = GroundingConfig("itc", layer=1)
    recipe = recipe_of(GroundingTrainingConfig(queue_size=6, boxes=boxes))
    task = trained("grounding")
    predictor = make_predictor(recipe, WORDS, task.state_dict(), Path("here"), ["match_head"], "cpu")
    found = predictor.locate(PICTURES[0], TEXTS[0])
    alone = batch(PICTURES[0], TEXTS[0])
    maps = phrase_maps(task.model, alone.pixels, alone.texts, boxes)
    np.testing.assert_allclose(found.heat, maps.phrase[0].numpy(), rtol=1e-3, atol=1e-7)
    cosine = predictor.embed_images(PICTURES[0]) @ predictor.embed_texts(TEXTS[0]).T
    assert found.score == pytest.approx(cosine.item(), abs=1e-5)


def test_the_layer_that_is_read_is_the_published_one_at_every_depth() -> None:
    """ALBEF's fusion layers are the upper ones, every block of VLMo attends to text and image."""

    def boxes(recipe: Recipe) -> GroundingConfig:
        with torch.device("meta"):
            return boxes_config(recipe, MODELS[type(recipe.model)](recipe.model))

    def layer(fusion_start: int, layers: int) -> int:
        recipe = recipe_of(AlbefPretrainConfig())
        assert isinstance(recipe.model, AlbefConfig)
        text = replace(recipe.model.text, fusion_start=fusion_start, layers=layers)
        return boxes(replace(recipe, model=replace(recipe.model, text=text))).layer

    assert layer(6, 12) == GroundingConfig().layer == 8
    assert boxes(find_recipe("albef_base")) == GroundingConfig()
    assert boxes(find_recipe("albef_tiny")) == GroundingConfig(layer=2)
    grounding = find_recipe("albef_tiny_grounding")
    assert isinstance(grounding.task, GroundingTrainingConfig)
    assert boxes(grounding) == grounding.task.boxes != GroundingConfig(layer=2)
    assert [layer(3, 3 + depth) for depth in (1, 2, 3, 4)] == [3, 3, 4, 4]
    assert boxes(find_recipe("vlmo_base")) == find_recipe("vlmo_base_grounding").task.boxes == GroundingConfig(layer=5)


# --------------------------------------------------------------------------- one or many

ASK: dict[str, Callable[[Predictor, Any, Any], Any]] = {
    "entailment": lambda model, image, text: model.entail(image, text),
    "closed": lambda model, image, text: model.answer(image, text, k=1),
    "decoder": lambda model, image, text: model.answer(image, text, k=1),
    "nlvr2": lambda model, image, text: model.compare(image, painted(9), text),
    "grounding": lambda model, image, text: model.locate(image, text),
}


@pytest.mark.parametrize("kind", ASK)
def test_one_goes_with_many_and_lists_go_together(model: Callable[[str], Predictor], kind: str) -> None:
    predictor, ask = model(kind), ASK[kind]
    several, texts = PICTURES[:4], TEXTS
    table = [[ask(predictor, image, text) for text in texts] for image in several]
    assert not isinstance(table[0][0], tuple) or isinstance(table[0][0][0], Answer)
    together = [
        (ask(predictor, several[1], texts), table[1]),
        (ask(predictor, several, texts[2]), [row[2] for row in table]),
        (ask(predictor, several, texts), [table[place][place] for place in range(4)]),
        (ask(predictor, [several[3]], texts[0]), [table[3][0]]),
        (ask(predictor, several[3], (texts[0],)), [table[3][0]]),
    ]
    for found, expected in together:
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        for one, alone in zip(found, expected, strict=True):
            assert flat(one) == pytest.approx(flat(alone), rel=1e-3, abs=1e-5)
    assert len({tuple(np.round(flat(one), 3)) for row in table for one in row}) > 8


def test_pictures_of_a_comparison_follow_the_same_rule(model: Callable[[str], Predictor]) -> None:
    predictor, many = model("nlvr2"), PICTURES[:4]
    single = [predictor.compare(many[2], one, TEXTS[0]) for one in many]
    assert [flat(one) for one in predictor.compare(many[2], many, TEXTS[0])] == [
        pytest.approx(flat(one), abs=1e-5) for one in single
    ]


def test_each_kind_of_picture_is_taken(model: Callable[[str], Predictor], tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "0.png")
    kinds: list[Picture] = [tmp_path / "0.png", str(tmp_path / "0.png"), PICTURES[0], np.asarray(PICTURES[0])]
    found = model("entailment").entail(kinds, TEXTS[0])
    assert [flat(one) for one in found] == [pytest.approx(flat(found[0]), abs=1e-6)] * 4
    boxes = model("grounding").locate(kinds, TEXTS[0])
    assert {one.box for one in boxes} == {boxes[0].box}
    assert {one.draw().tobytes() for one in boxes} == {boxes[0].draw().tobytes()}
    assert isinstance(model("pretraining").classify(kinds[0], ["fox", "boat"]), Choice)
    assert len(model("pretraining").classify(kinds[:1], ["fox", "boat"])) == 1


def test_proposals_are_a_list_or_a_list_for_each(model: Callable[[str], Predictor]) -> None:
    predictor = model("grounding")
    near, far = [[1.0, 1.0, 6.0, 6.0]], [(20.0, 10.0, 5.0, 5.0)]
    found = predictor.locate(PICTURES[0], TEXTS[:3], [near, far, []])
    free = predictor.locate(PICTURES[0], TEXTS[2])
    assert [one.box for one in found] == [(1.0, 1.0, 6.0, 6.0), (20.0, 10.0, 5.0, 5.0), free.box]
    table = np.array([near[0], far[0]])
    one = predictor.locate(PICTURES[0], TEXTS[0], table)
    assert one.box in [tuple(row) for row in table.tolist()]
    assert predictor.locate(PICTURES[2], TEXTS[2], []).box == predictor.locate(PICTURES[2], TEXTS[2]).box


def test_a_model_left_in_training_mode_answers_without_dropout(run: Callable[[str], Path]) -> None:
    recipe = recipe_of(TASK_CONFIGS["entailment"])
    dropping = replace(recipe, model=replace(recipe.model, text=replace(recipe.model.text, dropout=0.5)))
    weights = trained("entailment").state_dict()
    predictor = make_predictor(dropping, WORDS, weights, Path("here"), device="cpu")
    expected = load(run("entailment"), device="cpu").entail(PICTURES[0], TEXTS[0])
    assert predictor.task is not None
    predictor.task.train()
    same(predictor.entail(PICTURES[0], TEXTS[0]), CLASSES, torch.tensor([expected.probabilities[n] for n in CLASSES]))
    assert predictor.task.training


# --------------------------------------------------------------------------- what a model cannot do


def test_what_a_dual_encoder_lacks_is_learnt_by_recipes_that_fuse(tmp_path: Path) -> None:
    """And by default it searches as it is evaluated: by similarity alone."""
    alone = RetrievalConfig(keys="batch", queue_size=0, alpha=0.0, itm=0.0)
    recipe = Recipe("test", replace(tiny.VLMO, max_positions=64), alone, evaluation=EvaluationConfig(rerank=0))
    content = CheckpointState(build_task(recipe, WORDS).state_dict(), {}, {"step": 1}, to_dict(recipe), WORDS.save)
    save_checkpoint(tmp_path / "checkpoints", 1, content)
    predictor = load(tmp_path, device="cpu")
    assert [hit.match for hit in predictor.rank(TEXTS[0], PICTURES[:3])] == [None] * 3
    for ask in (
        lambda: predictor.match(PICTURES[0], TEXTS[0]),
        lambda: predictor.rank(TEXTS[0], PICTURES, rerank=True),
    ):
        with pytest.raises(
            ValueError, match=r"holds no trained match_head: .* or train vlmo_tiny_grounding or vlmo_base_"
        ):
            ask()


@pytest.mark.parametrize(
    ("kind", "purpose", "tasks"),
    [
        ("entailment", "hypotheses", {EntailmentConfig}),
        ("closed", "questions", {VqaClosedSetConfig, VqaDecoderConfig}),
        ("nlvr2", "statements about two pictures", {Nlvr2Config}),
    ],
)
def test_a_head_that_is_missing_is_named_with_the_recipes_that_train_it(
    model: Callable[[str], Predictor], kind: str, purpose: str, tasks: set[type]
) -> None:
    for other in {"pretraining", "retrieval", "entailment", "nlvr2", "closed", "assignment"} - {kind}:
        predictor = replace(model(other), recipe=replace(find_recipe("albef_tiny"), name="test"))
        with pytest.raises(ValueError, match=f"not trained for {purpose}: train ") as caught:
            ASK[kind](predictor, PICTURES[0], TEXTS[0])
        names = [name for name in RECIPES if name.startswith("albef_tiny") and type(RECIPES[name]().task) in tasks]
        assert names
        assert f"train {' or '.join(names)} (diptych train {names[0]} init_from=RUN" in str(caught.value)
    every = " or ".join(name for name in RECIPES if name.startswith("albef") and type(RECIPES[name]().task) in tasks)
    with pytest.raises(ValueError, match=rf"train {every} \("):
        ASK[kind](model("assignment"), PICTURES[0], TEXTS[0])  # of no recipe's size: any may help


PAIRS: dict[str, Callable[[Predictor], Any]] = {
    "image_proj": lambda model: model.embed_images(PICTURES[0]),
    "text_proj": lambda model: model.embed_texts("a boat"),
    "match_head": lambda model: model.match(PICTURES[0], "a boat"),
    "text_proj ": lambda model: model.rank("a boat", PICTURES),
    "image_proj ": lambda model: model.classify(PICTURES[0], ["fox", "boat"]),
    "match_head ": lambda model: model.locate(PICTURES[0], "a boat"),
}


@pytest.mark.parametrize("kind", ["entailment", "nlvr2", "closed", "decoder", "assignment"])
@pytest.mark.parametrize("part", PAIRS)
def test_parts_that_fine_tuning_left_behind_are_not_asked(
    model: Callable[[str], Predictor], kind: str, part: str
) -> None:
    with pytest.raises(ValueError, match=f"no trained {part.strip()}: .*train albef_tiny_retrieval or"):
        PAIRS[part](model(kind))


@pytest.mark.parametrize("kind", ["pretraining", "retrieval", "grounding"])
def test_parts_that_are_trained_are_asked(model: Callable[[str], Predictor], kind: str) -> None:
    predictor = model(kind)
    assert predictor.task is None
    for ask in PAIRS.values():
        ask(predictor)


@pytest.mark.parametrize(("term", "refused"), [("itm", "match_head"), ("itc", "image_proj")])
def test_a_term_that_was_left_out_of_pretraining_leaves_its_part_untrained(term: str, refused: str) -> None:
    recipe = recipe_of(replace(AlbefPretrainConfig(queue_size=6), **{term: 0.0}))  # type: ignore[arg-type]
    weights = build_task(recipe, WORDS).state_dict()
    predictor = make_predictor(recipe, WORDS, weights, Path("here"), device="cpu")
    for part, ask in PAIRS.items():
        if part == refused:
            with pytest.raises(ValueError, match=f"here holds no trained {part}"):
                ask(predictor)
    PAIRS["image_proj" if term == "itm" else "match_head"](predictor)


@pytest.mark.parametrize("kind", TASK_CONFIGS)
def test_what_is_untrained_is_what_the_task_froze(model: Callable[[str], Predictor], kind: str) -> None:
    task, predictor = trained(kind), model(kind)
    learning = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    for part in task.model.parts_unused_by():
        mine = {name for name, _ in task.model.named_parameters() if f"{name}.".startswith(f"{part}.")}
        assert not mine or (part in predictor.untrained) == (not mine & learning)


WRONG: list[tuple[str, Callable[[Predictor], Any], str]] = [
    ("entailment", lambda m: m.entail(PICTURES[:3], TEXTS[:2]), "2 hypotheses and 3 pictures do not go together"),
    ("entailment", lambda m: m.entail(PICTURES[:1], TEXTS[:2]), "2 hypotheses and 1 pictures do not go together"),
    ("nlvr2", lambda m: m.compare(PICTURES[:3], PICTURES[:2], "a boat"), "3 pictures and 2 pictures do not go"),
    (
        "grounding",
        lambda m: m.locate(PICTURES[:3], "a boat", [[(0.0, 0.0, 1.0, 1.0)]]),
        "3 pictures and 1 lists of",
    ),
    ("entailment", lambda m: m.entail([], "a boat"), "no pictures given"),
    ("entailment", lambda m: m.entail(PICTURES[0], []), "no hypotheses given"),
    ("entailment", lambda m: m.entail(PICTURES[0], "..."), r"'\.\.\.': hypothesis empty"),
    ("closed", lambda m: m.answer(PICTURES[0], "?"), r"'\?': question empty"),
    ("nlvr2", lambda m: m.compare(PICTURES[0], PICTURES[0], ""), "'': statement empty"),
    ("grounding", lambda m: m.locate(PICTURES[0], "!"), "'!' holds no words"),
    (
        "decoder",
        lambda m: m.answer(PICTURES[0], QUESTIONS[0], answers=["no", "?"]),
        r"'\?' is no answer: it holds no word",
    ),
    ("entailment", lambda m: m.entail(PICTURES[0], "a \ud800 boat"), "half of a surrogate pair"),
    ("grounding", lambda m: m.locate(PICTURES[0], "a boat", [(1.0, 2.0, 3.0)]), r"\(1\.0, 2\.0, 3\.0\) is no box"),
    ("grounding", lambda m: m.locate(PICTURES[0], "a boat", [(1.0, 2.0, 3.0, float("nan"))]), "not finite"),
    ("grounding", lambda m: m.locate(PICTURES[0], "a boat", [(1.0, 2.0, 0.0, 4.0)]), "proposal 0 has no area"),
    ("closed", lambda m: m.answer(PICTURES[0], "a boat", k=0), "k is 0: ask for at least one answer"),
    ("closed", lambda m: m.answer(PICTURES[0], "a boat", answers=["no"]), "a closed set has its own 4 answers"),
    ("decoder", lambda m: m.answer(PICTURES[0], "a boat", answers=[]), "no answers given"),
    ("decoder", lambda m: m.answer(PICTURES[0], "a boat", answers=["no", ""]), "'' is no answer"),
    ("pretraining", lambda m: m.classify(PICTURES[0], "fox"), "cannot choose among fox: give two or more labels"),
    ("pretraining", lambda m: m.classify(PICTURES[0], ["fox", "boat", "fox"]), "each once"),
    ("pretraining", lambda m: m.classify(PICTURES[0], ["fox", "..."]), r"'\.\.\.' holds no words"),
    ("pretraining", lambda m: m.classify(PICTURES[0], ["fox", "car"], "a picture"), "'a picture' has no {} for the"),
    ("pretraining", lambda m: m.classify(PICTURES[0], ["fox", "car"], []), "no templates given"),
    ("entailment", lambda m: m.entail(np.zeros((0, 4, 3), np.uint8), "a boat"), "is no picture: give uint8"),
    ("entailment", lambda m: m.entail("nowhere.png", "a boat"), "nowhere.png: picture missing"),
]


@pytest.mark.parametrize(("kind", "ask", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_wrong_input_is_said_in_the_users_words(
    model: Callable[[str], Predictor], kind: str, ask: Callable[[Predictor], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ask(model(kind))


def test_wrong_types_are_said_too(run: Callable[[str], Path]) -> None:
    """In a process of its own: here, types are checked before the code sees them."""
    script = f"""
import diptych
model = diptych.load({str(run("grounding"))!r}, device="cpu")
for ask in (
    lambda: model.locate(3, "a boat"),
    lambda: model.locate([None], "a boat"),
    lambda: model.locate([[1, 2]], "a boat"),
    lambda: model.locate({str(ROOT / "no.png")!r}, "a boat", (1, 2, 3, 4)),
):
    try:
        ask()
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        f"the picture is of type int, no picture: {TAKEN}",
        f"picture 0 is None, no picture: {TAKEN}",
        f"picture 0 is of type list, no picture: {TAKEN}",
        "1 is no box: proposals are a list of [x, y, width, height] in pixels",
    ]


def test_a_lazily_opened_broken_picture_is_said(model: Callable[[str], Predictor], tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "0.png")
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:-30])
    with Image.open(tmp_path / "0.png") as lazy, pytest.raises(ValueError, match="cannot be read"):
        model("entailment").entail(lazy, "a boat")


# --------------------------------------------------------------------------- where models come from


@pytest.mark.parametrize("kind", ["entailment", "nlvr2", "closed", "decoder"])
def test_a_loaded_head_has_no_momentum_encoder_and_moves_no_random_numbers(
    run: Callable[[str], Path], kind: str
) -> None:
    folder = run(kind)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    predictor = load(folder, "cpu")
    assert torch.equal(torch.rand(3), expected)
    task: Any = predictor.task
    assert type(task) is TASKS[type(TASK_CONFIGS[kind])]
    assert task.momentum_encoder is None
    assert task.momentum_head is None
    assert task.model is predictor.model
    assert not predictor.task.training if predictor.task else False
    assert predictor.recipe.task == (TASK_CONFIGS[kind])


def test_a_name_of_the_hub_is_fetched_when_no_folder_has_it(
    run: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(name: str) -> str:
        asked.append(name)
        return str(next((run("entailment") / "checkpoints").iterdir()))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load("owner/albef-entailment.v1", device="cpu").task, Entailment)
    assert isinstance(load(Path("owner/name"), device="cpu").task, Entailment)
    assert asked == ["owner/albef-entailment.v1", "owner/name"]
    (tmp_path / "runs" / "here").mkdir(parents=True)
    for local in ("runs/here", "nowhere", "a/b/c", "../name", "./name", str(tmp_path / "x"), "~owner/name"):
        with pytest.raises(CheckpointError, match="name a run folder"):
            load(local)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, "no folder owner/name, and the Hugging Face Hub has no model of that name"),
        (LocalEntryNotFoundError, "no folder owner/name, and it could not be fetched .* Hub: no connection"),
        (ConnectionError, "no folder owner/name, and it could not be fetched .* Hub: no connection"),
    ],
)
def test_what_the_hub_does_not_give_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def refuse(name: str) -> str:
        raised = error.__new__(error)
        Exception.__init__(raised, "no connection\nand more")
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load("owner/name")


@pytest.mark.parametrize("kind", ["entailment", "nlvr2", "decoder"])
def test_a_published_file_answers_as_the_run_that_it_came_from(
    run: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """A decoder's file carries no list: it writes, or is given one."""
    export(run(kind), tmp_path / "out.pth")
    WORDS.save(tmp_path / "words")
    config = recipe_of(TASK_CONFIGS[kind]).model
    heads = config.vision.heads, config.text.heads
    published = from_pretrained(tmp_path / "out.pth", vocabulary=tmp_path / "words", heads=heads, device="cpu")
    ours = load(run(kind), device="cpu")
    if kind == "decoder":
        given = published.answer(PICTURES[:4], QUESTIONS, answers=ANSWERS)
        assert [[one.text for one in row] for row in given] == [
            [one.text for one in row] for row in ours.answer(PICTURES[:4], QUESTIONS)
        ]
        task: Any = published.task
        assert task.config.inference == "generate"
        assert all(one.text for one in published.answer(PICTURES[0], QUESTIONS[0], k=2))
    else:
        for one, expected in zip(
            ASK[kind](published, PICTURES, TEXTS[0]), ASK[kind](ours, PICTURES, TEXTS[0]), strict=True
        ):
            assert flat(one) == pytest.approx(flat(expected), abs=1e-5)
    with pytest.raises(ValueError, match="no trained match_head"):
        published.match(PICTURES[0], "a boat")


# --------------------------------------------------------------------------- the example


def test_the_example_uses_all_five_tasks_and_is_the_one_that_the_readme_shows(
    run: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo" / "tasks").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "checkpoints").symlink_to(run("pretraining") / "checkpoints")
    for name, kind in (("entailment",) * 2, ("vqa", "decoder"), ("nlvr2",) * 2, ("grounding",) * 2):
        (tmp_path / "runs" / "demo" / "tasks" / name).symlink_to(run(kind))
    for name, image in (("left.png", painted(1)), ("right.png", painted(2))):
        image.save(name)
    monkeypatch.setattr(sys, "argv", ["five_tasks.py", "left.png", "right.png"])
    file = ROOT / "examples" / "five_tasks.py"
    runpy.run_path(str(file))
    best, entailed, answer, compared, located = capsys.readouterr().out.splitlines()
    assert best.startswith(("left.png ", "right.png "))
    assert {"entailment", "neutral", "contradiction"} < set(entailed.split())
    assert answer in ANSWERS
    assert {"true", "false"} < set(compared.split())
    assert located.startswith("the crab: ")
    with Image.open("found.png") as drawn:
        assert drawn.width == 30
    (shown,) = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert file.read_text(encoding="utf-8").endswith(f'"""\n\n{shown}')
    assert len(shown.replace("\n\n", "\n").splitlines()) == 10
