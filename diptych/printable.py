"""Makes names and messages safe to print: file names, addresses and texts that somebody else wrote.

A terminal obeys what it is sent, so a file name can move the cursor, change the title or hide the line above it. An
address can hold a password, which does not belong on a screen or into a log.
"""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, characters that reverse the direction of writing, and lone surrogates."""
_LOGIN = re.compile(r"(?<=://)([^/\s:@?#'\"]*):[^/\s@]*@")
_TOKEN = re.compile(r"(https?://)[^/\s:@?#'\"]+@")
_SECRET = re.compile(
    r"([?&][\w.-]{0,99}?(?:token|signature|sig|secret|passw|key|credential)[\w.-]{0,99}=)[^&\s#'\")\]]+", re.I
)
LONGEST = 200
"""Characters of a value that a message shows."""


def printable(text: str, lines: bool = False) -> str:
    r"""Escapes what a terminal would obey, and hides passwords in addresses. `lines` keeps line ends and tabs.

    >>> printable("a\x1b[2Jb.png"), printable("s3://me:secret@host/a.tar")
    ('a\\x1b[2Jb.png', 's3://me:***@host/a.tar')
    """
    if "://" in text:
        text = _LOGIN.sub(r"\1:***@", text)
        text = _SECRET.sub(r"\1***", _TOKEN.sub(r"\1***@", text))
    return _CONTROL.sub(lambda match: match[0] if lines and match[0] in "\n\t" else _escaped(match[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def brief(value: Any) -> str:
    """Returns `repr` of a value that somebody else wrote, cut to what a message can show.

    >>> brief([1, "a"]), len(brief("a" * 1000))
    ("[1, 'a']", 201)
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
