"""`diptych doctor RUN`: checks whether a run is healthy, from its log and folder. It loads neither weights nor torch.

beginning.py   checks the start weights
learning.py    checks loss, features, temperature, false negatives, validation
envelope.py    compares the loss with recorded runs of the same recipe
data.py        checks the texts that the run learns from
machinery.py   checks gradients, records, loader, checkpoints
"""

from collections.abc import Callable, Iterator, Sequence

from diptych.apps.doctor import beginning, data, learning, machinery
from diptych.apps.doctor.envelope import Envelope, envelope, known, record
from diptych.apps.doctor.finding import Diagnosis, Finding
from diptych.apps.doctor.run import Run, read_run

__all__ = ["CHECKS", "Diagnosis", "Envelope", "Finding", "Run", "examine", "known", "read_run", "record"]

CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    beginning.start,
    data.texts,
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
"""The checks beside the envelopes, in the order of their findings."""


def examine(run: Run, envelopes: Sequence[Envelope]) -> Diagnosis:
    """Runs all checks on a run."""
    findings = [*envelope(run, envelopes), *(finding for check in CHECKS for finding in check(run))]
    return Diagnosis(str(run.folder), run.recipe.name, run.step, run.recipe.run.steps, findings)
