"""The report: true to its data, safe with any text, and complete without a network."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.apps.report import (
    Examples,
    ReportData,
    collect,
    negative_examples,
    pseudo_target_examples,
    query_examples,
    render,
    write_report,
)
from diptych.apps.report.charts import MOST_POINTS, thin, ticks
from diptych.apps.report.data import (
    Chart,
    Confusion,
    EvaluatedExample,
    ExampleGroup,
    GivenAnswer,
    NegativeExample,
    PseudoTargetExample,
    QueryExample,
    QueryResult,
    Series,
    TaskEvaluation,
    TextGuess,
    WordGuess,
)
from diptych.apps.report.html import picture
from diptych.apps.report.numbers import number
from diptych.apps.report.page import draw
from diptych.apps.report.stages import training_stages
from diptych.apps.report.task_evaluation import confusion, given_answers, groups
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.logged import read_evaluation
from diptych.metrics.accuracy import Estimate
from diptych.metrics.intervals import Interval
from diptych.metrics.task_evaluation import Decision
from diptych.models.albef import Albef
from diptych.models.vlmo import Vlmo
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    SpecialIds,
    TextConfig,
    VisionConfig,
    VlmoConfig,
    VlmoPretrainConfig,
)
from diptych.search.rerank import Reranked
from diptych.tasks.albef_pretraining import AlbefInspection, AlbefPretraining
from diptych.tasks.vlmo_pretraining import VlmoPretraining
from diptych.types import Batch, Progress, Texts, TokenPositions

VOID = {"img", "meta", "line", "polyline"}
NASTY = """</script><script>alert("1")</script> & 'fox' <img src=x onerror=alert(2)> &lt;b&gt;"""


class Page(HTMLParser):
    """A page taken apart; fails on elements that are not closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in VOID or tag == "path"
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return [one for one in found if kind is None or kind in (one.get("class") or "").split()]


def painted(seed: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def evaluation(gain: tuple[float, float] = (0.5, 2.5)) -> dict[str, object]:
    measures: dict[str, object] = {"unit": "percent", "images": 1000, "texts": 1200}
    for way in ("text_to_image", "image_to_text"):
        measures[f"{way}.candidates"] = 64
        for k in (1, 5, 10):
            measures[f"{way}.recall@{k}"] = 30.25 + k
            measures[f"{way}.recall@{k}.interval"] = [28.5 + k, 31.75 + k]
            measures[f"contrastive.{way}.recall@{k}"] = 21.5 + k
            measures[f"chance.{way}.recall@{k}"] = k / 10
    return measures | {"rerank_gain.recall@1": sum(gain) / 2, "rerank_gain.interval": list(gain)}


def evaluated(text: str, value: float = 66.4) -> TaskEvaluation:
    """Builds an evaluation in which every text is `text`, with an interval of 6 points and a reference of 36.9."""
    example = EvaluatedExample(((text, painted(1)), (text, painted(2))), text, text, 0.75, text, 0.3)
    return TaskEvaluation(
        title=text,
        how=text,
        split=text,
        records=1000,
        scores={text: Estimate(value, Interval(value - 3, value + 3), 990)},
        references={text: Estimate(36.9, Interval(34.0, 40.0), 990)},
        confusion=Confusion((text, text), ((40, 10), (5, 45))),
        answers=(GivenAnswer(text, 250, 0.5), GivenAnswer(text, 2, None)),
        examples=(ExampleGroup(text, (example,), 300),),
    )


def everything(text: str) -> ReportData:
    """Builds a report in which every text is `text`."""
    shown = (QueryResult(painted(1), False, 0.5, 1.5), QueryResult(painted(2), True, 0.4, None))
    return ReportData(
        title=text,
        facts=((text, text),),
        charts=(Chart(text, text, (Series(text, (1.0, 2.0), (0.5, 0.7)),), text, ((text, 0.6),)),),
        evaluation=evaluation(),
        ceiling={"text_to_image.recall@1": 44.125},
        recipe={"name": text, "model": {"width": text}},
        examples=Examples(
            queries=(QueryExample(text, shown, 1, 4, painted(2), 9),),
            negatives=(NegativeExample(painted(1), text, text, 0.31, painted(2), 0.27, 64),),
            pseudo_targets=(
                PseudoTargetExample(
                    painted(1),
                    text,
                    text,
                    (WordGuess(text, text, text, ((text, 0.75), (text + "?", 0.2))),),
                    (TextGuess(text, 0.5, True), TextGuess(text, 0.25, False)),
                ),
            ),
        ),
        task_evaluation=evaluated(text),
    )


def test_the_page_loads_nothing() -> None:
    markup = render(everything("a fox"))
    for forbidden in ("http:", "https:", "//www", "@import", "url(", "<link", "<iframe", "fetch(", "XMLHttp"):
        assert forbidden not in markup, forbidden
    page = Page(markup)
    references = [one[key] for _, one in page.elements for key in ("src", "href", "srcset", "data") if key in one]
    assert references
    assert all((reference or "").startswith(("data:image/", "#")) for reference in references)
    anchors = {one["id"] for one in page.all("section")}
    assert {one["href"] for one in page.all("a")} == {f"#{anchor}" for anchor in anchors}


def test_text_stays_text_whatever_it_holds() -> None:
    page, harmless = Page(render(everything(NASTY))), Page(render(everything("a fox")))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert all(not key.startswith("on") for _, one in page.elements for key in one)
    assert page.text.count(" ".join(NASTY.split())) == harmless.text.count("a fox")
    data = json.loads(page.scripts[1])  # after the style: the numbers of the chart
    assert data["series"][0]["name"] == NASTY


def test_the_table_holds_the_numbers_of_the_evaluation() -> None:
    page = Page(render(replace(everything("a fox"), task_evaluation=None)))
    for shown in ("0.1", "22.5", "31.2", "29.5 … 32.8", "44.1", "1,000 unseen pictures and 1,200 captions"):
        assert shown in page.text, shown
    final = [one["style"] for one in page.all("i", "final") if "style" in one]
    assert final == [f"left:{30.25 + k:.2f}%" for k in (1, 5, 10)] * 2
    assert len(page.all("i", "ceiling")) == 2  # one row has it, and the key


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.5, 2.5), "above 0"), ((-1.5, 2.5), "inside the noise"), ((-2.5, -0.5), "below 0")]
)
def test_the_gain_is_called_what_its_interval_allows(interval: tuple[float, float], verdict: str) -> None:
    text = Page(render(replace(everything("a fox"), evaluation=evaluation(interval)))).text
    others = {"above 0", "inside the noise", "below 0"} - {verdict}
    assert verdict in text
    assert not any(other in text for other in others)


