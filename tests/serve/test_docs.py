"""Checks that the commands of docs/serve.md work and that its tables are complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from diptych.apps.serve.errors import CODES
from diptych.apps.serve.limits import Limits
from tests.serve.server_state import Running, encoded, picture, requests, strict_json

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)
assert COMMANDS is not None
CURLS = COMMANDS[1].strip().splitlines()


def test_every_endpoint_has_an_example() -> None:
    assert {path for path in requests() if any(f"{path} " in line for line in CURLS)} == requests().keys()


@pytest.mark.parametrize("command", CURLS)
def test_each_example_is_answered(command: str, served: Running) -> None:
    assert shutil.which("curl"), "the examples need curl"
    environment = os.environ | {"SERVER": served.url, "PICTURE": encoded(picture(1)), "no_proxy": "*"}
    ended = subprocess.run(
        ["sh", "-c", command + " -w '\\n%{http_code}'"], env=environment, capture_output=True, timeout=30, check=True
    )
    body, _, status = ended.stdout.rpartition(b"\n")
    assert status == b"200", body
    if "/metrics" not in command:
        assert strict_json(body)


def test_the_tables_hold_every_limit_code_and_metric(served: Running) -> None:
    for field in fields(Limits):
        row = f"| `--{field.name.replace('_', '-')}` | {field.default:,g} |" if field.default == 4 else None
        assert (row or f"| `--{field.name.replace('_', '-')}` | {int(field.default):,} |") in PAGE
    for code, (status, _) in CODES.items():
        assert re.search(rf"^\| {status} \|.*`{code}`", PAGE, re.MULTILINE), code
    for name in re.findall(r"^# TYPE (\w+)", served.get("/metrics").text, re.MULTILINE):
        if not name.endswith("_created"):
            assert f"`{name}" in PAGE, name
