"""Files that an earlier version wrote still open and give the numbers that it computed (tests/fixtures/README.md).

The tests use only the public surface: the commands, `diptych.load`, and recipes as JSON. So internals may be renamed.
Numbers are compared with a tolerance, because processors round differently. With DIPTYCH_EXACT=1 they must be equal
bit for bit, which holds on the kind of machine that wrote them, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.catalog import find_recipe
from diptych.cli.main import main
from diptych.data import wordpiece_trainer
from diptych.serialize import from_dict, to_dict

FIXTURES = Path(__file__).parents[1] / "fixtures"
Json = dict[str, Any]


def read(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


def lines(file: Path) -> list[Json]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


EXPECTED: Json = read("expected.json")
CATALOG: dict[str, Json] = {recipe["name"]: recipe for recipe in lines(FIXTURES / "recipes" / "catalog.jsonl")}
TRAINED: Json = read("recipes/trained.json")
EVALUATED: list[tuple[str, Json, Json]] = read("recipes/evaluated.json")
RUNS = sorted(folder.name for folder in (FIXTURES / "runs").iterdir())
PICTURES = [f"pictures/{number}.png" for number in range(6)]
TEXTS = ["a red hexagon below a red triangle", "a brown star"]
PHRASES = ["the star", "there is a small brown star below a blue square, and a green crescent"]
TIMES = ("seconds", "pairs_per_second", "waiting")
NAMES = ("task",)
"""Entries of `eval.json` that name a class."""

EXACT = os.environ.get("DIPTYCH_EXACT") == "1"
RELATIVE, ABSOLUTE = 1e-4, 2e-5


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes into an empty folder. `bring` copies fixtures to the paths there that stored recipes name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bring(name: str) -> Path:
    """Copies a folder of the fixtures into the working folder."""
    return Path(shutil.copytree(FIXTURES / name, name))


# --------------------------------------------------------------------------- comparison


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Lists where two JSON values differ by more than rounding."""
    if isinstance(theirs, dict) and isinstance(ours, Mapping):
        if ours.keys() != theirs.keys():
            return [f"{where}: {sorted(ours)} instead of {sorted(theirs)}"]
        return [line for key in theirs for line in differences(ours[key], theirs[key], f"{where}.{key}")]
    if isinstance(theirs, list) and isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [f"{where}: {len(ours)} entries instead of {len(theirs)}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for place, (one, other) in pairs for line in differences(one, other, f"{where}[{place}]")]
    if isinstance(theirs, float) and isinstance(ours, float) and not EXACT:
        same = math.isclose(ours, theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        same = ours == theirs
    return [] if same else [f"{where}: {ours!r} instead of {theirs!r}"]


def assert_same(ours: Any, theirs: Any) -> None:
    assert not differences(ours, theirs)


def test_the_comparison_sees_other_values_names_and_lengths() -> None:
    assert not differences({"a": (1.00001, "x")}, {"a": [1.0, "x"]}) or EXACT
    assert differences({"a": [1.001, "x"]}, {"a": [1.0, "x"]}) == [".a[0]: 1.001 instead of 1.0"]
    assert differences({"a": 1}, {"b": 1}) == [": ['a'] instead of ['b']"]
    assert differences([1], [1, 2]) == [": 1 entries instead of 2"]
    assert differences({"a": None}, {"a": 0.0}) == [".a: None instead of 0.0"]


def measured(run: Path, name: str = "eval.json") -> Json:
    """Reads the measures that the earlier version knew, which had no calibration."""
    stored = json.loads((run / name).read_text())
    return {key: value for key, value in stored.items() if key not in NAMES and not key.startswith("calibration.")}


UNTRAINED_ITM = ("vlmo_retrieval",)
"""Runs that the earlier version re-ranked by the ITM of before, which their task does not train."""


def by_similarity(measures: Json) -> Json:
    """Leaves out what re-ranking added to measures. The order is that of similarity then."""
    kept = {key: value for key, value in measures.items() if "rerank_gain" not in key and "candidates" not in key}
    return {key: kept.get(f"contrastive.{key}", value) for key, value in kept.items()}


def log(run: Path, after: int = 0) -> list[Json]:
    """Reads the training and validation lines after a step, without their times, as the earlier version wrote them."""
    logged = lines(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    for line in logged:
        line.get("validation", {}).pop("chance", None)  # what guessing would get is written since then
        line.get("measures", {}).pop("mi_bound_teacher", None)  # and the bound of the momentum encoder's view
    return [{key: value for key, value in line.items() if key not in TIMES} for line in logged if line["step"] > after]


# --------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_measured_as_it_was(name: str) -> None:
    run = bring(f"runs/{name}")
    before = measured(run), lines(run / "predictions.jsonl") if (run / "predictions.jsonl").exists() else []
    for file in run.glob("*.json*"):
        if file.stem in ("eval", "predictions"):
            file.unlink()
    assert main(["evaluate", str(run)]) == 0
    assert_same(measured(run), by_similarity(before[0]) if name in UNTRAINED_ITM else before[0])
    assert_same(lines(run / "predictions.jsonl") if before[1] else [], before[1])


@pytest.mark.parametrize("name", EXPECTED["resume"])
def test_a_stopped_run_goes_on_and_ends_as_it_would_have(name: str) -> None:
    run = bring(f"runs/{name}")
    assert main(["resume", str(run)]) == 0
    assert_same(log(run, after=20), EXPECTED["resume"][name])
    assert main(["evaluate", str(run)]) == 0
    after = {key: value for key, value in EXPECTED["evaluated after resuming"][name].items() if key not in NAMES}
    assert_same(measured(run), after)


@pytest.mark.parametrize("name", EXPECTED["answers"])
def test_a_model_answers_as_it_did(name: str) -> None:
    bring("pictures")
    model = diptych.load(bring(f"runs/{name}"), "cpu")
    ask = {
        "embed_images": lambda: model.embed_images(PICTURES[:2]).tolist(),
        "embed_texts": lambda: model.embed_texts(TEXTS).tolist(),
        "classify": lambda: model.classify(PICTURES[0], ["star", "hexagon", "circle"]).probabilities,
        "match": lambda: model.match(PICTURES[:2], TEXTS).tolist(),
        "rank": lambda: [
            [hit.name, hit.similarity, hit.match] for hit in model.rank(TEXTS[0], PICTURES, k=3, rerank=True)
        ],
        "entail": lambda: model.entail(PICTURES[0], TEXTS[0]).probabilities,
        "answer": lambda: answers(model),
        "answer among": lambda: answers(model, ["red", "brown", "two"]),
        "compare": lambda: model.compare(PICTURES[0], PICTURES[2], "there is a star in only one picture").probabilities,
        "locate": lambda: located(model),
    }
    asked = EXPECTED["answers"][name]
    assert_same({what: ask[what]() for what in asked}, asked)
    abilities = {"match": "match", "entail": "entail", "answer": "answer", "compare": "compare", "locate": "locate"}
    can = {what for what, ability in abilities.items() if model.missing(ability) is None}
    assert can == abilities.keys() & asked.keys(), "what it was not trained for is still refused"


def answers(model: Any, among: list[str] | None = None) -> list[list[Any]]:
    best = model.answer(PICTURES[0], "what color is the star?", answers=among)
    return [[answer.text, answer.probability] for answer in best]


def located(model: Any) -> Json:
    region = model.locate(PICTURES[0], "the red hexagon")
    return {"box": list(region.box), "score": region.score, "heat": region.heat.tolist()}


@pytest.mark.parametrize("name", EXPECTED["released layout"])
def test_a_run_is_published_in_the_released_layout_as_it_was(name: str) -> None:
    assert main(["convert", str(bring(f"runs/{name}")), "--to", "released", "published.pth"]) == 0
    digest = hashlib.sha256()

    def add(value: Any, at: str) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                add(value[key], f"{at}.{key}")
        elif isinstance(value, torch.Tensor):
            digest.update(f"{at} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().numpy().tobytes())

    add(torch.load("published.pth", weights_only=True), "")
    assert digest.hexdigest() == EXPECTED["released layout"][name]


def test_reports_and_comparisons_read_what_a_run_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(bring("runs/albef")), str(bring("runs/vlmo"))]
    assert main(["compare", *runs, "--rounds", "1", "--to", "compared"]) == 0
    assert main(["report", runs[0]]) == 0
    assert main(["inspect", runs[0]]) == 0
    assert "188 tensors of albef_tiny" in capsys.readouterr().out
    with contextlib.suppress(SystemExit):  # it ends with a status of its own where something is wrong
        assert main(["doctor", runs[0]]) == 0
    assert "runs/albef: albef_tiny, step 20 of 22" in capsys.readouterr().out
    assert Path("runs/albef/report.html").exists()
    assert Path("compared/comparison.html").exists()


# --------------------------------------------------------------------------- what runs were made into


def test_an_exported_folder_is_the_same_model() -> None:
    bring("pictures")
    bring("exported")
    exported = {
        "albef": diptych.load("exported/albef", "cpu").embed_images(PICTURES[:2]).tolist(),
        "vlmo_entailment": diptych.load("exported/vlmo_entailment", "cpu").entail(PICTURES[0], TEXTS[0]).probabilities,
    }
    assert_same(exported, EXPECTED["exported"])


@pytest.mark.parametrize("name", ["albef", "vlmo_entailment"])
def test_an_exported_folder_is_measured_as_its_run_was(name: str) -> None:
    exported = bring(f"exported/{name}")
    assert main(["evaluate", str(exported)]) == 0
    ours, theirs = measured(exported), measured(FIXTURES / "runs" / name)
    assert_same(ours | {"checkpoint": ""}, theirs | {"checkpoint": ""})


def test_an_index_is_searched_and_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("runs/albef", "pictures", "index"):
        bring(folder)
    description = Path("index/index.json")
    description.write_text(description.read_text().replace("/earlier", str(place)))

    def search(*words: str) -> list[list[Any]]:
        capsys.readouterr()
        assert main(["index", "search", "index", *words, "--device", "cpu"]) == 0
        rows = (re.match(r" *\d+ +(–|[\d.]+ %) +(-?[\d.]+) +(.+)", row) for row in capsys.readouterr().out.splitlines())
        return [[row[3], None if row[1] == "–" else float(row[1][:-2]), float(row[2])] for row in rows if row]

    results = {
        "words": search(TEXTS[0]),
        "words, re-ranked": search(TEXTS[0], "--rerank"),
        "a picture's texts": search("--image", PICTURES[0], "--of", "text", "--top", "3"),
    }
    expected = EXPECTED["index"]
    for query, hits in expected.items():
        assert [name for name, _, _ in results[query]] == [name for name, _, _ in hits]
        for (_, match, similarity), (_, their_match, their_similarity) in zip(results[query], hits, strict=True):
            assert similarity == pytest.approx(their_similarity, abs=0.0011), "three digits are printed"
            assert match == (None if their_match is None else pytest.approx(their_match, abs=0.11))
    assert main(["index", "remove", "index", "1.png"]) == 0
    best = [name for name, _, _ in expected["words"] if name != "1.png"]
    assert [name for name, _, _ in search(TEXTS[0])] == best
    Path("more").mkdir()
    shutil.copy("pictures/1.png", "more/again.png")
    assert main(["index", "add", "index", "more", "--device", "cpu"]) == 0, "by the same model, as its digest says"
    names = [name for name, _, _ in search(TEXTS[0])]
    assert names == [{"1.png": "more/again.png"}.get(name, name) for name, _, _ in expected["words"]]


def test_shards_are_read() -> None:
    run = bring("runs/albef")
    bring("shards")
    assert main(["evaluate", str(run), "data.source=shards", "data.path=shards", "data.test_path=shards"]) == 0
    assert_same(measured(run, "eval-changed.json"), EXPECTED["shards"])


# --------------------------------------------------------------------------- recipes


MOVED: dict[str, tuple[str, dict[Any, Any]]] = {
    "task.negatives_mask": ("released.negatives_mask_after_softmax", {"before": False, "after": True}),
    "task.false_negatives": ("released.keep_false_negatives", {"mask": False, "keep": True}),
    "task.teacher_dropout": ("released.momentum_encoder_dropout", {}),
    "task.mask_special_tokens": ("released.mask_special_tokens", {}),
    "task.masking": ("released.masking_of_padding", {"released": True}),
    "task.gather": ("released.gather_without_gradient", {"released": True}),
    "task.temperature_bounds": ("released.unbounded_temperature", {None: True}),
    "task.score": ("released.count_first_answer_token_twice", {"released": True}),
    "task.boxes.iou": ("released.iou_in_whole_pixels", {"released": True}),
    "task.boxes.average": ("released.heat_map_averages_padding", {"batch": True}),
    "model.keep_padding": ("released.keep_padding", {}),
    "data.augmentation": ("released.autocontrast_overflow", {"released": True}),
    "data.flip_directional": ("released.flip_directional_texts", {}),
    "optim.decay": ("released.decay", {"released": "albef", "released_vlmo": "vlmo"}),
    "optim.adam": ("released.adam_decays_after_update", {"released_vlmo": True}),
    "schedule.kind": ("released.schedule_by_epoch", {"released": True}),
    "schedule.warmup_epochs": ("schedule.warmup_steps", {1: 100}),
}
"""Where fields of the earlier version are today, with those values that have another name now."""


def where_now(field: str, value: Any) -> tuple[str, Any]:
    """Maps a field of a stored recipe and its value to the field and value of today."""
    today, values = MOVED.get(field, (field, {}))
    if isinstance(value, list | dict) or (values and value not in values):
        return field, value
    return today, values.get(value, value)


def at(recipe: Json, field: str) -> Any:
    value: Any = recipe
    for part in field.split("."):
        value = value[part]
    return value


def changed(stored: Json, changes: Json) -> Json:
    """Replaces values in a stored recipe, by the dotted names that the earlier version had for its fields."""
    recipe: Json = json.loads(json.dumps(stored))
    for field, value in changes.items():
        above, _, last = field.rpartition(".")
        group = at(recipe, above)
        assert last in group
        group[last] = value
    return recipe


def assert_means(stored: Json, changes: Json) -> None:
    """Asserts that a stored recipe loads, that it has the changed values, and that it survives a round trip as JSON."""
    recipe = from_dict(stored)
    again = to_dict(recipe)
    assert from_dict(again) == recipe
    for field, value in changes.items():
        today, meant = where_now(field, value)
        assert at(again, today) == meant


RETUNED = ("albef_tiny", "albef_small", "vlmo_tiny", "vlmo_small", "visual_tokenizer_tiny")
"""Beginnings of the names of recipes that learn differently since (docs/decisions.md 95, 120, 139, 146)."""


@pytest.mark.parametrize("name", CATALOG)
def test_a_stored_recipe_of_the_catalog_is_the_catalogs(name: str) -> None:
    assert (from_dict(CATALOG[name]) == find_recipe(name)) != name.startswith(RETUNED)
    assert_means(CATALOG[name], {})


def case_name(base: str, changes: Json) -> str:
    """Names a case as `expected.json` does."""
    if not changes:
        return base
    named = [f"{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in changes.items()]
    return f"{base}, {'as released' if len(named) > 3 else ' '.join(named).replace('null', 'none')}"


CASES = [(base, {}) for base in TRAINED["bases"]] + [(base, changes) for base, changes in TRAINED["cases"]]


@pytest.mark.parametrize(("base", "changes"), CASES, ids=[case_name(*case) for case in CASES])
def test_a_stored_recipe_trains_as_it_did(base: str, changes: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the effect of each field that restores released behaviour, and starts from runs of the earlier version.

    Vocabularies are learnt as that version did, without the digits and letters that no caption holds. A run that is
    resumed has its own vocabulary, so only a training that begins anew differs.
    """
    monkeypatch.setattr(wordpiece_trainer, "BASIC", "")
    stored = changed(TRAINED["bases"][base], changes)
    assert_means(stored, changes)
    for folder in ("pictures", stored["init_from"], stored["task"].get("tokenizer")):
        if folder:
            bring(folder)
    Path("trained").mkdir()
    Path("trained/recipe.json").write_text(json.dumps(stored))
    expected = EXPECTED["trained"][case_name(base, changes)]
    assert main(["resume", "trained"]) == (0 if expected else 2)
    kept = ("step", "lr", "gradient_norm", "loss", "losses")
    assert_same([{key: line[key] for key in kept} for line in log(Path("trained"))], expected)


@pytest.mark.parametrize(("name", "data", "changes"), EVALUATED)
def test_a_stored_recipe_is_measured_as_it_was(name: str, data: Json, changes: Json) -> None:
    bring("pictures")
    run = bring(f"runs/{name}")
    (checkpoint,) = (run / "checkpoints").iterdir()
    stored = changed(json.loads((checkpoint / "recipe.json").read_text()), data | changes)
    assert_means(stored, changes)
    content = json.dumps(stored).encode()
    (checkpoint / "recipe.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["recipe.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert main(["evaluate", str(run)]) == 0
    expected = EXPECTED["evaluated"][case_name(name, changes) if changes else f"{name} on phrases"]
    theirs = {key: value for key, value in expected["eval"].items() if key not in NAMES}
    ours: Json = {"eval": measured(run), "predictions": lines(run / "predictions.jsonl")}
    if "heat" in expected:
        both = diptych.load(run, "cpu").locate([PICTURES[0]] * 2, PHRASES)
        ours["heat"] = [one.heat.tolist() for one in both]
    assert_same(ours, expected | {"eval": theirs})
