"""A folder of classes: zero-shot is `classify`, the probe is logistic regression, mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.cli.main import main
from diptych.data.classes import read_classes
from diptych.evaluate.linear_probe import PENALTIES, cross_predict, fit, folds, predict, train_probe
from diptych.run import evaluate_classes
from tests.runs import save_run

COLOURS = {"red_fox": (200, 40, 30), "boat": (30, 60, 200), "bird": (40, 200, 60)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("albef"), "retrieval")


def save_classes(folder: Path, count: int = 6, seed: int = 0) -> Path:
    """Saves noisy pictures whose mean colour tells their class."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.array(colour) + random.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_zero_shot_is_classify(run: Path, tmp_path: Path) -> None:
    folder = save_classes(tmp_path / "classes")
    measured, _ = read_classes(folder)
    assert measured.names == ("bird", "boat", "red fox")
    evaluated = evaluate_classes(run, folder, device="cpu")
    said = diptych.load(run, "cpu").classify(measured.files, measured.names)
    right = [choice.label == measured.names[label] for choice, label in zip(said, measured.labels, strict=True)]
    assert evaluated.zero_shot.overall.value == pytest.approx(100 * np.mean(right))
    assert sum(count.right for count in evaluated.zero_shot.classes.values()) == sum(right)
    assert evaluated.probe is None


def test_the_probe_learns_what_the_names_do_not_tell(run: Path, tmp_path: Path) -> None:
    evaluated = evaluate_classes(run, save_classes(tmp_path / "classes", 10), probe=True, device="cpu")
    assert evaluated.probe is not None
    assert evaluated.probe.overall.value > 90
    assert evaluated.probe.overall.count == 30
    assert evaluated.trained_on is None


def test_train_and_test_subfolders_are_used_as_such(run: Path, tmp_path: Path) -> None:
    save_classes(tmp_path / "train", 8), save_classes(tmp_path / "val", 3, seed=1)
    evaluated = evaluate_classes(run, tmp_path, probe=True, device="cpu")
    assert (evaluated.trained_on, evaluated.zero_shot.overall.count) == (24, 9)
    assert evaluated.probe is not None
    assert evaluated.probe.overall.value > 80
    (tmp_path / "train" / "bird").rename(tmp_path / "train" / "cat")
    with pytest.raises(ValueError, match="hold different classes: bird, cat"):
        evaluate_classes(run, tmp_path, device="cpu")


@pytest.mark.parametrize("penalty", [10.0, 0.1, 1e-3])
def test_the_probe_is_logistic_regression(penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 4
    vectors = torch.nn.functional.normalize(
        torch.randn(60, 6, generator=random) + torch.eye(4)[labels] @ torch.randn(4, 6, generator=random), dim=1
    )
    theirs = linear_model.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(vectors, labels)
    logits = torch.nn.functional.pad(vectors.double(), (0, 1), value=1.0) @ fit(vectors, labels, 4, penalty)
    assert np.allclose(logits.softmax(dim=1).numpy(), theirs.predict_proba(vectors), atol=1e-4)


def test_a_picture_is_predicted_by_a_probe_that_has_not_seen_it() -> None:
    """With labels that vectors do not tell, a probe that had seen them would still be right."""
    random = torch.Generator().manual_seed(1)
    vectors, labels = torch.randn(100, 80, generator=random), torch.randint(0, 2, (100,), generator=random)
    seen = fit(vectors, labels, 2, PENALTIES[-1])
    assert (predict(vectors, seen) == labels).all()
    assert 0.25 < float((cross_predict(vectors, labels, 2) == labels).float().mean()) < 0.75
    assert torch.equal(train_probe(vectors, labels, 2), train_probe(vectors, labels, 2))
    assert folds([0] * 10).bincount().tolist() == [2] * 5


def test_the_command_prints_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_classes(tmp_path / "classes")
    (folder / "bird" / "broken.png").write_text("no picture")
    (tmp_path / "names.json").write_text(json.dumps({"red_fox": "a red fox left of a car"}))
    words = ["evaluate", str(run), "--classes", str(folder), "--probe", "--template", "{}", "--template", "two {}"]
    assert main([*words, "--class-names", str(tmp_path / "names.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "eval-classes.json").read_text())
    assert printed == stored
    assert stored["templates"] == ["{}", "two {}"]
    assert (stored["pictures"], stored["skipped"], stored["classes"]) == (18, 1, 3)
    assert stored["chance.accuracy"] == pytest.approx(100 / 3, abs=1e-4)
    assert set(stored["zero_shot.accuracy_by_class"]) == {"bird", "boat", "a red fox left of a car"}
    assert main(words) == 0
    table = capsys.readouterr().out
    stored = json.loads((run / "eval-classes.json").read_text())
    assert f"Zero-shot, by name  {stored['zero_shot.accuracy']:5.1f}" in table
    assert "Linear probe" in table
    assert "1 could not be read: " in table
    assert stored["unknown_words"] == []
    assert "cannot read" not in table


def test_words_of_names_that_the_model_cannot_read_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_classes(tmp_path / "classes", 2)
    (folder / "bird").rename(folder / "狐")
    assert main(["evaluate", str(run), "--classes", str(folder)]) == 0
    assert "words of the names that the model cannot read: 狐" in capsys.readouterr().out
    assert json.loads((run / "eval-classes.json").read_text())["unknown_words"] == ["狐"]


def test_five_of_many_classes_are_measured_too(run: Path, tmp_path: Path) -> None:
    words = ["fox", "boat", "bird", "dog", "car", "tree", "beach"]
    for number, name in enumerate(words):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (30 * number, 100, 50)).save(tmp_path / name / "0.png")
    evaluated = evaluate_classes(run, tmp_path, device="cpu")
    said = diptych.load(run, "cpu").classify(read_classes(tmp_path)[0].files, sorted(words))
    right = [name in list(choice.probabilities)[:5] for name, choice in zip(sorted(words), said, strict=True)]
    assert evaluated.zero_shot_of_five is not None
    assert evaluated.zero_shot_of_five.value == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "nowhere"], "no folder nowhere: a folder of classes has a subfolder"),
        (["--classes", "one"], "one holds pictures of 1 classes, and two are needed"),
        (["--classes", "flat"], "flat holds pictures of 0 classes"),
        (["--classes", "classes", "--template", "a photo"], "the template 'a photo' has no {}"),
        (["--classes", "classes", "--class-names", "names.json"], "classes has no class 'cat'; it has bird, boat, red"),
        (["--classes", "single", "--probe"], "needs two pictures of each class that can be read; 'b' has fewer"),
        (["--classes", "classes", "data.path=x"], "name=value do not go with it"),
        (["--probe"], "--probe, --template and --class-names belong to --classes DIR"),
    ],
)
def test_mistakes_are_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_classes(tmp_path / "classes", 2)
    for name, count in (("one/a", 2), ("flat", 2), ("single/a", 2), ("single/b", 1)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "names.json").write_text('{"cat": "a cat"}')
    assert main(["evaluate", str(run), *words]) == 2
    assert message in capsys.readouterr().err