def test_parts_without_data_are_left_out() -> None:
    page = Page(render(ReportData("a run", (("Steps", "5"),), ())))
    assert [one["id"] for one in page.all("section")] == ["run"]


def test_the_right_picture_is_framed_once_and_set_apart_when_it_was_not_found() -> None:
    def frames(query: QueryExample) -> list[str | None]:
        page = Page(render(replace(ReportData("a run", (), ()), examples=Examples(queries=(query,)))))
        return [one.get("class") for one in page.all("figure")]

    example = QueryExample(
        "a fox",
        (QueryResult(painted(1), False, 0.5, 1.5), QueryResult(painted(2), True, 0.4, 1.0)),
        1,
        1,
        painted(2),
        9,
    )
    assert frames(example) == [None, "right"]
    missed = replace(example, results=(replace(example.results[0]),), rank=7)
    assert frames(missed) == [None, "right apart"]


def test_pictures_are_in_the_page_small_ones_without_loss() -> None:
    small, large = painted(3), painted(4, side=700)
    page = Page(picture(small, "a") + picture(large, "b"))
    stored = [Image.open(io.BytesIO(base64.b64decode((one["src"] or "").partition(",")[2]))) for one in page.all("img")]
    assert np.array_equal(np.asarray(stored[0].convert("RGB")), np.asarray(small))
    assert max(stored[1].size) == 320


def test_a_report_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    first = write_report(tmp_path / "run", everything("old"))
    assert write_report(tmp_path / "run", everything("new")) == first
    assert "new" in first.read_text()
    assert [file.name for file in first.parent.iterdir()] == ["report.html"]


# --------------------------------------------------------------------------- curves


@given(st.floats(-1e6, 1e6, allow_nan=False), st.floats(1e-4, 1e6, allow_nan=False), st.integers(3, 6))
@settings(max_examples=200, deadline=None)
def test_ticks_are_few_even_and_enclose_the_values(low: float, width: float, about: int) -> None:
    found = ticks(low, low + width, about)
    slack = 1e-6 * (abs(low) + width)
    assert found[0] <= low + slack
    assert found[-1] >= low + width - slack
    assert 2 <= len(found) <= about + 2
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-3)


