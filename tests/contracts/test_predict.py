"""What users do with a trained model, on a real checkpoint of a tiny ALBEF with random weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.catalog import build_model
from diptych.checkpoints.store import CheckpointError, CheckpointState, save_checkpoint
from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.record import BadRecord
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.models.albef import Albef
from diptych.predict import Predictor, as_count, load, search_folder
from diptych.predict.explain import explain
from diptych.predict.inputs import as_places
from diptych.predict.queries import read_query
from diptych.recipes.override import override
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    EvaluationConfig,
    Recipe,
    TextConfig,
    VisionConfig,
)
from diptych.serialize import to_dict

CAPTIONS = ["a red fox left of a car", "two dogs on the beach", "a boat", "a small bird above a tree"]
RECIPE = Recipe(
    name="test",
    model=AlbefConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=24, depth=2, heads=2),
        text=TextConfig(width=24, layers=4, fusion_start=2, heads=2, intermediate=48, max_positions=40),
        embed_dim=8,
    ),
    task=AlbefPretrainConfig(),
    data=DataConfig(normalise="vlmo"),  # not the default: a predictor must ask the recipe
    evaluation=EvaluationConfig(rerank=4, batch_size=3, tokens_per_call=40),
)


def tiny_model() -> Albef:
    torch.manual_seed(0)
    model = build_model(RECIPE.model, Tokenizer.train(CAPTIONS, size=60))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model, tokenizer = tiny_model(), Tokenizer.train(CAPTIONS, size=60)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    weights["queue.pointer"] = torch.zeros((), dtype=torch.long)  # the task's own state is no concern of a predictor
    content = CheckpointState(weights, {}, {"step": 7}, to_dict(RECIPE), tokenizer.save)
    save_checkpoint(folder / "checkpoints", 7, content)
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load(run, device="cpu")


def painted(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures, one of them deeper down, and what else people keep in folders."""
    (tmp_path / "more").mkdir()
    for number in range(7):
        painted(number).save(tmp_path / f"{number}.png")
    painted(7).save(tmp_path / "more" / "7.PNG")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("a red fox")
    return tmp_path


def probability(image: Image.Image, text: str, tokenizer: Tokenizer) -> float:
    """The match probability computed with nothing of predict.py."""
    model, zero = tiny_model(), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        images = model.image_state(EvaluationTransform(RECIPE.data, 16)(image)[None])
        texts = model.text_state(pad_texts(tokenizer.encode([clean_caption(text, 30)]), tokenizer.pad_id))
        return model.match_logits(model.fuse(texts, images, zero, zero)).softmax(1)[0, 1].item()


def test_match_gives_the_models_probability_for_every_pair(predictor: Predictor) -> None:
    images = [painted(seed) for seed in range(5)]
    found = predictor.match(images, CAPTIONS)
    expected = [[probability(image, text, predictor.tokenizer) for text in CAPTIONS] for image in images]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert found.std() > 0.05


