"""Checks that the examples run, and that the sixth task is as short and as correct as it claims."""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import diptych
from diptych import serialize
from diptych.apps.report.run import report
from diptych.catalog import TASKS, add_task, build_task
from diptych.predict import ModelPool, load
from diptych.run import open_task
from diptych.schema import DecoderConfig, Recipe, ScenesConfig
from diptych.serialize import from_dict, to_dict
from diptych.synthetic.generator import make_scene, render
from diptych.types import PictureBatch, Progress, Texts
from tests import tiny
from tests.runs import TASK_CONFIGS, WORDS, recipe_of, save_run
from tests.serve.server_state import encoded, error, running

EXAMPLES = Path(__file__).parents[2] / "examples"
TASK = ("task.longest=4", 'task.decoder={"layers": 1, "heads": 3, "intermediate": 32, "norm": "pre", "dropout": 0.0}')
SHORT = ("run.steps=3", "schedule.warmup_steps=1", "run.batch_size=4", "run.validate_every=0", "run.device=cpu")
FEW = ("data.scenes.count=40", "data.scenes.evaluation_count=6", "data.workers=0")


def module(name: str) -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def captioning() -> Iterator[ModuleType]:
    """Imports the example, and unregisters its task afterwards."""
    found = module("captioning")
    config = found.CaptioningConfig
    add_task(config, found.Captioning)
    yield found
    del TASKS[config], serialize.ADDED[config.__name__]