def test_a_constant_curve_has_an_axis_too() -> None:
    for value in (0.0, 5.0, -3.0):
        markup = draw(Chart("c", "", (Series("s", (1.0, 2.0), (value, value)),)))
        assert "nan" not in markup
        assert len(set(ticks(value, value, 4))) > 1


def test_curves_stand_where_their_values_are() -> None:
    page = Page(draw(Chart("c", "", (Series("s", (0.0, 50.0, 100.0), (0.0, math.nan, 10.0)),))))
    (curve,) = page.all("polyline")
    assert curve["points"] == "0.00,100.00 100.00,0.00"  # what is not a number is left out


def test_a_single_value_is_a_dot() -> None:
    (curve,) = Page(draw(Chart("c", "", (Series("s", (50.0,), (1.0,)),)))).all("polyline")
    assert curve["points"] == "100.00,50.00 100.00,50.00"


def test_long_curves_are_averaged_and_keep_their_end() -> None:
    steps = tuple(float(i) for i in range(10_001))
    series = thin(Series("s", steps, tuple(2 * step for step in steps)))
    assert len(series.steps) <= MOST_POINTS + 1
    assert (series.steps[-1], series.values[-1]) == (10_000.0, 20_000.0)
    assert all(value == pytest.approx(2 * step) for step, value in zip(series.steps, series.values, strict=True))


@given(st.floats(-1e9, 1e9, allow_nan=False))
@settings(max_examples=200, deadline=None)
def test_numbers_are_shown_within_a_percent(value: float) -> None:
    shown = number(value)
    unit = {"k": 1e3, "M": 1e6}.get(shown[-1], 1.0)
    read = float(shown.rstrip("kM")) * unit
    assert read == pytest.approx(value, rel=0.01, abs=1e-300)
    assert len(shown) <= 10


# --------------------------------------------------------------------------- what a run's folder tells


def metrics_line(step: int, **more: object) -> str:
    return json.dumps({"step": step, "epoch": step / 100, "pairs": 64 * step, "seconds": step / 2, **more}) + "\n"


