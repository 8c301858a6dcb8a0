"""The doctor's findings, each with what to do about it, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["wrong", "note", "fine", "unknown"]
"""`wrong` asks for action, `note` for attention. `unknown`: the log does not tell, or it is too early."""
LEVELS: tuple[Level, ...] = ("wrong", "note", "unknown", "fine")
"""All levels, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    """Name of the check. `docs/doctor.md` has a heading of the part before a colon."""
    level: Level
    what: str
    """The finding, with its numbers."""
    do: str = ""
    """What to do about it."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a run."""

    run: str
    recipe: str
    step: int
    steps: int | None
    """Planned number of steps; None where the recipe counts epochs."""
    findings: Sequence[Finding]

    @property
    def healthy(self) -> bool:
        return all(finding.level != "wrong" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}

    def text(self) -> str:
        """Formats the findings for people, wrong ones first."""
        of = f" of {self.steps:,}" if self.steps else ""
        lines = [f"{self.run}: {self.recipe}, step {self.step:,}{of}", ""]
        for level in LEVELS:
            for finding in (finding for finding in self.findings if finding.level == level):
                lines.append(f"  {level:<8}{finding.name}: {finding.what}")
                if finding.do and level != "fine":
                    lines.append(f"  {'':<8}→ {finding.do}")
        wrong = sum(finding.level == "wrong" for finding in self.findings)
        verdict = f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong" if wrong else "nothing is wrong"
        return "\n".join([*lines, "", f"{verdict}; docs/doctor.md explains each line"])
