"""Checks that what pages show of a model's inside is what happens there, and what the site loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych import catalog
from diptych.apps.app import examples, quality
from diptych.apps.app.fields import PercentField, PictureField, TextField, read_picture
from diptych.apps.app.pages import search
from diptych.apps.app.site import Site
from diptych.apps.index import build_index
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.data.heatmap import BAR
from diptych.data.pictures import LARGEST_PIXELS
from diptych.losses.masked_lm import IGNORED
from diptych.predict import Predictor, load
from diptych.predict.explain import SIMILARITY, explain, match_config, words_of
from diptych.predict.pseudo_targets import MomentumEncoder
from diptych.predict.routing import expert_ways
from diptych.search.calibration import MatchCalibration
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.tasks.grounding import phrase_maps
from diptych.tasks.pretraining import Draws
from diptych.types import Batch
from tests.app.conftest import MEASURED, save_pictures
from tests.runs import TEXTS, WORDS, save_run
from tests.traces import traced

TEXT = "a red fox left of a car"


@pytest.fixture(scope="module", params=["albef", "vlmo"])
def pretrained(request: pytest.FixtureRequest, families: list[Path]) -> Predictor:
    return load(families[request.param == "vlmo"], device="cpu")


@pytest.fixture(scope="module")
def picture(families: list[Path]) -> Path:
    return families[0] / "pictures" / "1.png"


# --------------------------------------------------------------------------- words


def test_a_words_map_sums_those_of_its_pieces_and_the_match_is_the_models(pretrained: Predictor, picture: Path) -> None:
    found = explain(pretrained, picture, f"{TEXT} xa", maps="grad_cam")
    assert [one.word for one in found.words][:7] == TEXT.split()
    assert found.match == pytest.approx(pretrained.match(picture, f"{TEXT} xa").item(), abs=1e-5)
    texts = pretrained.texts(f"{TEXT} xa")
    pixels = pretrained.transform(Image.open(picture))[None]
    maps = phrase_maps(pretrained.model, pixels, texts, match_config(pretrained))
    assert maps.tokens is not None
    own = [number not in WORDS.special_ids or number == WORDS.unk_id for number in texts.input_ids[0].tolist()]
    whole = sum(torch.from_numpy(one.heat) for one in found.words)
    torch.testing.assert_close(whole, maps.tokens[0][torch.tensor(own)].sum(0))


def test_a_words_attention_is_what_exceeds_the_mean_of_all_tokens(pretrained: Predictor, picture: Path) -> None:
    found, model, texts = explain(pretrained, picture, TEXT, "attention"), pretrained.model, pretrained.texts(TEXT)
    assert found.match == pytest.approx(pretrained.match(picture, TEXT).item(), abs=1e-5)
    assert found.layers == tuple(model.map_layers)
    pixels, first = pretrained.transform(Image.open(picture))[None], torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        joint = model.fuse(model.text_state(texts), model.image_state(pixels), first, first, maps=found.layers)
    attention = torch.stack([joint.maps[layer][0] for layer in found.layers]).mean(1).sum(0)  # [L, patches]
    fox = texts.input_ids[0].tolist().index(WORDS.encode(["fox"])[0][1])
    own = (attention[fox] - attention.mean(0)).clamp(min=0).reshape(found.words[0].heat.shape)
    (heat,) = [torch.from_numpy(one.heat) for one in found.words if one.word == "fox"]
    torch.testing.assert_close(heat, own)
    assert heat.max() > 0


def test_a_words_map_of_similarity_is_that_of_the_word_alone_above_the_mean_of_all_words(
    pretrained: Predictor, picture: Path
) -> None:
    found, model = explain(pretrained, picture, TEXT), pretrained.model
    assert found.match == pytest.approx(pretrained.match(picture, TEXT).item(), abs=1e-5)
    assert found.layers == tuple(model.image_layers)
    pixels = pretrained.transform(Image.open(picture))[None]
    total = torch.zeros(len(found.words), *found.words[0].heat.shape)
    for row, word in enumerate(TEXT.split()):
        for layer in found.layers:  # each by itself: their sum is that of all
            config = replace(SIMILARITY, layer=layer)
            total[row] += phrase_maps(model, pixels, pretrained.texts(word), config).phrase[0]
    own = (total - total.sum(0) / (len(total) + 1)).clamp(min=0)
    for one, heat in zip(found.words, own, strict=True):
        torch.testing.assert_close(torch.from_numpy(one.heat), heat, atol=1e-6, rtol=1e-4)
    assert own.max() > 0
    (alone,) = explain(pretrained, picture, "fox").words
    assert alone.heat.max() > 0


def test_a_model_without_similarity_is_explained_by_its_attention(
    pretrained: Predictor, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "missing", lambda self, ability: "untrained" if ability == "embed" else None)
    assert explain(pretrained, picture, TEXT).layers == tuple(pretrained.model.map_layers)
    with pytest.raises(ValueError, match="no words"):
        explain(pretrained, picture, ",")


def test_pieces_of_a_word_are_one_word() -> None:
    assert len(WORDS.pieces("beachbird")) > 1
    ids = WORDS.encode(["a beachbird"])[0]
    assert words_of(ids, WORDS) == [("a", ids[1:2], [1]), ("beachbird", ids[2:], [*range(2, len(ids))])]


def test_maps_of_words_are_drawn_so_that_a_weak_word_shows_and_is_weaker(pretrained: Predictor, picture: Path) -> None:
    found = explain(pretrained, picture, TEXT)
    drawn = found.draw(96)
    assert {one.size for one in drawn} == {(96, 80)}
    assert BAR > 0
    cold = replace(found, words=tuple(replace(one, heat=one.heat * 0) for one in found.words))
    assert len({one.tobytes() for one in cold.draw()}) == 1
    assert len({one.tobytes() for one in drawn}) > 1
    heat = torch.tensor([[1.0, 0], [0, 0]]).numpy()
    named = [replace(found.words[0], heat=heat * strength) for strength in (1.0, 0.01, 0.0)]
    strong, weak, none = (one.convert("L").getdata()[0] for one in replace(found, words=tuple(named)).draw())
    assert strong > weak > none


# --------------------------------------------------------------------------- the momentum encoder


def test_the_momentum_encoder_predicts_what_it_predicts_in_training(families: list[Path], picture: Path) -> None:
    student = load(families[0], device="cpu")
    (said,) = MomentumEncoder.beside(student).words(picture, TEXT, "fox", k=3)
    assert (said.before, said.label, said.after) == ("a red", "fox", "left of a car")
    task = catalog.build_task(student.recipe, student.tokenizer)
    assert isinstance(task, AlbefPretraining)
    store.load_into(task, store.load_from(families[0]).weights(), families[0])
    texts = student.texts([TEXT, TEXTS[1]])
    masked, labels = texts.input_ids.clone(), torch.full_like(texts.input_ids, IGNORED)
    labels[0, 3], masked[0, 3] = masked[0, 3].clone(), WORDS.mask_id
    pixels = student.transform(Image.open(picture))[None].expand(2, -1, -1, -1)
    draws = Draws(masked, labels, torch.rand(2, 2))
    made, _ = traced(task.eval(), Batch(pixels, texts, torch.tensor([0, 1])), draws=draws)
    assert made.momentum_word_logits is not None
    for logits, guesses in ((made.momentum_word_logits, said.momentum_encoder), (made.word_logits, said.student)):
        best = logits[0].softmax(0).topk(3)
        assert [word for word, _ in guesses] == [WORDS.token(number) for number in best.indices.tolist()]
        assert [share for _, share in guesses] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_the_momentum_encoders_texts_are_ordered_by_its_own_similarity(families: list[Path], picture: Path) -> None:
    student = load(families[0], device="cpu")
    momentum_encoder = MomentumEncoder.beside(student)
    found = momentum_encoder.texts(picture, TEXTS, k=4)
    network = momentum_encoder.network
    with torch.no_grad():
        image = network.embed_image(network.image_state(student.transform(Image.open(picture))[None]))["main"]
        text: Tensor = network.embed_text(network.text_state(student.texts(TEXTS)))["main"]
        shares = torch.softmax(image @ text.T / 0.2, dim=1)[0]  # as tests/runs.py sets the temperature
    assert dict(found) == pytest.approx(dict(zip(TEXTS, shares.tolist(), strict=True)), abs=1e-5)
    assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)


def test_a_missing_word_and_a_model_without_a_momentum_encoder_are_errors(families: list[Path], picture: Path) -> None:
    momentum_encoder = MomentumEncoder.beside(load(families[0], device="cpu"))
    with pytest.raises(ValueError, match=r"'boat' is no word of the text: hide one of a, red, fox"):
        momentum_encoder.words(picture, TEXT, "boat")
    with pytest.raises(ValueError, match=r"only ALBEF's pre-training keeps one"):
        MomentumEncoder.beside(load(families[1], device="cpu"))


# --------------------------------------------------------------------------- experts


def test_every_token_goes_through_the_expert_that_the_paper_says(families: list[Path], picture: Path) -> None:
    """VLMo §3.2: below `fusion_start` each modality uses its own expert, above it pairs use the shared one."""
    model = load(families[1], device="cpu")
    alone, text, pair = expert_ways(model, picture, TEXT)
    start, words = model.recipe.model.fusion_start, len(WORDS.encode([TEXT])[0])
    assert {one.expert for layer in alone.layers for one in layer if one} == {"image"}
    assert {one.expert for layer in text.layers for one in layer if one} == {"text"}
    assert (len(alone.tokens), len(text.tokens), pair.text_tokens) == (17, words, words)
    for number, layer in enumerate(pair.layers):
        names = [one.expert for one in layer if one]
        assert names == (["text"] * words + ["image"] * 17 if number < start else ["fusion"] * (words + 17))


def test_how_far_an_expert_moves_a_token_is_measured_at_the_expert(families: list[Path], picture: Path) -> None:
    model = load(families[1], device="cpu")
    first = expert_ways(model, picture, TEXT)[2].layers[1]
    with torch.no_grad():
        model.model.blocks[1].language_ffn.fc2.weight.zero_()
        model.model.blocks[1].language_ffn.fc2.bias.zero_()
    words = len(WORDS.encode([TEXT])[0])
    second = expert_ways(model, picture, TEXT)[2].layers[1]
    assert all(one and one.moved > 0 for one in first)
    assert all(one and one.moved == 0 for one in second[:words])
    assert all(one and one.moved > 0 for one in second[words:])
    assert not any(block.language_ffn._forward_hooks for block in model.model.blocks)


# --------------------------------------------------------------------------- what is loaded


def test_quality_says_what_was_measured() -> None:
    judged = {"task": "EntailmentConfig", "split": "val", "accuracy": 55.1, "accuracy.interval": [51.8, 58.0]}
    said = quality.describe({**judged, "examples": 1000})
    assert said == "entailment: 55.1 % right (95 % interval 51.8 … 58.0) on 1,000 val-split examples"
    assert "62.8 % of captions" in quality.describe(MEASURED)
    assert quality.describe({"split": "test"}) == quality.NOT_MEASURED


def test_an_album_has_captioned_pictures_first_and_invalid_captions_are_errors(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a")
    album = examples.Album.open(tmp_path / "a")
    assert [one.caption for one in album.pictures] == [*TEXTS, None]
    assert album.captions == tuple(TEXTS)
    (tmp_path / "a" / "captions.jsonl").write_text('{"image": "0.png", "caption": "x"}\n{"image": 3}\n')
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 2: not"):
        examples.Album.open(tmp_path / "a")
    with pytest.raises(ValueError, match="no pictures in"):
        examples.Album.open(save_run(tmp_path / "run", "retrieval"))
    with pytest.raises(ValueError, match="no folder"):
        examples.Album.open(tmp_path / "nowhere")


def test_an_index_is_searched_by_its_own_model_only(families: list[Path], tmp_path: Path) -> None:
    album = families[0] / "pictures"
    build_index(tmp_path / "index", album, load(families[0], device="cpu"))
    site = Site.load(families[:1], index=str(tmp_path / "index"), device="cpu")
    found, again = site.collections[families[0].as_posix()].search("a boat", 3)
    assert again is not None
    assert found.searched == 5
    with pytest.raises(ValueError, match="index"):
        Site.load(families[1:], index=str(tmp_path / "index"), device="cpu")


def test_the_search_page_says_that_nothing_fits(families: list[Path]) -> None:
    site = Site.load(families[:1], device="cpu")
    name = families[0].as_posix()
    collections = {name: site.collections[name]}
    model = collections[name].model
    shown = search.answer(collections, model, "a boat", None)
    assert "Nothing fits" not in shown
    assert "not calibrated" not in shown, "nothing was left out"
    assert "not calibrated" in search.answer(collections, model, "a boat", None, 1e-6)
    index = collections[name].index
    index.predictor = replace(index.predictor, calibration=MatchCalibration(0.01, 0.0, -3.0, 0.5, 10, 10))
    assert "No picture matches with at least 50 %; the best has" in search.answer(collections, model, "a boat", None)
    assert "Nothing fits" not in search.answer(collections, model, "a boat", None, 0.0)


def test_a_least_match_is_a_percentage_or_empty() -> None:
    field = PercentField("Minimum match, in %")
    assert [field.read(sent) for sent in ("", None, " 50 ", "12,5%", "0")] == [None, None, 0.5, 0.125, 0.0]
    for wrong in ("many", "101", "-1", "nan"):
        with pytest.raises(ValueError, match="a number from 0 to 100"):
            field.read(wrong)


def test_fields_name_missing_and_excessive_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no left picture yet"):
        PictureField("Left picture").read(None)
    with pytest.raises(ValueError, match="no question yet"):
        TextField("Question").read("  ")
    assert PictureField(optional=True).read(None) is None
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    monkeypatch.setattr("diptych.apps.app.fields.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"a\.png is too large"):
        read_picture(tmp_path / "a.png", "a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["{run}", "--images", "{run}/none"], "no folder"),
        (["{run}", "--index", "{run}/none"], "none"),
        (["{run}", "{run}"], "is given twice"),
        (["{run}", "--port", "1", "--host", "203.0.113.7"], "cannot listen at 203.0.113.7:1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    families: list[Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(families[0] / "tasks" / "retrieval")
    assert main(["app", *(one.format(run=run) for one in arguments), "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_it_listens_on_loopback_unless_another_host_is_given(
    families: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr("diptych.apps.app.server.serve", lambda *given: said.append(given))
    assert main(["app", "runs/demo"]) == 0
    assert said == [(["runs/demo"], None, None, "127.0.0.1", 7860, "auto", LARGEST_PIXELS, [], "", "auto")]