def run_folder(folder: Path) -> Path:
    recipe = {
        "name": "albef_tiny",
        "model": {"vision": {"image_size": 64}},
        "task": {"queue_size": 936},
        "data": {"source": "folder", "path": "photos"},
        "run": {"batch_size": 64},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    lines = [
        metrics_line(s, lr=0.1, losses={"itc": 5.0 - s / 100}, measures={"mi_bound": s / 100, "surprise": 7.0})
        for s in (10, 20, 30)
    ]
    lines.append(metrics_line(30, validation={"text_to_image.recall@10": 12.5, "mean_recall": 9.0}))
    (folder / "metrics.jsonl").write_text("".join(lines) + metrics_line(40)[:20])
    return folder


def test_losses_of_phrases_are_drawn_beside_those_of_captions(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    losses = {"itc": 2.0, "itm": 0.5, "phrases": 1.5, "phrases_itm": 0.25}
    (folder / "metrics.jsonl").write_text("".join(metrics_line(step, lr=0.1, losses=losses) for step in (10, 20)))
    (chart,) = [chart for chart in collect(folder).charts if chart.title == "Losses"]
    assert {one.name: one.values[-1] for one in chart.series} == {
        "contrastive (ITC)": 2.0, "matching (ITM)": 0.5, "phrases (ITC)": 1.5, "phrases (ITM)": 0.25
    }  # fmt: skip


def test_a_loss_that_no_chart_was_made_for_is_drawn_for_itself_but_not_the_total(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "metrics.jsonl").write_text(metrics_line(10, lr=0.1, loss=3.0, losses={"itc": 2.0, "mine": 1.0}))
    titles = [chart.title for chart in collect(folder).charts]
    assert "losses.mine" in titles
    assert not {"loss", "step", "epoch", "pairs", "seconds"} & {*titles}


def test_curves_are_those_of_the_metrics_file(tmp_path: Path) -> None:
    data = collect(run_folder(tmp_path))
    curves = {one.name: one for chart in data.charts for one in chart.series}
    assert curves["contrastive (ITC)"] == Series("contrastive (ITC)", (10.0, 20.0, 30.0), (4.9, 4.8, 4.7))
    assert curves["text → image @10"] == Series("text → image @10", (30.0,), (12.5,))
    assert "measures.surprise" in curves, "a measure that no chart was made for is drawn for itself"
    bound = next(chart for chart in data.charts if chart.title.startswith("Mutual"))
    assert bound.references == ((f"log N = {math.log(1000):.2f}", math.log(1000)),)
    recipe = (tmp_path / "recipe.json").read_text()
    (tmp_path / "recipe.json").write_text(recipe.replace('"queue_size": 936', '"kind": "VlmoPretrainConfig"'))
    bound = next(chart for chart in collect(tmp_path).charts if chart.title.startswith("Mutual"))
    assert bound.references == ((f"log N = {math.log(64):.2f}", math.log(64)),), "without a queue, the batch"
    assert dict(data.facts) == {
        "Recipe": "albef_tiny",
        "Data": "folder photos",
        "Picture side": "64 pixels",
        "Batch": "64 pairs",
        "Steps": "30",
        "Pairs seen": "1,920",
        "Epochs": "0.3",
        "Time": "15 s",
    }
    assert data.evaluation is None
    Page(render(data))


def begun(folder: Path, name: str, **task: object) -> Path:
    """Writes the folder of a run that has seen 40 pairs in 9 seconds."""
    folder.mkdir()
    start = task.pop("start", None)
    (folder / "recipe.json").write_text(json.dumps({"name": name, "task": task, "init_from": start}))
    lines = metrics_line(5, pairs=40, seconds=9.0, measures={"mlm_accuracy": 0.125, "perplexity": 33.0})
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def test_the_runs_that_led_to_a_run_are_shown_in_their_order_by_their_own_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer is one of them. Measures on unseen records are shown, or else those of the log."""
    monkeypatch.setenv("DIPTYCH_PLACES", "trusted")
    codes = begun(tmp_path / "codes", "visual_tokenizer_tiny", kind="VisualTokenizerTrainingConfig")
    vision = begun(tmp_path / "vision", "vlmo_tiny_vision", kind="VisionStageConfig", tokenizer=str(codes))
    words = begun(tmp_path / "words", "vlmo_tiny_language", kind="Unknown", start=str(vision))
    (codes / "eval.json").write_text(json.dumps({"accuracy": 80.0, "code_perplexity": 59.55}))
    (vision / "eval.json").write_text(json.dumps({"accuracy": 35.25, "references.commonest": 9.0}))
    compute = {"steps": 5, "records": 40, "flops": 2.5e13, "seconds": 9.0}
    (vision / "compute.json").write_text(json.dumps(compute))
    folder = run_folder(tmp_path)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe | {"init_from": str(words)}))
    data = collect(folder)
    assert [(one.recipe, one.steps, one.records, one.seconds) for one in data.stages] == [
        (name, 5, 40, 9.0) for name in ("visual_tokenizer_tiny", "vlmo_tiny_vision", "vlmo_tiny_language")
    ]
    assert [dict(one.measures) for one in data.stages] == [
        {"Variance given back": "80.0 %", "Perplexity of the codes' use": "59.5"},
        {"Visual-token accuracy": "35.2 %", "Always the commonest answer": "9.0 %"},
        {"masked words guessed, in training": "12.5 %", "perplexity of a masked word, in training": "33"},
    ]
    text = Page(render(data)).text
    assert "Stages" in text
    assert "Visual-token accuracy 35.2 %" in text
    assert "25 TFLOP" in text


def test_what_a_run_started_from_may_be_gone(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe | {"init_from": str(tmp_path / "gone")}))
    assert collect(folder).stages == ()


def test_a_run_that_names_itself_or_a_place_that_nobody_allowed_has_no_earlier_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_PLACES", "")
    first = begun(tmp_path / "first", "first")
    second = begun(tmp_path / "second", "second", start=str(first))
    assert [stage.recipe for stage in training_stages(second)] == ["second"]
    monkeypatch.setenv("DIPTYCH_PLACES", "trusted")
    assert [stage.recipe for stage in training_stages(second)] == ["first", "second"]
    recipe = json.loads((first / "recipe.json").read_text())
    (first / "recipe.json").write_text(json.dumps(recipe | {"init_from": str(second)}))
    assert [stage.recipe for stage in training_stages(second)] == ["first", "second"]


def test_what_is_damaged_in_a_run_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    whole = (folder / "metrics.jsonl").read_text()
    for line in ("[" * 100_000, '{"step": "x"}', "[1]", '{"loss": 1.0}', '{"step": 1e999}', '{"step": 1, "loss": []}'):
        (folder / "metrics.jsonl").write_text(f"{whole.splitlines()[0]}\n{line}\n")
        with pytest.raises(ValueError, match=re.escape("metrics.jsonl, line 2 is damaged")):
            collect(folder)
    (folder / "metrics.jsonl").write_text(whole)
    (folder / "recipe.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=re.escape("recipe.json is damaged")):
        collect(folder)
    for content in ("[]", "{", '{"accuracy": "9"}', '{"accuracy": 9, "accuracy.interval": [1]}', '{"task": 5}'):
        (folder / "eval.json").write_text(content)
        with pytest.raises(ValueError, match=re.escape("eval.json is damaged")):
            read_evaluation(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("metrics.jsonl does not exist")):
        collect(tmp_path)


# --------------------------------------------------------------------------- examples

TOKENIZER = Tokenizer([*SPECIAL, "a", "fox", "red", "car", "dog", "##s", "of", "left"])
FOX, RED, CAR, DOG = (TOKENIZER.encode([word])[0][1] for word in ("fox", "red", "car", "dog"))


def small_batch() -> tuple[Batch, list[Image.Image], AlbefInspection]:
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    ids = TOKENIZER.encode(["a red fox", "a dog left of a car", "foxs"])
    width = max(map(len, ids))
    mask = torch.tensor([[i < len(one) for i in range(width)] for one in ids])
    padded = torch.tensor([one + [TOKENIZER.pad_id] * (width - len(one)) for one in ids])
    pixels = torch.stack([EvaluationTransform(DataConfig(), 4)(one) for one in pictures])
    batch = Batch(pixels, Texts(padded, mask), torch.arange(3))
    seen = AlbefInspection(
        negative_text_index=torch.tensor([1, 2, 0]),
        negative_text_probability=torch.tensor([0.75, 0.5, 0.25]),
        negative_image_index=torch.tensor([2, 0, 1]),
        negative_image_probability=torch.tensor([0.5, 0.25, 0.125]),
        masked=TokenPositions(torch.tensor([1, 1, 1, 0]), torch.tensor([2, 6, 3, 3])),
        labels=torch.tensor([DOG, CAR, padded[1, 3], FOX]),
        momentum_words=torch.tensor([[FOX, DOG], [CAR, RED], [RED, CAR], [DOG, FOX]]),
        momentum_word_probabilities=torch.tensor([[0.5, 0.25], [0.5, 0.125], [0.5, 0.25], [0.75, 0.125]]),
        momentum_texts=torch.tensor([[1, 0], [1, 2], [0, 1]]),
        momentum_text_probabilities=torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]]),
    )
    return batch, pictures, seen


def test_negatives_are_shown_with_the_pair_they_were_drawn_for() -> None:
    batch, pictures, seen = small_batch()
    first, second = negative_examples(seen, batch, TOKENIZER, "albef", count=2)
    assert (first.caption, first.negative_caption, first.caption_probability) == (
        "a red fox",
        "a dog left of a car",
        0.75,
    )
    assert (second.caption, second.negative_caption, second.picture_probability) == (
        "a dog left of a car",
        "foxs",
        0.25,
    )
    assert [list(one.tobytes()) for one in (first.picture, first.negative_picture, second.negative_picture)] == [
        list(pictures[i].tobytes()) for i in (0, 2, 0)
    ]
    assert first.batch == 3


def test_the_momentum_encoders_words_stand_at_the_place_of_the_hidden_one() -> None:
    batch, _, seen = small_batch()
    first, second = pseudo_target_examples(seen, batch, TOKENIZER, "albef", clean=[None, "a dog", None])
    assert first.words == (WordGuess("a red", "fox", "", (("dog", 0.75), ("fox", 0.125))),)
    assert first.texts == (TextGuess("a dog left of a car", 0.5, False), TextGuess("a red fox", 0.25, True))
    assert second.words[:2] == (
        WordGuess("a", "dog", "left of a car", (("fox", 0.5), ("dog", 0.25))),
        WordGuess("a dog left of a", "car", "", (("car", 0.5), ("red", 0.125))),
    )
    assert (first.clean, second.clean) == (None, "a dog")
    assert len(second.words) == 2, "two hidden words are shown, the third is not"


def test_queries_show_pictures_in_their_final_order() -> None:
    pictures = [painted(seed) for seed in range(8)]
    reranked = Reranked(
        candidates=torch.tensor([[4, 1, 6], [3, 2, 7]]),
        similarity=torch.tensor([[0.9, 0.8, 0.7], [0.5, 0.4, 0.3]]),
        match=torch.tensor([[-1.0, 2.0, 3.0], [1.0, 0.0, 2.0]]),
    )
    first, second = query_examples(
        ["one", "two"],
        torch.tensor([1, 5]),
        torch.tensor([1, 6]),
        torch.tensor([1, 6]),
        reranked,
        pictures.__getitem__,
        8,
    )
    assert [(one.picture, one.right, round(one.similarity, 3), one.match) for one in first.results] == [
        (pictures[6], False, 0.7, 3.0),
        (pictures[1], True, 0.8, 2.0),
        (pictures[4], False, 0.9, -1.0),
    ]
    assert not any(one.right for one in second.results)
    assert (second.rank, second.right_picture, second.candidates) == (6, pictures[5], 8)


def test_queries_of_one_stage_keep_the_order_of_similarity_and_have_no_match() -> None:
    pictures = [painted(seed) for seed in range(8)]
    nearest = Reranked(torch.tensor([[4, 1, 6]]), torch.tensor([[0.9, 0.8, 0.7]]), None)
    rank = torch.tensor([1])
    (only,) = query_examples(["one"], torch.tensor([1]), rank, rank, nearest, pictures.__getitem__, 8)
    assert [(one.picture, one.match) for one in only.results] == [(pictures[n], None) for n in (4, 1, 6)]
    assert "Below each: the cosine similarity, which decides the order." in Page(one_stage(queries=(only,))).text


def one_stage(queries: tuple[QueryExample, ...] = ()) -> str:
    """Renders the page of a dual encoder's run."""
    two = {name: value for name, value in evaluation().items() if not name.startswith("rerank_gain")}
    return render(replace(everything("text"), evaluation=two, examples=Examples(queries), task_evaluation=None))


def test_a_page_of_one_stage_speaks_of_no_other() -> None:
    page = Page(one_stage())
    assert "The similarity of pictures' and texts' vectors ranks all of them." in page.text
    assert "e-rank" not in page.text
    assert not page.all("i", "first")
    assert page.all("i", "final")


def test_a_look_into_real_pretraining_gives_examples() -> None:
    batch, _, _ = small_batch()
    config = AlbefConfig(
        vision=VisionConfig(image_size=4, patch_size=2, width=8, depth=1, heads=2),
        text=TextConfig(
            vocab_size=TOKENIZER.vocab_size,
            width=8,
            layers=2,
            fusion_start=1,
            heads=2,
            intermediate=16,
            max_positions=16,
        ),
        embed_dim=4,
    )
    ids = SpecialIds(TOKENIZER.pad_id, TOKENIZER.unk_id, TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.mask_id)
    task = AlbefPretraining(Albef(config), AlbefPretrainConfig(queue_size=4, mask_probability=0.9), ids)
    seen = task.inspect(batch, Progress(step=0, epoch=0.0), guesses=3)
    negatives = negative_examples(seen, batch, TOKENIZER, "albef")
    pseudo_targets = pseudo_target_examples(seen, batch, TOKENIZER, "albef", clean=[None] * 3)
    captions = [TOKENIZER.decode(one) for one in batch.texts.input_ids.tolist()]
    assert [one.caption for one in negatives] == captions
    assert all(one.negative_caption != one.caption for one in negatives)
    assert pseudo_targets
    for lesson in pseudo_targets:
        assert {guess.text for guess in lesson.texts} == set(captions)
        assert sum(guess.probability for guess in lesson.texts) == pytest.approx(1)
        for word in lesson.words:
            assert " ".join(filter(None, (word.before, word.label, word.after))) in (lesson.caption, "fox ##s")
    Page(render(ReportData("a run", (), (), examples=Examples(negatives=negatives, pseudo_targets=pseudo_targets))))


def test_a_look_into_pretraining_without_a_momentum_encoder_gives_the_negatives() -> None:
    batch, _, _ = small_batch()
    config = VlmoConfig(
        image_size=4, patch_size=2, width=8, depth=2, heads=2, fusion_start=1, max_positions=16,
        vocab_size=TOKENIZER.vocab_size,
    )  # fmt: skip
    ids = SpecialIds(TOKENIZER.pad_id, TOKENIZER.unk_id, TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.mask_id)
    seen = VlmoPretraining(Vlmo(config), VlmoPretrainConfig(), ids).inspect(batch, Progress(step=0, epoch=0.0))
    negatives = negative_examples(seen, batch, TOKENIZER, "vlmo")
    assert [one.caption for one in negatives] == [TOKENIZER.decode(one) for one in batch.texts.input_ids.tolist()]
    assert all(one.negative_caption != one.caption for one in negatives)
    assert "Hard negatives" in Page(render(ReportData("a run", (), (), examples=Examples(negatives=negatives)))).text
    left_out = VlmoPretraining(Vlmo(config), VlmoPretrainConfig(itm=0.0), ids)
    assert left_out.inspect(batch, Progress(step=0, epoch=0.0)) is None, "without matching there are none"


# --------------------------------------------------------------------------- tasks evaluated record by record


def decision(record: str, said: str, right: str, score: float | None) -> Decision:
    return Decision(record, said, None, right, score)


def test_examples_are_spread_evenly_over_wrong_and_right_ones() -> None:
    decisions = [decision(str(n), "a", "b", float(n % 4 == 0)) for n in range(1000)]
    (wrong, missed, all_wrong), (right, found, all_right) = groups(decisions, count=24)
    assert (wrong, right, all_wrong, all_right) == ("Wrong", "Right", 750, 250)
    assert len(missed) == len(found) == 12
    assert all(one.score == 0 for one in missed)
    gaps = np.diff([int(one.record) for one in found])
    assert gaps.min() > 70
    assert gaps.max() < 90


def test_where_few_are_wrong_the_right_ones_fill_the_page() -> None:
    decisions = [decision(str(n), "a", "b", 1.0 if n > 1 else 0.49) for n in range(100)]
    assert [(title, len(chosen)) for title, chosen, _ in groups(decisions, count=24)] == [("Wrong", 2), ("Right", 22)]
    unknown = [replace(one, score=None) for one in decisions[:5]]
    assert [(title, len(chosen), total) for title, chosen, total in groups(unknown)] == [("Unlabelled", 5, 5)]


def test_a_confusion_counts_what_was_said_of_what() -> None:
    said = [("a", "b"), ("a", "b"), ("b", "b"), ("b", "a")]
    table = confusion(("a", "b"), [decision("", one, right, 0.0) for one, right in said])
    assert table.counts == ((0, 1), (2, 1))


def test_answers_are_listed_by_how_often_they_were_given() -> None:
    decisions = [
        decision("", "yes", "", 1.0),
        decision("", "no", "", 0.0),
        decision("", "yes", "", 0.5),
        decision("", "yes", "", None),
    ]
    assert given_answers(decisions) == (GivenAnswer("yes", 3, 0.75), GivenAnswer("no", 1, 0.0))


@pytest.mark.parametrize(("value", "verdict"), [(66.4, "do not overlap"), (41.0, "overlap"), (20.0, "do not overlap")])
def test_a_measure_stands_beside_what_can_be_had_without_looking(value: float, verdict: str) -> None:
    text = Page(render(ReportData("a run", (), (), task_evaluation=evaluated("x", value)))).text
    assert f"{value - 36.9:+.1f} points" in text
    assert f"the intervals {verdict}" in text


def test_curves_of_tasks_have_names_and_a_ramp_that_lets_nothing_in_has_none(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe | {"task": {"kind": "EntailmentConfig", "alpha": 0.0}}))
    measures = {"accuracy": 0.5, "alpha": 0.0}
    line = metrics_line(10, losses={"entailment": 1.0}, measures=measures) + metrics_line(
        10, validation={"accuracy": 40}
    )
    (folder / "metrics.jsonl").write_text(line)
    curves = {one.name: one.values for chart in collect(folder).charts for one in chart.series}
    assert curves == {"entailment": (1.0,), "official measure": (40.0,), "right classes": (50.0,)}
