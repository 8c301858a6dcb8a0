"""Runs a short fuzz test. `python -m tests.serve.fuzz --requests 10000` is the full one."""

from __future__ import annotations

from pathlib import Path

from diptych.predict import ModelPool
from tests.serve.fuzz import LIMITS, fuzz
from tests.serve.server_state import running

REQUESTS = 300


def test_hostile_requests_break_nothing_and_every_one_is_counted(pool: ModelPool, photos: Path) -> None:
    with running(pool, LIMITS, index=str(photos)) as server:
        outcome = fuzz(server, REQUESTS)
        assert not outcome.wrong, str(outcome)
        assert {status for _, status in outcome.seen} >= {200, 422}
        assert server.get("/healthz").status_code == 200
