"""Small shards as img2dataset writes them, and a server on this machine that misbehaves as told."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a red fox", "number 0 1 2 3 4 5 6 7 8 9"], 200)


def jpeg(shade: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A grey picture, so that what is read can be told by its pixels."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade % 256,) * 3).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def pair(number: int, **metadata: Any) -> list[tuple[str, bytes]]:
    """The three members of a sample."""
    key = f"{number:09}"
    entry = {"caption": "not this one", "key": key, "url": f"http://pictures/{number}", "status": "success", **metadata}
    return [
        (f"{key}.jpg", jpeg(number)),
        (f"{key}.txt", f"number {number}".encode()),
        (f"{key}.json", json.dumps(entry).encode()),
    ]


def shard(file: Path, numbers: Iterable[int]) -> Path:
    return tar(file, (member for number in numbers for member in pair(number)))


def shards(folder: Path, sizes: Iterable[int]) -> list[Path]:
    """Shard s has samples 100 s, 100 s + 1, …"""
    return [
        shard(folder / f"{number:05}.tar", range(100 * number, 100 * number + size))
        for number, size in enumerate(sizes)
    ]


def number_of(record: Any) -> int:
    return int(record.texts[0].split()[-1])


# --------------------------------------------------------------------------- a server


@dataclass
class Server:
    """Serves files by name. `faults[name]` is a list of what to do at each GET, the last of them from then on."""

    files: dict[str, bytes]
    address: str = ""
    faults: Mapping[str, list[str]] = field(default_factory=dict)
    gets: Counter[str] = field(default_factory=Counter)
    slow: threading.Event = field(default_factory=threading.Event)
    """Set to let slow answers end."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server({file.name: file.read_bytes() for file in folder.iterdir()})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            faults = server.faults.get(name, ["none"])
            fault = faults[min(server.gets[name], len(faults) - 1)]
            server.gets[name] += 1
            if fault in ("404", "503"):
                self.send_error(int(fault))
            elif self._head():
                content = server.files[name]
                if fault == "slow":
                    self.wfile.write(content[:100])
                    server.slow.wait(20)
                elif fault == "truncated":
                    self.wfile.write(content[: len(content) // 2])
                else:
                    self.wfile.write(content)

        def _head(self) -> bool:
            content = server.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return False
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hash(content):x}"')
            self.end_headers()
            return True

        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    server.address = f"http://127.0.0.1:{web.server_address[1]}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.slow.set()
        web.shutdown()
        thread.join()
        web.server_close()


def noise(side: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))
