"""Runs side by side: their own numbers, the same data or none, rates of what really ran, parameters really reached."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from diptych import catalog
from diptych.apps.compare import as_text, compare, speed, write
from diptych.apps.compare.parameters import reached
from diptych.apps.compare.quality import quality, same_data
from diptych.apps.report.compared import Comparison, Quality, Score, render
from diptych.apps.report.stages import training_rate
from diptych.cli.main import main
from diptych.metrics.intervals import Interval
from diptych.predict import load
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.evaluation import evaluate_as_retrieval
from tests.contracts.test_report import NASTY, Page
from tests.tiny import albef, vlmo

SHRUNK = {
    "data.scenes.sprites": "shapes", "data.scenes.count": 64, "data.scenes.evaluation_count": 12, "data.workers": 0,
    "run.steps": 2, "run.batch_size": 8, "run.log_every": 1, "run.validate_every": 0, "run.device": "cpu",
    "evaluation.rerank": 4, "evaluation.bootstrap": 20,
}  # fmt: skip
SMALL = {"albef_tiny": {"model.vision.depth": 1, "model.text.layers": 2, "model.text.fusion_start": 1},
         "vlmo_tiny": {"model.depth": 2, "model.fusion_start": 1, "data.single_phrases": 0.3,
                       "data.window": 2}}  # fmt: skip
"""What differs between the runs is no field that a test record depends on."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Trains both systems for two steps and measures them."""
    place = tmp_path_factory.mktemp("runs")
    for name, small in SMALL.items():
        recipe = replace(override(catalog.find_recipe(name), SHRUNK | small), init_from=None)
        train(recipe, place / name)
        evaluate_as_retrieval(place / name)
    return place / "albef_tiny", place / "vlmo_tiny"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)


@pytest.fixture(scope="module")
def found(runs: tuple[Path, Path]) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.01)
        return compare(runs, rounds=3)


def copied(run: Path, to: Path, **changes: object) -> Path:
    """Copies a run and changes fields of its recipe, which have dotted names."""
    shutil.copytree(run, to)
    recipe = json.loads((to / "recipe.json").read_text())
    for name, value in changes.items():
        *groups, field = name.split(".")
        inner = recipe
        for group in groups:
            inner = inner[group]
        inner[field] = value
    (to / "recipe.json").write_text(json.dumps(recipe))
    return to


# --------------------------------------------------------------------------- quality


def test_measures_are_those_of_each_run_s_evaluation(found: Comparison, runs: tuple[Path, Path]) -> None:
    evaluations = [json.loads((run / "eval.json").read_text()) for run in runs]
    rows = {one.measure: one for one in found.quality}
    for measure, key in (
        ("text → picture, recall@10, dual encoder", "contrastive.text_to_image.recall@10"),
        ("picture → text, recall@1, re-ranked", "image_to_text.recall@1"),
    ):
        assert [score and score.value for score in rows[measure].scores] == [one[key] for one in evaluations]
        assert rows[measure].chance == evaluations[0][f"chance.{key.removeprefix('contrastive.')}"]


def test_a_run_that_was_not_re_ranked_stands_beside_one_that_was(runs: tuple[Path, Path], tmp_path: Path) -> None:
    alone = copied(runs[1], tmp_path / "alone")
    stored = json.loads((alone / "eval.json").read_text())
    plain = {key: value for key, value in stored.items() if not key.startswith("rerank_gain")}
    (alone / "eval.json").write_text(json.dumps(plain))
    rows = {one.measure: one.scores for one in quality([runs[0], alone])}
    first, second = rows["picture → text, recall@1, re-ranked"]
    assert first is not None
    assert second is None
    assert None not in rows["picture → text, recall@1, dual encoder"]


def test_tasks_below_the_runs_are_compared_by_their_folders(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pair = [copied(run, tmp_path / run.name) for run in runs]
    for run, value in zip(pair, (60.0, 70.0), strict=True):
        task = run / "tasks" / "entailment"
        task.mkdir(parents=True)
        recipe = json.loads((run / "recipe.json").read_text())
        recipe["task"] = {"kind": "EntailmentConfig"}
        (task / "recipe.json").write_text(json.dumps(recipe))
        evaluation = {"accuracy": value, "accuracy.interval": [value - 3, value + 3], "references.commonest": 34.0}
        (task / "eval.json").write_text(json.dumps(evaluation))
    (row,) = [one for one in quality(pair) if one.task == "entailment"]
    assert row == Quality(
        "entailment", "accuracy", (Score(60.0, Interval(57.0, 63.0)), Score(70.0, Interval(67.0, 73.0))), 34.0
    )
    assert row.apart


def test_intervals_that_overlap_are_not_apart() -> None:
    first, second, third = (Score(v, Interval(v - 3, v + 3)) for v in (50.0, 55.0, 70.0))
    assert not Quality("t", "m", (first, second), None).apart
    assert not Quality("t", "m", (third, second, first), None).apart
    assert Quality("t", "m", (third, None, first), None).apart


# --------------------------------------------------------------------------- the same data


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.scenes.seed", 7), ("data.blank_images", True), ("data.scenes.objects", [1, 2]), ("data.source", "folder")],
)
def test_runs_measured_on_different_data_are_refused_with_the_fields(
    runs: tuple[Path, Path], tmp_path: Path, name: str, value: object
) -> None:
    other = copied(runs[1], tmp_path / "other", **{name: value})
    with pytest.raises(ValueError, match=rf"measured on different data:(?s:.*){re.escape(name)}: .* and "):
        compare([runs[0], other])


