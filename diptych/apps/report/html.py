"""HTML that is escaped by construction: text becomes markup only through `tag` and `raw`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

from PIL import Image

VOID = frozenset({"img", "meta", "line", "polyline"})
"""Elements that have no content, so that they are closed at once."""
SMALL = 160
"""Pictures up to this side are stored without loss."""
LARGEST = 320
"""Larger pictures are scaled down to this side."""


class Html(str):
    """Markup that is safe to put into a page."""

    __slots__ = ()


Content = str | Iterable[str]
"""Markup (Html), text that is escaped (any other str), or a row of both."""


def raw(markup: str) -> Html:
    """Markup from our own files. Never for text that comes from data."""
    return Html(markup)


def markup_of(content: Content) -> Html:
    """Markup as it is, other text escaped, and rows of both put together."""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return Html(escape(content))
    return Html("".join(map(markup_of, content)))


def tag(name: str, /, *content: Content, **attributes: str | int | float | None) -> Html:
    """An element. `class_` gives class, `data_x` gives data-x; attributes of None are left out.

    >>> tag("p", "1 < 2 ", tag("b", "so"), class_="note")
    '<p class="note">1 &lt; 2 <b>so</b></p>'
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    opening = f"<{name}{''.join(pairs)}"
    # SVG's elements do not close themselves as HTML's do, hence the slash.
    return Html(f"{opening}/>" if name in VOID else f"{opening}>{''.join(map(markup_of, content))}</{name}>")


def picture(image: Image.Image, alt: str) -> Html:
    """The picture itself, in the page."""
    image = image.convert("RGB")
    stream = io.BytesIO()
    if max(image.size) <= SMALL:
        kind = "png"
        image.save(stream, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image.thumbnail((LARGEST, LARGEST))
        image.save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    return tag("img", src=f"data:image/{kind};base64,{data}", alt=alt, loading="lazy")
