"""Tells the files that are read as pictures from those that look like pictures and are passed over.

One rule serves folders and tar shards: search, indices, vectors, training sources and `diptych data validate` all count
what they pass over with `PassedOver`, and say it in one line.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import PurePath

from diptych.reading import ARCHIVE, disguise

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .avif .jp2".split()  # noqa: SIM905
)
"""Files with these suffixes, in lower case, are taken for pictures."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Pictures too, if pillow-heif is installed."""
NEEDS_HEIF = "HEIC (needs pillow-heif: pip install 'diptych[heif]')"
NO_SUFFIX = "picture without a suffix (give it one, such as .jpg)"
LINKED_FOLDER = "linked folder (name it as a folder of its own)"
LINK_IN_TAR = "link in a tar (pack it with `tar --hard-dereference -h`)"
MAC_FILE = "side file of macOS (._)"
HIDDEN = "hidden picture"
_SVG = "SVG (a drawing without pixels: export it as PNG)"
_JXL = "JPEG XL (convert it to JPEG or PNG)"
_OTHER = {
    _SVG: ".svg .svgz",
    _JXL: ".jxl",
    "camera RAW (export it as JPEG or TIFF)": (
        ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2"
        " .rwl .sr2 .srf .srw .x3f"
    ),
    "project of a paint program (export it as PNG)": ".psd .psb .xcf .kra .ora .afphoto",
    "drawing or page without pixels (export it as PNG)": ".ai .eps .ps .emf .wmf .cdr",
    "picture format that is not read (convert it to PNG)": (
        ".ico .cur .icns .tga .exr .hdr .dds .pcx .jxr .wdp .hdp .bpg .qoi .j2k .j2c .jpc .jpx .jpf .jpm .xbm .xpm .sgi"
        " .pnm .pam .pfm .apng .mpo .jps .pcd .fits .dcm"
    ),
}
PASSED_OVER: Mapping[str, str] = {suffix: reason for reason, suffixes in _OTHER.items() for suffix in suffixes.split()}
"""The reason why files with a suffix are no pictures here, although a person may call them so."""


@lru_cache(maxsize=1)
def reads_heif() -> bool:
    """Returns whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def is_hidden(name: str | PurePath) -> bool:
    """Returns whether a file is hidden by the dot before its name, as macOS's side files are."""
    return os.path.basename(name).startswith(".")  # noqa: PTH119 — Path takes seconds for a million names


def is_picture(name: str | PurePath) -> bool:
    """Returns whether a file of this name is taken for a picture.

    >>> is_picture("a.JPG"), is_picture("a.svg"), is_picture("._a.jpg")
    (True, False, False)
    """
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return not is_hidden(name) and (suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif()))


def passed_over(name: str | PurePath, head: bytes = b"") -> str | None:
    """Returns the reason why a file that looks like a picture is passed over; None for pictures and for other files.

    `head` is the beginning of its content, which is asked where the name has no suffix.

    >>> passed_over("ant.svg")
    'SVG (a drawing without pixels: export it as PNG)'
    >>> passed_over("ant.txt"), passed_over("ant.jpg")
    (None, None)
    """
    base = os.path.basename(name)  # noqa: PTH119
    suffix = os.path.splitext(base)[1].lower()  # noqa: PTH122
    if base.startswith("._"):
        return MAC_FILE
    if base.startswith("."):
        return HIDDEN if suffix in SUFFIXES or suffix in HEIF_SUFFIXES else None
    if suffix in HEIF_SUFFIXES:
        return None if reads_heif() else NEEDS_HEIF
    if suffix in PASSED_OVER:
        return PASSED_OVER[suffix]
    return NO_SUFFIX if not suffix and _begins_as_picture(head) else None


@dataclass
class PassedOver:
    """Counts the files that look like pictures and are passed over, by their reasons."""

    counts: Counter[str] = field(default_factory=Counter)
    stems: set[str] = field(default_factory=set)
    """Their paths without suffix: a text beside one of them does not lack its picture."""

    def __bool__(self) -> bool:
        return bool(self.counts)

    def note(self, name: str | PurePath, head: bytes = b"") -> bool:
        """Counts a file if it is passed over, and returns whether it is."""
        reason = passed_over(name, head)
        if reason is None:
            return False
        self.add(reason)
        if reason not in (MAC_FILE, HIDDEN):
            self.stems.add(os.path.splitext(name)[0])  # noqa: PTH122
        return True

    def note_link(self, name: str) -> bool:
        """Counts a member of a tar that is a link, if it is called as a picture. Returns True: no link is read."""
        if is_picture(name):
            self.add(LINK_IN_TAR)
            self.stems.add(os.path.splitext(name)[0])  # noqa: PTH122
        return True

    def add(self, reason: str, count: int = 1) -> None:
        if count:
            self.counts[reason] += count

    def join(self, other: PassedOver) -> None:
        self.counts.update(other.counts)
        self.stems |= other.stems

    @property
    def without_names(self) -> PassedOver:
        """The counts alone, which a source carries to its workers."""
        return PassedOver(self.counts)

    @property
    def after(self) -> str:
        """The line as the end of a message that nothing was found; empty if nothing was passed over."""
        return f"; {self}" if self else ""

    def __str__(self) -> str:
        """Says everything in one line.

        >>> seen = PassedOver()
        >>> [seen.note(name) for name in ("a.svg", "b.svg", "c.jpg")]
        [True, True, False]
        >>> print(seen)
        passed over 2: 2 × SVG (a drawing without pixels: export it as PNG)
        """
        listed = ", ".join(f"{count} × {reason}" for reason, count in self.counts.most_common())
        return f"passed over {self.counts.total()}: {listed}"


# --------------------------------------------------------------------------- by content


def _begins_as_picture(head: bytes) -> bool:
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"BM")) or (
        (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp" or head[4:8] == b"jP  "
    )


def told_by_content(head: bytes) -> str | None:
    """Names what a file holds that is no picture here, by the beginning of its content. None if that is unknown.

    >>> told_by_content(b"%!PS"), told_by_content(b"%PDF-1.4"), told_by_content(b"a text")
    ('PostScript', 'a PDF', None)
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        return "HEIC that is damaged" if reads_heif() else NEEDS_HEIF
    if head.startswith(b"\xff\x0a") or head[4:8] == b"JXL ":
        return _JXL
    if b"<svg" in text and text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")):
        return _SVG
    for begin, name in (
        (b"8BPS", "a Photoshop file"), (b"%!PS", "PostScript"), (ARCHIVE, "a ZIP archive"),
        (b"\0\x05\x16\x07", "a side file of macOS, which belongs to a picture"),
    ):  # fmt: skip
        if head.startswith(begin):
            return name
    return None if _begins_as_picture(head) else disguise(head)