def test_what_only_training_sees_may_differ(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = copied(runs[1], tmp_path / "other", **{"data.scenes.noise": 0.5, "data.scenes.count": 9, "data.flip": 0.1})
    assert same_data([runs[0], other])["data.scenes.seed"] == 0


def test_another_number_of_records_is_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = copied(runs[1], tmp_path / "other")
    stored = json.loads((other / "eval.json").read_text())
    (other / "eval.json").write_text(json.dumps(stored | {"texts": 5}))
    with pytest.raises(ValueError, match="texts: 12 and 5"):
        compare([runs[0], other])


def test_what_cannot_be_compared_says_what_to_do(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two runs at least"):
        compare(runs[:1])
    with pytest.raises(ValueError, match="--rounds is 0"):
        compare(runs, rounds=0)
    bare = copied(runs[0], tmp_path / "bare")
    (bare / "eval.json").unlink()
    with pytest.raises(ValueError, match=r"eval\.json does not exist: .* `diptych evaluate` has measured"):
        compare([bare, runs[1]])


# --------------------------------------------------------------------------- speed and parameters


def test_every_rate_is_of_rounds_and_training_s_of_the_log(found: Comparison, runs: tuple[Path, Path]) -> None:
    rows = {one.what: one.rates for one in found.speed}
    assert list(rows) == ["training", "embedding pictures", "search, dual encoder", "search, re-ranked"]
    assert [rate and rate.value for rate in rows["training"]] == [training_rate(run) for run in runs]
    for rates in rows.values():
        for rate in rates:
            assert rate is not None
            assert 0 < rate.least <= rate.value <= rate.most


def test_the_training_rate_is_pairs_by_time_in_steps(tmp_path: Path) -> None:
    lines = [
        {"step": 2, "pairs": 20, "pairs_per_second": 10.0},
        {"step": 2, "pairs": 20, "validation": {"mean_recall": 1.0}},
        {"step": 4, "pairs": 40, "pairs_per_second": 40.0},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert training_rate(tmp_path) == pytest.approx(40 / (2 + 0.5))


def test_every_model_is_measured_in_every_round_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    one, other = (object.__new__(speed.Subject) for _ in range(2))

    def rate(subject: speed.Subject, call: object, seconds: float) -> float:
        order.append("a" if subject is one else "b")
        return float(len(order))

    monkeypatch.setattr(speed, "_rate", rate)
    first, gone, second = speed._rates([one, None, other], speed.Subject.embed, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]  # the first two warm up
    assert gone is None
    assert first is not None
    assert second is not None
    assert (first.least, first.value, first.most) == (4.0, 5.0, 8.0)
    assert (second.least, second.value, second.most) == (3.0, 6.0, 7.0)


def test_parameters_are_those_that_change_the_result(found: Comparison, runs: tuple[Path, Path]) -> None:
    """The expected counts come from changing each parameter and looking whether the result moves."""
    counts = {one.what: one.counts for one in found.parameters}
    for place, run in enumerate(runs):
        model = load(run, device="cpu").model
        assert counts["all"][place] == sum(parameter.numel() for parameter in model.parameters())
        size = load(run).recipe.model.image_size
        pixels = torch.rand(1, 3, size, size)
        with torch.no_grad():
            before = model.embed_image(model.image_state(pixels))["main"]
            moved = 0
            for parameter in model.parameters():
                kept = parameter.clone()
                parameter.add_(torch.randn_like(parameter))
                moved += parameter.numel() * bool(
                    (model.embed_image(model.image_state(pixels))["main"] - before).abs().max() > 0
                )
                parameter.copy_(kept)
        assert counts["a picture alone"][place] == moved


def test_counting_leaves_what_trains_as_it_was() -> None:
    for model in (albef(), vlmo()):
        first = next(model.parameters())
        first.requires_grad_(False)
        reached(model, partial(torch.mul, first, 2))
        assert not first.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())


# --------------------------------------------------------------------------- shown


def test_the_verb_prints_and_writes_what_was_found(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--to", str(tmp_path), "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["name"] for run in stored["runs"]] == ["albef_tiny", "vlmo_tiny"]
    for count in stored["parameters"][-1]["counts"]:
        assert f"{count:,}" in printed
        assert f"{count:,}" in Page((tmp_path / "comparison.html").read_text()).text


def test_the_page_loads_nothing_and_text_stays_text(found: Comparison) -> None:
    named = replace(found, runs=tuple(replace(run, name=NASTY) for run in found.runs))
    page, harmless = Page(render(named)), Page(render(found))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert all(one.get("href", "#").startswith("#") for _, one in page.elements)  # type: ignore[union-attr]
    assert not any(key in one for _, one in page.elements for key in ("src", "srcset"))
    assert {one["href"] for one in page.all("a")} == {f"#{one['id']}" for one in page.all("section")}


def test_runs_of_one_recipe_are_told_apart_by_their_folders(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = copied(runs[0], tmp_path / "again")
    found = compare([runs[0], other], rounds=1)
    assert [run.name for run in found.runs] == [f"albef_tiny in {runs[0]}", f"albef_tiny in {other}"]
    assert str(other) in as_text(found)
    assert write(found, tmp_path / "to") == tmp_path / "to" / "comparison.html"
