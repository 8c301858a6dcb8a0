"""`diptych doctor RUN`: a run's log and folder, and whether they are healthy. Neither weights nor torch are loaded.

beginning.py   what it began with
learning.py    loss, features, temperature, false negatives, validation
envelope.py    loss beside what was recorded of the same recipe
machinery.py   gradients, records, loader, checkpoints
"""

from collections.abc import Callable, Iterator, Sequence

from diptych.apps.doctor import beginning, learning, machinery
from diptych.apps.doctor.envelope import Envelope, envelope, known, record
from diptych.apps.doctor.finding import Diagnosis, Finding
from diptych.apps.doctor.run import Run, read_run

__all__ = ["CHECKS", "Diagnosis", "Envelope", "Finding", "Run", "examine", "known", "read_run", "record"]

CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    beginning.start,
    learning.chance,
    learning.course,
    learning.features,
    learning.temperature,
    learning.false_negatives,
    learning.validation,
    machinery.gradient,
    machinery.records,
    machinery.loader,
    machinery.checkpoints,
)
"""What is looked at beside the envelopes, in the order in which it is said."""


def examine(run: Run, envelopes: Sequence[Envelope]) -> Diagnosis:
    """All findings about a run."""
    findings = [*envelope(run, envelopes), *(finding for check in CHECKS for finding in check(run))]
    return Diagnosis(str(run.folder), run.recipe.name, run.step, run.recipe.run.steps, findings)
