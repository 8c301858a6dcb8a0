"""Each equation of the papers stands in one place, and `diptych where` finds it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import diptych
from diptych.cli import where
from diptych.cli.main import main

REQUIRED = tuple(f"ALBEF Eq. {number}" for number in range(1, 11)) + tuple(f"VLMo §3.{part}" for part in range(1, 6))
"""The numbered equations of ALBEF (arXiv 2107.07651), and the sections of VLMo's method (arXiv 2111.02358)."""


def test_every_equation_is_tagged_exactly_once() -> None:
    counts = Counter(tag.name for tag in where.tags(Path(diptych.__file__).parent))
    assert not [name for name in REQUIRED if not counts[name]], "an equation or a section of method has no tag"
    equations = {name: count for name, count in counts.items() if "Eq." in name}
    assert set(equations.values()) == {1}, "the code of an equation stands in two places"


@pytest.mark.parametrize("spelling", ["ALBEF Eq. 6", "albef eq 6", "ALBEF Eq.6", "Eq. 6"])
def test_where_prints_file_line_and_function(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["where", spelling]) == 0
    tag, place, scope = capsys.readouterr().out.strip().split("  ")
    file, line = place.rsplit(":", 1)
    assert tag == "ALBEF Eq. 6"
    assert "# ALBEF Eq. 6" in Path(file).read_text().splitlines()[int(line) - 1]
    assert f"def {scope}(" in Path(file).read_text()


def test_where_without_a_tag_lists_all_in_the_papers_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["where"]) == 0
    printed = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(name for name in printed if name in REQUIRED)) == list(REQUIRED)


def test_an_unknown_tag_is_an_error_that_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["where", "ALBEF Eq. 99"]) == 2
    assert "ALBEF Eq. 10" in capsys.readouterr().err


def test_prose_strings_and_longer_numbers_are_no_tags(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        '"""# ALBEF Eq. 1"""\n'
        "# unlike ALBEF Eq. 2\n"
        "class Model:\n"
        "    def loss(self):\n"
        '        text = "# ALBEF Eq. 3"  # ALBEF Eq. 12\n'
        "        return text  # VLMo §3.2: with words\n"
    )
    found = [(tag.name, tag.line, tag.scope) for tag in where.tags(tmp_path)]
    assert found == [("ALBEF Eq. 12", 5, "Model.loss"), ("VLMo §3.2", 6, "Model.loss")]
