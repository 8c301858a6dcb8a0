"""HTML that is escaped by construction: text becomes markup only through `tag` and `Html`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from markupsafe import Markup as Html
from markupsafe import escape
from PIL import Image

VOID = frozenset({"img", "meta", "line", "polyline"})
"""Elements without content, which are closed at once."""
SMALL = 160
"""Pictures up to this side are stored without loss."""
LARGEST = 320
"""Larger pictures are scaled down to this side."""
MARK = Html(
    '<svg class="mark" viewBox="0 0 28 22" aria-hidden="true">'
    '<path d="M2 3l11 3v14L2 17z"/><path d="M26 3L15 6v14l11-3z"/></svg>'
)
"""The library's sign."""

Content = str | Iterable[str]
"""Markup (Html), text that is escaped (any other str), or a sequence of both."""


def tag(name: str, /, *content: Content, **attributes: str | int | float | None) -> Html:
    """Builds an element. `class_` gives class, `data_x` gives data-x; attributes of None are left out.

    >>> tag("p", "1 < 2 ", tag("b", "so"), class_="note")
    Markup('<p class="note">1 &lt; 2 <b>so</b></p>')
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    opening = f"<{name}{''.join(pairs)}"
    # SVG's elements do not close themselves as HTML's do, hence the slash.
    return Html(f"{opening}/>" if name in VOID else f"{opening}>{''.join(map(_markup, content))}</{name}>")


def picture(image: Image.Image, alt: str) -> Html:
    """Builds an `img` element that holds the picture itself."""
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


def _markup(content: Content) -> str:
    return str(escape(content)) if isinstance(content, str) else "".join(map(_markup, content))
