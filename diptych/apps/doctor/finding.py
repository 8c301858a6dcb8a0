"""What the doctor says: findings with what to do, and all of them as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["wrong", "note", "fine", "unknown"]
"""`wrong`: do something. `note`: know it. `unknown`: the log or the run does not tell, or it is too early."""
LEVELS: tuple[Level, ...] = ("wrong", "note", "unknown", "fine")
"""In the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What was looked at; `docs/doctor.md` has a heading of this name, its part before a colon."""
    level: Level
    what: str
    """What was found, with its numbers."""
    do: str = ""
    """What to do about it."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a run."""

    run: str
    recipe: str
    step: int
    steps: int | None
    """As planned; None where epochs decide."""
    findings: Sequence[Finding]

    @property
    def healthy(self) -> bool:
        return all(finding.level != "wrong" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}

    def text(self) -> str:
        """For people: what is wrong first."""
        of = f" of {self.steps:,}" if self.steps else ""
        lines = [f"{self.run}: {self.recipe}, step {self.step:,}{of}", ""]
        for level in LEVELS:
            for finding in (one for one in self.findings if one.level == level):
                lines.append(f"  {level:<8}{finding.name}: {finding.what}")
                if finding.do and level != "fine":
                    lines.append(f"  {'':<8}→ {finding.do}")
        wrong = sum(finding.level == "wrong" for finding in self.findings)
        verdict = f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong" if wrong else "nothing is wrong"
        return "\n".join([*lines, "", f"{verdict}; what each line means: docs/doctor.md"])
