"""Recognises strings that stand for a picture or a file and were sent where a text is expected."""

from __future__ import annotations

import re

NO_TEXTS = (
    (re.compile(r"\s*data:[^\s,]{0,999},.*", re.IGNORECASE | re.DOTALL), "is a data URL where a text is expected"),
    (
        re.compile(r"\s*[a-z][a-z0-9+.-]{0,20}://\S*\s*", re.IGNORECASE),
        "is an address, and no address is ever fetched",
    ),
    (
        re.compile(r"\s*(iVBORw0KGgo|/9j/|R0lGOD|UklGR)[a-z0-9+/]{12}.*", re.IGNORECASE | re.DOTALL),
        "is the base64 of a picture where a text is expected",
    ),
    (re.compile(r"\s*(~?/|[a-z]:[\\/])\S+\s*", re.IGNORECASE), "is the path of a file, and no file is ever opened"),
)
"""What is no text, and what to say of it. PNG, JPEG, GIF and WebP are told by how their base64 begins."""


def why_no_text(text: str) -> str | None:
    """Says why a string that was sent as a text is none: it is nothing but an address, a path, or a picture's bytes.

    Returns None for a text. A model would embed any of these without a word, as a meaningless vector.

    >>> why_no_text("a boat at https://example.org") is None
    True
    >>> why_no_text("https://example.org/a.png")
    'is an address, and no address is ever fetched'
    """
    return next((reason for kind, reason in NO_TEXTS if kind.fullmatch(text)), None)
