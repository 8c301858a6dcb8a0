"""A short fuzzing; the whole is `python -m tests.serve.fuzz --requests 10000`."""

from __future__ import annotations

from pathlib import Path

from diptych.predict import ModelPool
from tests.serve.fuzz import LIMITS, fuzz
from tests.serve.server_state import running

REQUESTS = 300


def test_hostile_requests_break_nothing_and_none_is_lost(pool: ModelPool, photos: Path) -> None:
    with running(pool, LIMITS, index=str(photos)) as server:
        found = fuzz(server, REQUESTS)
        assert not found.wrong, str(found)
        assert {status for _, status in found.seen} >= {200, 422}
        assert server.get("/healthz").status_code == 200
