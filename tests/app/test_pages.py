"""Checks that every page works by click, by keyboard and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.apps.app.server import PAGES
from tests.app.conftest import MEASURED, App, Visitor, new_context, serve_runs, visit
from tests.runs import save_run

NAMES = [module.PAGE.path for module in PAGES]
OF_BOTH = ["", "match", "entail", "compare", "locate"]
"""Pages that models of both systems can answer."""
BY_KEYBOARD = 60
"""Largest number of times that Tab is pressed."""


@pytest.mark.parametrize("name", NAMES)
def test_a_click_on_an_example_gives_an_answer_that_fits_a_phone(phone: Visitor, name: str) -> None:
    page = phone.open(name)
    assert phone.fits()
    page.locator("button.example").first.click()
    answer = phone.answer()
    assert "Answered by" in answer.inner_text()
    assert phone.fits()
    assert page.evaluate("[...document.images].filter(one => !one.alt).length") == 0


@pytest.mark.parametrize("name", OF_BOTH)
def test_models_of_both_systems_can_be_chosen_and_say_how_good_they_are(visitor: Visitor, app: App, name: str) -> None:
    page = visitor.open(name)
    chooser = page.get_by_label("Model", exact=True).first
    other = "albef" if "vlmo" in chooser.input_value() else "vlmo"
    chooser.click()
    page.get_by_role("option").filter(has_text=f"/{other}").first.click()
    page.locator("button.example").first.click()
    assert f"/{other}" in visitor.answer().locator(".asked b").first.inner_text()
    assert "not measured" in page.locator(".quality").first.inner_text() or "62.8 %" in page.content()


def test_a_measured_model_says_what_its_evaluation_says(visitor: Visitor) -> None:
    page = visitor.open("pseudo-targets")
    quality = page.locator(".quality").inner_text()
    assert "/albef" in quality
    assert f"{MEASURED['text_to_image.recall@1']} % of captions" in quality
    assert "59.9 … 65.9" in quality


def test_search_puts_both_orders_side_by_side(visitor: Visitor, app: App) -> None:
    page = visitor.open("")
    page.get_by_label("Words").fill("a boat")
    page.get_by_role("button", name="Search", exact=True).click()
    cards = visitor.answer().locator(".card")
    assert cards.locator("h3").all_inner_texts() == ["By similarity", "Re-ranked"]
    collection = app.site.collections[page.get_by_label("Model", exact=True).input_value()]
    for card, results in zip(cards.all(), collection.search("a boat", 5), strict=True):
        names = card.locator("figcaption span").all_inner_texts()
        assert results is not None
        assert names == [hit.path.name for hit in results.hits if hit.path]
    boxes = [card.bounding_box() for card in cards.all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]


def test_a_picture_finds_itself_and_texts(visitor: Visitor, app: App) -> None:
    page = visitor.open("")
    page.locator("input[type=file]").set_input_files(app.site.album.pictures[2].picture)
    page.get_by_role("button", name="Search", exact=True).click()
    answer = visitor.answer()
    assert answer.locator("figcaption span").first.inner_text() == app.site.album.pictures[2].picture.name
    assert answer.locator(".texts li").count() > 0


def test_match_shows_a_map_for_every_word(visitor: Visitor) -> None:
    page = visitor.open("match")
    page.locator("button.example").nth(2).click()
    answer = visitor.answer()
    assert answer.locator("figcaption").all_inner_texts() == ["a", "boat"]
    assert "%" in answer.locator(".large").inner_text()


def test_closed_and_open_answers_stand_beside_each_other(visitor: Visitor) -> None:
    page = visitor.open("ask")
    page.locator("button.example").first.click()
    closed, opened = visitor.answer().locator(".card").all()
    assert "Closed" in closed.inner_text()
    assert "4 answers to choose from" in closed.inner_text()
    page.get_by_label("Answers to choose from").fill("a boat, two dogs")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("among the 2 answers that you offered").wait_for()
    assert sorted(opened.locator("li span").all_inner_texts()) == ["a boat", "two dogs"]


def test_the_momentum_encoder_stands_beside_the_label(visitor: Visitor) -> None:
    page = visitor.open("pseudo-targets")
    page.locator("button.example").nth(2).click()
    answer = visitor.answer()
    assert answer.locator("mark").all_inner_texts() == ["boat"]
    assert answer.locator("h4").all_inner_texts() == ["Model", "Momentum encoder"]
    page.get_by_label("Word to mask").fill("")
    page.get_by_role("button", name="Show the pseudo-targets").click()
    page.locator(".masked-word").nth(1).wait_for()
    assert answer.locator("mark").all_inner_texts() == ["a", "boat"]


def test_the_experts_tables_hold_every_token(visitor: Visitor) -> None:
    page = visitor.open("experts")
    page.locator("button.example").nth(2).click()
    tables = visitor.answer().locator("table")
    assert [table.locator("thead th").count() for table in tables.all()] == [17, 3, 20]
    rows = [
        set("".join(row.locator("td").all_inner_texts()).split()) for row in tables.nth(2).locator("tbody tr").all()
    ]
    assert len(rows) == 4
    assert "VL" in tables.nth(2).locator("tbody tr").first.inner_text()
    assert "VL" not in tables.nth(2).locator("tbody tr").last.inner_text()


# --------------------------------------------------------------------------- keyboard


def focus(page: Any, selector: str) -> None:
    """Presses Tab until an element of the CSS selector has the focus, which must be visible."""
    for _ in range(BY_KEYBOARD):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            style = "(({outlineStyle, outlineWidth}) => [outlineStyle, parseFloat(outlineWidth)])"
            kind, width = page.evaluate(f"{style}(getComputedStyle(document.activeElement))")
            assert kind != "none"
            assert width >= 1
            return
    raise AssertionError(f"Tab never reaches {selector}")


def test_a_keyboard_is_enough_to_move_to_try_and_to_ask(visitor: Visitor, app: App, tmp_path: Path) -> None:
    page = visitor.open("")
    page.on("filechooser", lambda _: None)  # from now on choosers are caught: turned on with the key, it may be late
    focus(page, "a[href='./match']")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Does the text fit the picture?").wait_for()
    page.locator(".run").wait_for()
    focus(page, "input[aria-label=Model]")
    focus(page, ".picture-field button")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(app.site.album.pictures[0].picture)
    page.locator(".picture-field img").wait_for()
    focus(page, "textarea")
    page.keyboard.type("a boat")
    page.keyboard.press("Enter")
    assert visitor.answer().locator("figcaption").count() == 2


def test_examples_can_be_tried_by_keyboard(visitor: Visitor) -> None:
    page = visitor.open("entail")
    focus(page, "button.example")
    page.keyboard.press("Enter")
    visitor.answer()


# --------------------------------------------------------------------------- what is not there


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Serves one pre-trained VLMo without pictures."""
    running = serve_runs([save_run(tmp_path_factory.mktemp("bare") / "run", "pretraining", "vlmo")])
    yield running
    running.blocks.close()


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("", "name a folder (--images DIR)"),
        ("ask", "diptych train vlmo_tiny_vqa"),
        ("entail", "diptych train vlmo_tiny_entailment"),
        ("compare", "diptych train vlmo_tiny_nlvr2"),
        ("pseudo-targets", "diptych train albef_tiny"),
    ],
)
def test_a_page_without_its_model_says_what_to_train(visitor: Visitor, bare: App, name: str, solution: str) -> None:
    page = visitor.open(name, bare)
    assert solution in page.locator(".message").inner_text()
    assert page.locator("button").count() == 0
    assert visitor.fits()