def test_one_or_many_of_any_kind_of_picture_give_the_same_vectors(predictor: Predictor, folder: Path) -> None:
    image = Image.open(folder / "1.png")
    kinds = [folder / "1.png", str(folder / "1.png"), image, np.asarray(image)]
    many = predictor.embed_images(kinds)
    for row, one in zip(many, kinds, strict=True):
        torch.testing.assert_close(predictor.embed_images(one)[0], row, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(row, many[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many.norm(dim=1), torch.ones(4))


def test_texts_are_read_as_in_evaluation_whatever_their_batch(predictor: Predictor) -> None:
    many = predictor.embed_texts(["A red FOX, left of a car!", *CAPTIONS])
    torch.testing.assert_close(many[0], many[1])
    torch.testing.assert_close(predictor.embed_texts(CAPTIONS[0])[0], many[1], rtol=1e-5, atol=1e-6)


def test_rank_orders_the_nearest_by_probability(predictor: Predictor) -> None:
    images = [painted(seed) for seed in range(9)]
    text = CAPTIONS[0]
    similarity = predictor.embed_images(images) @ predictor.embed_texts(text)[0]
    nearest = similarity.argsort(descending=True)[:4].tolist()  # evaluation.rerank of the recipe
    chance = {place: probability(images[place], text, predictor.tokenizer) for place in nearest}
    hits = predictor.rank(text, images, k=3)
    assert [hit.index for hit in hits] == sorted(nearest, key=chance.__getitem__, reverse=True)[:3]
    assert [hit.match for hit in hits] == pytest.approx([chance[hit.index] for hit in hits], abs=1e-5)
    plain = predictor.rank(text, images, k=3, rerank=False)
    assert [hit.index for hit in plain] == nearest[:3]
    assert all(hit.match is None for hit in plain)


def test_rank_orders_by_the_sum_of_log_odds_and_similarity_if_the_recipe_says_so(run: Path) -> None:
    predictor = load(run, device="cpu")
    predictor = replace(predictor, recipe=override(predictor.recipe, {"evaluation.score": "sum"}))
    images, text = [painted(seed) for seed in range(9)], CAPTIONS[0]
    similarity = predictor.embed_images(images) @ predictor.embed_texts(text)[0]
    tau = predictor.model.temperature().item()
    chance = [probability(image, text, predictor.tokenizer) for image in images]
    score = {place: math.log(p / (1 - p)) + similarity[place].item() / tau for place, p in enumerate(chance)}
    nearest = similarity.argsort(descending=True)[:4].tolist()
    expected = sorted(nearest, key=score.__getitem__, reverse=True)[:3]
    assert expected != sorted(nearest, key=chance.__getitem__, reverse=True)[:3], "the case tells both scores apart"
    hits = predictor.rank(text, images, k=3)
    assert [hit.index for hit in hits] == expected
    assert [hit.match for hit in hits] == pytest.approx([chance[hit.index] for hit in hits], abs=1e-5)


def test_a_folder_with_broken_pictures_is_searched_and_they_are_named(predictor: Predictor, folder: Path) -> None:
    result = search_folder(predictor, "a red fox left of a car", folder, k=5)
    assert result.searched == 8
    assert {Path(error.record).name: error.reason for error in result.skipped} == {
        "empty.jpg": "picture empty",
        "text.png": "not a picture",
        "cut.png": "picture truncated",
    }
    readable = [f"{number}.png" for number in range(7)] + ["more/7.PNG"]
    expected = predictor.rank("a red fox left of a car", [folder / name for name in readable], k=5)
    assert [(hit.name, hit.match) for hit in result.hits] == [
        (readable[hit.index], pytest.approx(hit.match, abs=1e-5)) for hit in expected
    ]
    shown = str(result)
    assert "3 could not be read" in shown
    assert all(hit.name in shown for hit in result.hits)


def test_fewer_pictures_than_asked_for_are_all_shown(predictor: Predictor, folder: Path) -> None:
    assert len(search_folder(predictor, "a boat", folder, k=100).hits) == 8


def test_words_that_cannot_be_read_are_pointed_out(predictor: Predictor, folder: Path) -> None:
    result = search_folder(predictor, "a fox 狐", folder)
    assert result.unknown_words == ("狐",)
    assert "words the model cannot read: 狐" in str(result)


@pytest.mark.parametrize(
    ("query", "place", "message"),
    [
        ("a fox", "nowhere", "no folder"),
        ("a fox", "none", "no pictures in"),
        ("a fox", "broken", "none of the 1 pictures"),
        ("...", ".", "holds no words"),
    ],
)
def test_what_cannot_be_searched_is_said(
    predictor: Predictor, folder: Path, query: str, place: str, message: str
) -> None:
    (folder / "none").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "x.png").touch()
    with pytest.raises(ValueError, match=message):
        search_folder(predictor, query, folder / place)


def test_wrong_inputs_are_named(predictor: Predictor, folder: Path) -> None:
    with pytest.raises(BadRecord, match=r"empty\.jpg: picture empty"):
        predictor.rank("a fox", [folder / "0.png", folder / "empty.jpg"])
    with pytest.raises(ValueError, match="give uint8"):
        predictor.embed_images(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="no pictures given"):
        predictor.match([], "a fox")
    with pytest.raises(ValueError, match="no texts given"):
        predictor.embed_texts([])
    with pytest.raises(ValueError, match="at least one picture"):
        predictor.rank("a fox", painted(0), k=0)
    with pytest.raises(ValueError, match=r"a tensor of bfloat16 .* is no picture: give uint8"):
        predictor.embed_images(torch.zeros(4, 4, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="side is 0: draw at least one pixel"):
        explain(predictor, painted(0), "a boat").draw(0)


@pytest.mark.parametrize("query", [None, ["a fox"], b"a fox", math.nan])
def test_a_search_by_words_needs_a_text(query: Any) -> None:
    with pytest.raises(ValueError, match=r"a search by words needs a text, and .* is none: give one str"):
        read_query(query)


@pytest.mark.parametrize("query", ["fox^", "fox^2", 'a "red car"^0.5', "a fox +snow^nan", "a fox +snow^1e400"])
def test_a_weight_is_a_number_behind_a_term_with_a_sign(query: str) -> None:
    with pytest.raises(ValueError, match=r"a weight is a number behind a term with a sign, as in \+snow\^0\.3"):
        read_query(query)
    for text in ("^_^ a fox", "x ^ y", "fox^abc"):
        assert [term.text for term in read_query(text).terms] == [text]


@pytest.mark.parametrize("k", [1.5, "3", None])
def test_a_number_of_hits_is_whole(k: Any) -> None:
    assert as_count(np.int64(1), "picture") == 1
    with pytest.raises(ValueError, match=r"k is .*: give a whole number of pictures"):
        as_count(k, "picture")


def test_the_number_of_hits_is_named_as_it_was_given(predictor: Predictor, folder: Path) -> None:
    with pytest.raises(ValueError, match="k is -1: ask for at least one picture"):
        search_folder(predictor, "a fox", folder, -1, fold_copies=True)


def test_pairs_that_there_are_not_are_named_and_none_are_none(predictor: Predictor) -> None:
    pictures = [painted(0), painted(1)]
    for pair in ((0, 2), (-1, 0), (2, 0)):
        with pytest.raises(ValueError, match=rf"no pair \({pair[0]}, {pair[1]}\) of 2 pictures and 2 texts, which are"):
            predictor.match_pairs(pictures, ["a boat", "a fox"], [(0, 0), pair])
    assert predictor.match_pairs(pictures, ["a boat", "a fox"], []).shape == (0,)


@pytest.mark.parametrize("pairs", [(0, 0), None, [(0.5, 0)], [(0, 0, 0)], 3])
def test_pairs_are_pairs_of_whole_numbers(pairs: Any, predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="pairs are a list such as"):
        as_places(pairs)
    expected = predictor.match_pairs([painted(0)], ["a"], [(0, 0)])
    assert torch.equal(predictor.match_pairs([painted(0)], ["a"], zip([0], [0], strict=True)), expected)


def test_a_device_may_be_torchs_or_none(run: Path) -> None:
    for device in (torch.device("cpu"), "CPU", None):
        assert load(run, device).device.type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="no device 'npu' on this machine"):
        load(run, "npu")


def test_tensors_without_plain_bytes_are_no_pictures(predictor: Predictor) -> None:
    bytes_CHW = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for tensor in (bytes_CHW.to_sparse(), bytes_CHW.to("meta")):
        with pytest.raises(ValueError, match="sparse, quantised or meta tensor is no picture"):
            predictor.embed_images(tensor)
    with pytest.raises(ValueError, match="transpose"):
        predictor.embed_images(bytes_CHW.numpy())


def test_what_is_no_picture_is_named_with_its_place_beside_readable_ones(predictor: Predictor) -> None:
    places, vectors, errors = predictor.embed_readable(item for item in (painted(0), None, painted(1)))
    assert places == [0, 2]
    assert len(vectors) == 2
    assert [error.record for error in errors] == ["picture 1"]


@pytest.mark.parametrize("labels", [["a boat", "A Boat"], ["a 红", "a 绿"]])
def test_labels_that_the_model_reads_alike_are_no_choice(labels: list[str], predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=f"{labels[0]!r} and {labels[1]!r} are the same to this model"):
        predictor.classify(painted(0), labels)


def test_an_unknown_ability_is_answered_with_the_nearest(predictor: Predictor) -> None:
    for call in (predictor.missing, predictor.ask):
        with pytest.raises(ValueError, match="Did you mean 'entail'"):
            call("ential")


def test_loading_refuses_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"step-9 does not exist: name a run folder"):
        load(tmp_path / "checkpoints" / "step-9")
    wide = replace(RECIPE, model=replace(RECIPE.model, embed_dim=9))
    weights = {f"model.{name}": value for name, value in tiny_model().state_dict().items()}
    content = CheckpointState(weights, {}, {"step": 1}, to_dict(wide), Tokenizer.train(CAPTIONS, size=60).save)
    save_checkpoint(tmp_path / "checkpoints", 1, content)
    with pytest.raises(CheckpointError, match="image_proj"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no device 'tpu'"):
        load(run, device="tpu")