def code_lines(source: str) -> int:
    """Counts the lines of code, without blank lines, comments and docstrings."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in told for number, line in lines)


def test_the_sixth_task_takes_less_than_a_hundred_lines() -> None:
    assert code_lines("# a\n\ndef f():\n    '''b\n    c'''\n    return 1\n") == 2
    assert code_lines((EXAMPLES / "captioning.py").read_text(encoding="utf-8")) < 100


def small(captioning: ModuleType, system: str) -> Recipe:
    decoder = DecoderConfig(layers=1, heads=3, intermediate=32, norm="pre", dropout=0.0)
    return recipe_of(captioning.CaptioningConfig(decoder, longest=4), system)


@pytest.mark.parametrize("system", ["albef", "vlmo"])
def test_captions_are_trained_measured_and_stored_on_either_model(
    captioning: ModuleType, system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", "pretraining", system)
    captioning.main([str(run), "--to", str(tmp_path / "out"), *TASK, *SHORT, *FEW])
    told = capsys.readouterr().out
    assert told.count("% of next words right") == 2
    for name, blank in (("pictures", False), ("blank-pictures", True)):
        found = json.loads((tmp_path / "out" / name / "eval.json").read_text())
        assert (found["task"], found["labelled"]) == ("CaptioningConfig", 6)
        opened = open_task(tmp_path / "out" / name)
        assert opened.recipe.data.blank_images == blank
        assert type(opened.task) is captioning.Captioning
    loaded = load(tmp_path / "out" / "pictures", "cpu")
    assert loaded.missing("match")  # a head of its own: nothing else is promised
    opened = open_task(tmp_path / "out" / "pictures").task
    assert isinstance(loaded.task, captioning.Captioning)
    assert torch.equal(loaded.task.predict(tiny.batch()), opened.predict(tiny.batch()))
    assert all(map(torch.equal, loaded.task.state_dict().values(), opened.state_dict().values()))
    page = report(tmp_path / "out" / "pictures").read_text(encoding="utf-8")
    assert "Captioning: Words right" in page
    assert "Which word comes next" in page


def test_one_file_and_one_line_bring_prediction_and_an_endpoint(
    captioning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = {file: file.read_text(encoding="utf-8") for file in Path(diptych.__file__).parent.rglob("*.py")}
    assert not [file for file, source in library.items() if "Captioning" in source]
    monkeypatch.setitem(TASK_CONFIGS, "captioning", small(captioning, "albef").task)
    run, trained = save_run(tmp_path / "run", "pretraining"), save_run(tmp_path / "captioning", "captioning")
    model, picture = load(trained, "cpu"), Image.new("RGB", (20, 30), "red")
    # Prediction: a method with the signature that the ability states, of one picture or of many.
    text = model.caption(picture)
    pixels = model.transform(picture)[None]
    assert text == model.tokenizer.decode(model.task.predict(PictureBatch(pixels, torch.zeros(1).long()))[0].tolist())
    assert model.caption([picture, picture]) == (text, text) == model.caption(image=[picture] * 2)
    assert str(signature(model.caption)) == "(image)"
    assert (model.missing("caption"), load(run, "cpu").missing("entail") is None) == (None, False)
    with pytest.raises(ValueError, match="not trained for captions: no recipe of the library trains it"):
        load(run, "cpu").caption(picture)
    with pytest.raises(AttributeError, match="no attribute 'captoin'"):
        model.captoin(picture)
    # Serving: an endpoint, in the description and on the page, and a place in the list of abilities.
    with running(ModelPool.load([run, trained], device="cpu")) as served:
        answer = served.post("/v1/caption", {"picture": encoded(picture)})
        assert answer.json() == {"model": trained.as_posix(), "unknown_words": [], "results": [text]}
        assert error(served.post("/v1/caption", {"picture": "no picture"})) == "bad_picture"
        assert (
            error(served.post("/v1/caption", {"picture": encoded(picture), "model": run.as_posix()})) == "not_trained"
        )
        described = served.get("/openapi.json").json()["paths"]["/v1/caption"]["post"]
        assert described["description"] == "A caption of a picture."
        assert "/v1/caption" in served.get("/").text
        listed = served.get("/v1/models").json()["models"]
        assert [one["best_for"] for one in listed if "caption" in one["abilities"]] == [["caption"]]


def test_a_caption_is_read_from_its_picture_and_never_from_itself(captioning: ModuleType) -> None:
    """A word is predicted from the picture and the words before it only."""
    for system in ("albef", "vlmo"):
        task = build_task(small(captioning, system), WORDS).eval()
        tiny.shake(task)
        batch = tiny.batch((5, 5, 5, 5))
        other = batch.texts.input_ids.clone()
        other[:, 3:] = 9
        changed = replace(batch, texts=Texts(other, batch.texts.attention_mask))
        with torch.no_grad():
            before, after = task.word_logits(batch)[0].view(4, 5, -1), task.word_logits(changed)[0].view(4, 5, -1)
            turned = task.word_logits(replace(batch, pixels=batch.pixels.flip(0)))[0].view(4, 5, -1)
        torch.testing.assert_close(after[:, :3], before[:, :3])
        assert not torch.allclose(after[:, 3:], before[:, 3:])
        assert not torch.allclose(turned, before)


def test_the_loss_is_that_of_the_written_out_sequence(captioning: ModuleType) -> None:
    task = build_task(small(captioning, "albef"), WORDS).eval()
    batch = tiny.batch((5, 9, 3, 7))
    losses = task(batch, Progress(0, 0.0))
    logits, _, _ = task.word_logits(batch)
    rows = logits.log_softmax(1).split([5, 9, 3, 7])
    total = 0.0
    for text, mask, scores in zip(batch.texts.input_ids, batch.texts.attention_mask, rows, strict=True):
        words = [*text[mask].tolist()[1:], WORDS.sep_id]
        total -= sum(scores[place, word].item() for place, word in enumerate(words))
    assert math.isclose(losses.total.item(), total / 24, rel_tol=1e-4)
    losses.total.backward()
    assert [name for name, one in task.named_parameters() if one.requires_grad and one.grad is None] == []


def test_greedy_decoding_takes_the_likeliest_next_word(captioning: ModuleType) -> None:
    task = build_task(small(captioning, "vlmo"), WORDS).eval()
    tiny.shake(task)
    batch = tiny.batch((2, 2, 2, 2))
    said = task.predict(batch)
    opened = torch.cat([torch.full((4, 1), WORDS.cls_id), said], dim=1)
    with torch.no_grad():
        logits, _, _ = task.word_logits(replace(batch, texts=Texts(opened, torch.ones_like(opened).bool())))
    best = logits.view(4, opened.shape[1], -1).argmax(2)
    for row, words in enumerate(said.tolist()):
        for place, word in enumerate(words):
            assert word == best[row, place]
            if word == WORDS.sep_id:
                break


def test_a_recipe_of_an_unknown_kind_of_task_is_an_error_until_it_is_added(captioning: ModuleType) -> None:
    stored = to_dict(small(captioning, "albef"))
    assert from_dict(stored) == small(captioning, "albef")
    added = serialize.ADDED.pop("CaptioningConfig")
    with pytest.raises(ValueError, match=r"task\.kind: expected one of .*, got 'CaptioningConfig'"):
        from_dict(stored)
    serialize.ADDED["CaptioningConfig"] = added


def test_own_pairs_go_from_a_folder_to_a_model_that_searches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, photos = ScenesConfig(sprites="shapes", size=32), tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        scene = make_scene(scenes, "train", number)
        render(scene, scenes).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"a picture of {scene.objects[0].sprite}\n")
    changes = ["run.steps=3", "run.batch_size=8", "run.validate_every=0", "data.workers=0", "run.device=cpu"]
    module("own_pairs").main([str(photos), *changes, "--to", str(tmp_path / "run"), "--queries", "a picture"])
    told = capsys.readouterr().out
    assert '"a picture" among 40 pictures' in told
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["images"] == 4  # a tenth of them, which training never saw
    assert (tmp_path / "run" / "report.html").is_file()