def test_a_page_without_examples_still_answers(visitor: Visitor, bare: App, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "own.png")
    page = visitor.open("match", bare)
    page.get_by_role("button", name="Does it fit?").click()
    assert visitor.message() == "That did not work\n\nNo picture yet: drop one on its frame, or click an example."
    page.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    page.locator(".picture-field img").wait_for()
    page.get_by_role("button", name="Does it fit?").click()
    page.get_by_text("No text yet").wait_for()
    page.get_by_label("Text").fill("a boat")
    page.get_by_role("button", name="Does it fit?").click()
    assert "not measured" in visitor.answer().inner_text()


# --------------------------------------------------------------------------- pictures of the pages

POSES = [*((name, 1200, 780, "light") for name in NAMES), ("match", 1200, 780, "dark"), ("", 390, 844, "light")]


@pytest.mark.parametrize(("name", "width", "height", "scheme"), POSES)
def test_screenshots_are_small(
    browser: Any, app: App, request: pytest.FixtureRequest, tmp_path: Path,
    name: str, width: int, height: int, scheme: str,
) -> None:  # fmt: skip
    """Saves pages with answers for docs/app.md: `pytest tests/app --app-runs RUN… --screenshots docs/pictures`."""
    folder = request.config.getoption("--screenshots")
    if folder is None:
        pytest.skip("no --screenshots DIR")
    visitor = visit(new_context(browser, width, height, scheme), app)
    page = visitor.open(name)
    if page.locator("button.example").count():
        page.locator("button.example").first.click()
        visitor.answer()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.wait_for_timeout(400)  # what fades is gone
    page.screenshot(path=tmp_path / "shot.png", full_page=True)
    visitor.page.context.close()
    kind = "-phone" if width < 600 else "-dark" if scheme == "dark" else ""
    file = folder / f"app-{name or 'search'}{kind}.webp"
    folder.mkdir(parents=True, exist_ok=True)
    Image.open(tmp_path / "shot.png").convert("RGB").save(file, quality=82, method=6)
    assert file.stat().st_size < 150_000
    assert visitor.wrong == []
