"""Searches that leave out hits below a minimum match: in Python, on the command line and in stored models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych.apps.export import export_folder
from diptych.apps.report import collect, write_report
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.predict import Predictor, load
from diptych.search.calibration import MatchCalibration
from tests.runs import TEXTS, save_run

FIXTURES = Path(__file__).parents[1] / "fixtures"
HOPEFUL = MatchCalibration(1.0, 0.0, 40.0, 0.5, 10, 10)
"""Finds every hit right."""
DOUBTFUL = MatchCalibration(0.01, 0.0, -3.0, 0.5, 10, 10)
"""Finds no hit right: each has about 5 %."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), "retrieval")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    for number in range(4):
        Image.radial_gradient("L").resize((48, 40)).rotate(40 * number).convert("RGB").save(place / f"{number}.png")
    return place


@pytest.fixture
def model(run: Path) -> Predictor:
    return load(run, "cpu")


@pytest.fixture
def calibrated(run: Path) -> Iterator[Path]:
    """The run with a calibration that finds nothing right."""
    (folder,) = (run / "checkpoints").iterdir()
    store.save_calibration(folder, DOUBTFUL.to_json())
    yield run
    (folder / store.CALIBRATION).unlink()


def files(photos: Path) -> list[Path]:
    return sorted(photos.glob("*.png"))


def test_the_probability_is_the_calibrated_one_in_the_same_order(model: Predictor, photos: Path) -> None:
    before = model.rank(TEXTS[0], files(photos), rerank=True)
    gentle = replace(model, calibration=MatchCalibration(0.5, 0.3, -1.0, 0.0, 10, 10))
    after = gentle.rank(TEXTS[0], files(photos), rerank=True)
    assert [hit.name for hit in after] == [hit.name for hit in before]
    tokens = int(model.texts(TEXTS[0]).attention_mask.sum())
    odds = torch.tensor([hit.match for hit in before]).logit()
    expected = torch.sigmoid(0.5 * odds + 0.3 * torch.tensor(tokens).log() - 1)
    assert [hit.match for hit in after] == pytest.approx(expected.tolist(), rel=1e-3)
    assert torch.equal(gentle.match(files(photos), TEXTS), model.match(files(photos), TEXTS)), "ITM's own, as ever"


def test_hits_below_the_least_match_are_left_out(model: Predictor, photos: Path) -> None:
    everything = model.rank(TEXTS[0], files(photos), rerank=True)
    second = everything[1].match
    assert second is not None
    assert model.rank(TEXTS[0], files(photos), rerank=True, min_match=None) == everything, "it is not calibrated"
    assert model.rank(TEXTS[0], files(photos), rerank=True, min_match=second) == everything[:2]
    assert len(replace(model, calibration=HOPEFUL).rank(TEXTS[0], files(photos), rerank=True, min_match=None)) == 4
    doubting = replace(model, calibration=DOUBTFUL)
    assert doubting.rank(TEXTS[0], files(photos), rerank=True, min_match=None) == (), "its own minimum match is 0.5"
    assert len(doubting.rank(TEXTS[0], files(photos), rerank=True)) == 4, "whoever wants an order gets it"
    assert len(doubting.rank(TEXTS[0], files(photos), rerank=False, min_match=None)) == 4, "similarity knows no match"


def test_a_least_match_that_means_nothing_is_refused(model: Predictor, photos: Path) -> None:
    with pytest.raises(ValueError, match="needs re-ranking"):
        model.rank(TEXTS[0], files(photos), rerank=False, min_match=0.5)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            model.rank(TEXTS[0], files(photos), min_match=wrong)


