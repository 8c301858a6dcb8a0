"""Tells by its first bytes what a file is that is no checkpoint: a web page, a git-lfs pointer, an archive."""

from __future__ import annotations

import re
from pathlib import Path

READ = 4096
"""Bytes that are looked at."""
ARCHIVES = {
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
}
OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file, as TensorFlow writes it: take the PyTorch or safetensors file",
    b"GGUF": "a GGUF file: take the PyTorch or safetensors file",
}


def no_checkpoint(file: Path) -> str | None:
    """Says what a file is, as the end of a sentence that begins with its name; None where it may be a checkpoint."""
    with file.open("rb") as stream:
        start = stream.read(READ)
    if not start.strip(b"\0 \t\r\n"):
        size = file.stat().st_size
        return "is empty" if size == 0 else f"holds only blanks in its first {len(start):,} of {size:,} bytes"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    beginning = text[:100].lower()
    if text.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d+)", text)
        whole = f" of a file of {int(size[1]):,} bytes" if size else ""
        return f"is a git-lfs pointer{whole}, not the file itself: run `git lfs pull` in its folder, or fetch it again"
    if beginning.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", text, flags=re.DOTALL | re.IGNORECASE)
        named = f' ("{_plain(title[1])}")' if title else ""
        return f"is a web page{named}: the address led to a page, not to the file"
    if beginning.startswith(b"<?xml") or re.match(rb"<error", beginning):
        code = re.search(rb"<(?:Code|Message)>(.*?)</", text, flags=re.DOTALL)
        named = f' ("{_plain(code[1])}")' if code else ""
        return f"is an XML answer{named}: the server sent a message in place of the file"
    for kinds in (ARCHIVES, OTHERS):
        for mark, kind in kinds.items():
            if start.startswith(mark):
                return f"is {kind}"
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    if re.match(rb'[\[{]\s*["\[{\]}]', text):
        return f'is JSON text ("{_plain(text[:60])}")'
    return None


def _plain(text: bytes) -> str:
    return re.sub(r"\s+", " ", text.decode("utf-8", "replace"))[:80]
