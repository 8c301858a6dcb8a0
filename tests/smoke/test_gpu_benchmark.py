"""`python -m benchmarks gpu`, end to end at tiny size on a CPU, and with parts that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_report import Report

ROOT = Path(gpu.__file__).parents[1]
BARE = """
import runpy, sys
from importlib.machinery import PathFinder

ABSENT = {"jaxtyping", "jsonargparse", "rich", "fsspec", "huggingface_hub", "yaml", "jinja2"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
sys.argv[0] = "gpu"
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
"""Runs the benchmark as if nothing were installed beyond torch, numpy, pillow, tokenizers and safetensors."""


def test_every_part_runs_where_only_torch_and_its_few_companions_are_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, "--tiny", "--device", "cpu", "--seconds", "9600", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(part["error"] == "" and part["figures"] for part in parts.values())
    figures = {name: part["figures"] for name, part in parts.items()}
    for family in gpu.FAMILIES:
        assert figures["parity"][f"{family} fp32"]["loss"] <= 1e-5
        assert figures[family]["losses of both sides"]["difference in exact fp32"] <= 1e-5
        assert figures[family]["ours fp32"]["pairs/s"] > 0
        assert figures[family]["ours fp32"]["GFLOP/pair"] < figures[family]["plain fp32"]["GFLOP/pair"]
        assert figures[family]["ours fp32"]["share of peak"] > 0
        assert "ours compiled fp32" in figures[f"{family}-compiled"]
        assert figures["plan"][f"{family} fp32"]["GB planned"] > 0
        assert figures["use"][f"{family} fp32, re-ranked pairs"]["re-ranked pairs/s"] > 0
        assert figures["muon"][family]["Muon's share of a step"] > 0
    page = (tmp_path / "gpu.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in gpu.PARTS)


def hangs(bench: gpu.Bench) -> None:
    bench.record("before", {"seconds": 1.0})
    time.sleep(60)


def dies(bench: gpu.Bench) -> None:
    os._exit(3)


def fails(bench: gpu.Bench) -> None:
    raise RuntimeError("an illegal <memory> access")


def ends(bench: gpu.Bench) -> None:
    bench.record("figure", {"images/s": 2.0})


def test_a_part_that_hangs_dies_or_fails_leaves_its_figures_and_the_other_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PARTS", {part.__name__: (2.0, part) for part in (hangs, dies, fails, ends)})
    assert gpu.main(["--device", "cpu", "--tiny", "--folder", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["error"] for name, part in parts.items()} == {
        "hangs": "out of time after 2 s", "dies": "the process died (exit status 3)",
        "fails": "RuntimeError: an illegal <memory> access", "ends": "",
    }  # fmt: skip
    assert parts["hangs"]["figures"] == {"before": {"seconds": 1.0}}
    assert "in fails" in parts["fails"]["traceback"]
    page = (tmp_path / "gpu.html").read_text()
    assert "an illegal &lt;memory&gt; access" in page


def test_figures_are_on_disk_before_their_part_ends(tmp_path: Path) -> None:
    report = Report(tmp_path, "a machine")
    report.begin("part")
    report.add("part", "first", {"images/s": 2.0})
    part = json.loads(report.file.read_text())["parts"]["part"]
    assert part["figures"] == {"first": {"images/s": 2.0}}
    assert report.failed, "a part that has not ended has not succeeded"


def test_no_part_begins_after_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"hangs": (gpu.TOTAL, hangs), "ends": (gpu.TOTAL, ends)})
    assert gpu.main(["--device", "cpu", "--seconds", "1", "--folder", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["hangs"]["error"] == "out of time after 1 s"
    assert parts["ends"]["error"] == "no time is left for it"


def test_without_a_card_it_says_so_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.torch.cuda.is_available():
        pytest.skip("this machine has a card")
    assert gpu.main(["--folder", str(tmp_path)]) == 1
    assert "torch finds no card here" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == ["device"]
