"""Provides one server and one browser for all tests of the web app."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.apps.app.server import build, free_port, start
from diptych.apps.app.site import Site
from tests.runs import TEXTS, save_family

MEASURED = {
    "split": "test", "images": 1000, "text_to_image.recall@1": 62.8, "text_to_image.recall@1.interval": [59.9, 65.9],
}  # fmt: skip
"""The eval.json of the pre-trained ALBEF. The other runs have none."""
TIMEOUT = 20_000
"""Timeout for everything that a page does, in milliseconds."""


@dataclass
class App:
    """A running server."""

    address: str
    site: Site
    blocks: Any


def serve_runs(runs: list[Path], root_path: str = "") -> App:
    site = Site.load(runs, device="cpu")
    blocks = build(site)
    port = free_port("127.0.0.1")
    start(blocks, "127.0.0.1", port, root_path=root_path)
    return App(f"http://127.0.0.1:{port}", site, blocks)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Saves runs of every task for both systems, ALBEF's with pictures."""
    place = tmp_path_factory.mktemp("app")
    runs = [save_family(place / system, system) for system in ("albef", "vlmo")]
    (runs[0] / "eval.json").write_text(json.dumps(MEASURED))
    save_pictures(runs[0] / "pictures")
    return runs


def save_pictures(folder: Path) -> None:
    """Saves one picture for each text, with it as caption, and one picture without a caption."""
    folder.mkdir()
    lines = []
    for number, text in enumerate([*TEXTS, None]):
        Image.radial_gradient("L").resize((48, 40)).rotate(40 * number).convert("RGB").save(folder / f"{number}.png")
        if text:
            lines.append(json.dumps({"image": f"{number}.png", "caption": text}))
    (folder / "captions.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="session")
def app(request: pytest.FixtureRequest, families: list[Path]) -> Iterator[App]:
    running = serve_runs(request.config.getoption("--app-runs") or families)
    yield running
    running.blocks.close()


@pytest.fixture(scope="module")  # while it lives, its event loop runs: other tests start their own
def browser() -> Iterator[Any]:
    """Starts Debian's Chromium, which can reach no host but this one."""
    program = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        reason = "NO BROWSER: the web app is not tested here. Install Debian's chromium and pip's playwright"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", alone])
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A browser page that records what must not happen."""

    app: App
    page: Any
    wrong: list[str] = field(default_factory=list)

    def open(self, name: str, app: App | None = None) -> Any:
        """Opens a page, and returns it once it can be used."""
        self.page.goto(f"{(app or self.app).address}/{name}")
        self.page.wait_for_selector("h1")
        self.page.locator(".run, .message").first.wait_for()
        return self.page

    def answer(self) -> Any:
        """Waits for the answer."""
        return self._wait(".answer")

    def message(self) -> str:
        """Waits for a message, and returns its text."""
        return str(self._wait(".message").inner_text())

    def _wait(self, selector: str) -> Any:
        element = self.page.locator(f".result {selector}").first
        element.wait_for(timeout=TIMEOUT)
        return element

    def fits(self) -> bool:
        """Says whether nothing reaches beyond the right edge."""
        return bool(self.page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth"))


def new_context(browser: Any, width: int, height: int, scheme: str = "light") -> Any:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(TIMEOUT)
    return context


def visit(context: Any, app: App) -> Visitor:
    """Opens a new page of a context, which has cached the scripts of earlier visits."""
    visitor = Visitor(app, context.new_page())

    def foreign(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            visitor.wrong.append(f"a request to another host: {request.url[:120]}")

    def dialog(box: Any) -> None:
        visitor.wrong.append(f"a dialog: {box.message}")
        box.dismiss()

    def log(message: Any) -> None:
        if message.type == "error":
            visitor.wrong.append(f"the console: {message.text} ({message.location.get('url')})")

    visitor.page.on("request", foreign)
    visitor.page.on("dialog", dialog)
    visitor.page.on("console", log)
    visitor.page.on("pageerror", lambda error: visitor.wrong.append(f"a script's error: {error}"))
    return visitor


@pytest.fixture(scope="module")
def desk(browser: Any) -> Any:
    return new_context(browser, 1200, 900)


@pytest.fixture(scope="module")
def pocket(browser: Any) -> Any:
    return new_context(browser, 390, 844)


@pytest.fixture
def visitor(desk: Any, app: App) -> Iterator[Visitor]:
    """A desktop browser. Fails for any request to another host, error in the console, or dialog."""
    visitor = visit(desk, app)
    yield visitor
    visitor.page.close()
    assert visitor.wrong == []


@pytest.fixture
def phone(pocket: Any, app: App) -> Iterator[Visitor]:
    """The same on a phone."""
    visitor = visit(pocket, app)
    yield visitor
    visitor.page.close()
    assert visitor.wrong == []
