"""What every page has: head, title bar with links, sections, footer. It loads nothing: styles and script are in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diptych import __version__
from diptych.apps.report.html import Content, raw, tag

Section = tuple[str, str, Content]
"""Anchor, title, content."""
MARK = raw(
    '<svg class="mark" viewBox="0 0 28 22" aria-hidden="true">'
    '<path d="M2 3l11 3v14L2 17z"/><path d="M26 3L15 6v14l11-3z"/></svg>'
)


def page(title: str, sections: Sequence[Section], style: str = "", script: str = "") -> str:
    """The whole document. `style` is added to that of all pages; `script` is a file of ours."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · diptych"),
        tag("style", raw(_own("style.css") + style)),
    )
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _ in sections]
    body = tag(
        "body",
        tag("header", tag("div", MARK, tag("h1", title)), tag("nav", links)),
        tag("main", [tag("section", tag("h2", name), content, id=anchor) for anchor, name, content in sections]),
        tag("footer", f"Written by diptych {__version__}."),
        tag("script", raw(_own(script))) if script else "",
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def write_whole(file: Path, content: str) -> Path:
    """Writes a file whole or not at all. Returns its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(content, encoding="utf-8")
    return unfinished.replace(file)


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
