"""Asks before a place is used that a stored recipe names and that nobody has named on this machine.

A recipe of a checkpoint that somebody else made can name any file and any address. Reading such a recipe marks its
places (`StoredPlace`). Whoever opens a marked place calls `allow` first, which lets it pass if

- a training on this machine was started with it (`remember`), or
- its user has said yes to it before, or says so now, at a terminal, or
- DIPTYCH_PLACES=trusted is set.

What a user names on the command line or in Python is a plain text and passes. The places that are known stand in
`places` in the user's configuration folder, one a line as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from diptych.printable import printable
from diptych.reading import expand_home, read_bounded

TRUST = "DIPTYCH_PLACES"
"""Environment variable. With the value `trusted`, places of stored recipes are used without a question."""
LARGEST = 1 << 24
_allowed: set[str] = set()
"""Places that were allowed in this process, which may be unable to write the file."""


class StoredPlace(str):
    """A path or an address that a stored recipe names. It stays marked when it is copied or pickled."""

    __slots__ = ()


class PlaceError(ValueError):
    """A stored recipe names a place that was not named on this machine."""


def allow(places: Mapping[str, str | None]) -> None:
    """Asks for the marked ones among `places`, by the name of their field, unless they are known.

    Raises PlaceError if the answer is no, or if there is nobody to ask. Then none of them has been touched.
    """
    asked = {
        field: str(place)
        for field, place in places.items()
        if isinstance(place, StoredPlace) and _normal(place) not in _allowed
    }
    if not asked or os.environ.get(TRUST) == "trusted":
        return
    known = _known()
    if asked := {field: place for field, place in asked.items() if _normal(place) not in known}:
        listed = ", ".join(f"{field}={printable(place)}" for field, place in asked.items())
        if not _agreed(listed):
            raise PlaceError(
                f"the recipe was stored with the model and names places that were not named on this machine: {listed}. "
                f"Nothing was read there. If you trust its author, set {TRUST}=trusted; or name places of your own, "
                f"as in {next(iter(asked))}=PATH, where a command takes fields"
            )
        remember(asked.values())


def is_allowed(place: str) -> bool:
    """Says whether a place may be used without a question: one that is not marked, or that `allow` lets pass."""
    unasked = not isinstance(place, StoredPlace) or os.environ.get(TRUST) == "trusted"
    return unasked or _normal(place) in _allowed | _known()


def remember(places: Iterable[str]) -> None:
    """Notes places that the user of this machine has named. Where the file cannot be written, only for this process.

    Where every place is trusted, nothing is noted.
    """
    if os.environ.get(TRUST) == "trusted":
        return
    new = {_normal(place) for place in places} - _allowed
    _allowed.update(new)
    if new := new - _known():
        try:
            file = _file()
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write("".join(f"{json.dumps(place)}\n" for place in sorted(new)))
        except (OSError, ValueError):  # ValueError: there is no home folder
            return


def _agreed(listed: str) -> bool:
    """Asks at the terminal. Without one the answer is no."""
    if not (sys.stdin and sys.stderr and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(
        f"The recipe was stored with the model and names places that were not named on this machine: {listed}\n"
        "Use them, now and later? [y/N] ",
        end="", file=sys.stderr, flush=True,
    )  # fmt: skip
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or expand_home("~/.config")) / "diptych" / "places"


def _known() -> set[str]:
    try:
        lines = read_bounded(_file(), LARGEST).splitlines()
        return {place for line in lines if isinstance(place := json.loads(line), str)}
    except (OSError, ValueError):  # ValueError: also without a home folder
        return set()


def _normal(place: str) -> str:
    """Returns the address, or the path from the root of the file system."""
    return str(place) if "://" in place else os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111