def test_search_says_that_nothing_matches(calibrated: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", str(calibrated), TEXTS[0], "--images", str(photos), "--device", "cpu"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "no picture matches with at least 50 %; the best has 4." in shown or "the best has 5." in shown
    assert "0.png" not in shown
    assert main([*command, "--min-match", "0"]) == 0
    assert "0.png" in capsys.readouterr().out
    assert main([*command, "--min-match", "50%"]) == 0
    assert "no picture matches with at least 50 %" in capsys.readouterr().out
    assert main([*command, "--min-match", "2"]) == 2
    assert "from 0 to 1" in capsys.readouterr().err


def test_an_uncalibrated_model_says_so(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", str(run), TEXTS[0], "--images", str(photos), "--device", "cpu"]
    assert main(command) == 0
    assert "not calibrated" not in capsys.readouterr().out, "nothing was left out"
    assert main([*command, "--min-match", "1e-9"]) == 0
    assert "not calibrated" in capsys.readouterr().out


def test_index_search_says_that_nothing_matches(
    calibrated: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "index")
    assert main(["index", "build", str(photos), "--model", str(calibrated), "--at", place, "--device", "cpu"]) == 0
    search = ["index", "search", place, TEXTS[0], "--device", "cpu"]
    capsys.readouterr()
    assert main([*search, "--rerank"]) == 0
    assert "no picture matches with at least 50 %; the best has" in capsys.readouterr().out
    assert main([*search, "--rerank", "--min-match", "0"]) == 0
    assert "0.png" in capsys.readouterr().out
    assert main(search) == 0
    assert "0.png" in capsys.readouterr().out
    assert main([*search, "--min-match", "0.5"]) == 2
    assert "needs re-ranking" in capsys.readouterr().err


def test_the_calibration_belongs_to_the_checkpoint_and_to_its_export(calibrated: Path, tmp_path: Path) -> None:
    assert load(calibrated, "cpu").calibration == DOUBTFUL
    exported = export_folder(calibrated, tmp_path / "exported")
    assert load(exported, "cpu").calibration == DOUBTFUL
    assert store.CALIBRATION not in json.loads((exported / store.MANIFEST).read_text()), "evaluate may replace it"
    again = export_folder(exported, tmp_path / "again")
    assert load(again, "cpu").calibration == DOUBTFUL
    (again / store.CALIBRATION).unlink()
    assert load(again, "cpu").calibration is None


@pytest.mark.parametrize("content", ["{", '{"slope": 1}', json.dumps(DOUBTFUL.to_json() | {"bias": "x"})])
def test_a_damaged_calibration_is_named(calibrated: Path, content: str) -> None:
    (folder,) = (calibrated / "checkpoints").iterdir()
    (folder / store.CALIBRATION).write_text(content)
    with pytest.raises(store.CheckpointError, match=r"calibration\.json is damaged .*remove it"):
        load(calibrated, "cpu")


def test_checkpoints_without_calibration_load_as_before() -> None:
    assert load(FIXTURES / "runs" / "albef", "cpu").calibration is None
    assert load(FIXTURES / "exported" / "albef", "cpu").calibration is None


def test_evaluate_calibrates_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(FIXTURES / "runs" / "albef", tmp_path / "albef"))
    weights = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "eval.json"}
    assert main(["evaluate", str(run)]) == 0
    table = capsys.readouterr().out
    measured = json.loads((run / "eval.json").read_text())
    for kind in ("captions", "names"):
        error = sum(
            count * abs(probability - right) for count, probability, right in measured[f"calibration.{kind}.bins"]
        ) / sum(count for count, _, _ in measured[f"calibration.{kind}.bins"])
        assert measured[f"calibration.{kind}.error"] == pytest.approx(100 * error, abs=1e-3)
        assert f"searches by {kind}" in table
    calibration = load(run, "cpu").calibration
    assert calibration is not None
    assert measured["calibration.min_match"] == calibration.min_match
    assert calibration.slope > 0
    assert all(file.read_bytes() == content for file, content in weights.items()), "it only adds a file"
    page = write_report(run, collect(run, evaluation=measured)).read_text()
    assert 'id="calibration"' in page
    assert page.count('<figure class="reliability chart">') == 2

    assert main(["evaluate", str(run), "data.scenes.seed=7"]) == 0
    assert load(run, "cpu").calibration == calibration, "other data do not change it"
    assert main(["evaluate", str(run), "--split", "validation"]) == 0
    validated = json.loads((run / "eval-validation.json").read_text())
    assert not [name for name in validated if name.endswith(".error")], "it was fitted on that split"


def test_a_dual_encoder_has_nothing_to_calibrate(tmp_path: Path) -> None:
    run = Path(shutil.copytree(FIXTURES / "runs" / "albef", tmp_path / "albef"))
    assert main(["evaluate", str(run), "evaluation.rerank=0"]) == 0
    assert not [name for name in json.loads((run / "eval-changed.json").read_text()) if "error" in name]
