"""Runs a short fuzz test. `python -m tests.serve.fuzz --requests 10000` is the full one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.predict import ModelPool
from tests.serve.fuzz import HEAVY, LIMITS, fuzz
from tests.serve.server_state import Running, running, wait_until

REQUESTS = 300


def test_hostile_requests_break_nothing_and_every_one_is_counted(pool: ModelPool, photos: Path) -> None:
    with running(pool, LIMITS, index=str(photos)) as server:
        outcome = fuzz(server, REQUESTS)
        assert not outcome.wrong, str(outcome)
        assert {status for _, status in outcome.seen} >= {200, 422}
        assert server.get("/healthz").status_code == 200


@pytest.mark.parametrize("build", HEAVY)
def test_each_costly_request_is_answered_and_leaves_nothing_behind(build: Callable[[], Any], served: Running) -> None:
    path, body, headers = build()
    with served.client() as client:
        headers = {"Content-Type": "application/json", **headers}
        response = client.post(path, content=body, headers=headers)
        assert response.status_code in (200, 405, 413, 422), response.text
        assert client.post("/v1/embed", json={"texts": ["a boat"]}).status_code == 200
    wait_until(served.is_idle)
