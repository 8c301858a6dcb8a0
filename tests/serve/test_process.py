"""Runs `diptych serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from diptych.predict import ModelPool


def test_the_command_serves_until_it_is_told_to_stop(pool: ModelPool, photos: Path) -> None:
    run = pool.models[0].name
    command = [sys.executable, "-m", "diptych", "serve", run, "--index", str(photos), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"DIPTYCH_API_KEY": "a-key-that-is-long-enough"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            url = next(word for word in line if word.startswith("http"))
            assert line[1] == str(len(pool.models))
            with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30) as client:
                assert client.get("/healthz").json() == {"live": True, "ready": True}
                assert client.get("/v1/models").status_code == 401
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
