"""Whether a run learns: loss against chance, features, temperature, false negatives, validation.

Levels without a source are our own choices, and each is said where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from diptych.apps.doctor.chance import Chance, chances
from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import Run, quarters

AT_CHANCE = 0.98
"""Share of the level of chance from which on a loss has learnt nothing."""
HARDLY = 0.9
"""Share from which on it has learnt hardly anything yet, which is noted."""
FAR_ABOVE = 1.5
"""Times the level of chance at which no loss should begin."""
RISEN = 1.15
"""Times its best quarter's mean from which on a loss has risen again."""
SAME = 0.05
"""Difference of two cosines below which they are the same."""
ALIKE = 0.95
"""Cosine from which on pairs that do not belong together are alike in any case."""
NEAR = 1.05
"""Times its bound within which a temperature is at it."""
SHARPEST = 0.01
"""CLIP's bound of the temperature (arXiv 2103.00020, §2.5); below it a note is made."""
FEW, MANY = 0.01, 0.05
"""Shares of pairs with a false negative that is kept, from which on it is noted and wrong."""
HALF = 0.5
"""Share of pairs whose negatives are thinned, from which on it is noted."""
FALLEN = 0.8
"""Share of its best value below which a validation has fallen."""
STALE = 5
"""Validations without a better one from which on it is noted."""


# --------------------------------------------------------------------------- loss


def chance(run: Run) -> Iterator[Finding]:
    """Each term of the loss against what guessing gives."""
    for level in chances(run.recipe):
        points = run.points(f"losses.{level.term}")
        if points:
            yield _against(run, level, points[0][1])


def _against(run: Run, level: Chance, first: float) -> Finding:
    name, late = f"loss: {level.term}", run.late(f"losses.{level.term}")
    if level.term == "itc" and run.late("measures.mi_bound") is not None:
        return _bound(run, level)
    known = f"chance is {level.nats:.2f} ({level.words})"
    if late is None or not run.settled(level.since):
        if first > FAR_ABOVE * level.nats:
            return Finding(name, "note", f"begins at {first:.2f}, {known}", "see that labels and words are right")
        return Finding(name, "unknown", f"{first:.2f} at first, {known}; too early to say more")
    if late >= AT_CHANCE * level.nats:
        return Finding(
            name,
            "wrong",
            f"{late:.2f} after {run.step - level.since:,} steps of it, {known}: nothing is learnt",
            "see that pictures and texts belong together (`diptych data show`), then try optim.lr a third and three "
            "times as high; a longer warm-up helps where the loss first fell",
        )
    if late >= HARDLY * level.nats:
        return Finding(name, "note", f"{late:.2f}, {known}: hardly anything is learnt yet", "train longer")
    return Finding(name, "fine", f"{late:.2f}, {known}")


def _bound(run: Run, level: Chance) -> Finding:
    """ITC by its bound, log N less the loss against hard labels: N is what it really was, and no teacher counts."""
    bound = run.late("measures.mi_bound")
    assert bound is not None
    batch = math.log(run.recipe.run.batch_size)
    known = f"the contrast is worth {bound:.2f} nats, 0 for guessing (log N less the loss; N is {level.words})"
    if not run.settled():
        return Finding("loss: itc", "unknown", f"{known}; too early to say more")
    if bound <= (1 - AT_CHANCE) * batch:
        worse = "worse than guessing" if bound < 0 else "no better than guessing"
        return Finding(
            "loss: itc",
            "wrong",
            f"{known}: {worse}",
            "see that pictures and texts belong together (`diptych data show`), and `features` and `start` here; then "
            "try optim.lr a third and three times as high",
        )
    return Finding("loss: itc", "fine", known)


def course(run: Run) -> Iterator[Finding]:
    """Whether a loss has risen again. ITC by its bound: with a filling queue the loss itself may rise."""
    if any(math.isnan(value) for line in run.lines for value in line.values()):
        yield Finding(
            "loss: course", "wrong", "the log holds numbers that are none", "go on from an earlier checkpoint"
        )
        return
    risen = [text for term in run.terms if (text := _risen(run, term))]
    if risen:
        yield Finding(
            "loss: course",
            "wrong",
            f"got worse again: {'; '.join(risen)}",
            "lower optim.lr, set optim.clip=1.0, or lengthen the warm-up; go on from the best checkpoint",
        )


def _risen(run: Run, name: str) -> str:
    if name == "losses.itc" and run.late("measures.mi_bound") is not None:
        means = quarters([value for _, value in run.points("measures.mi_bound")])
        best, last = max(means), means[-1]
        return f"the bound of itc fell from {best:.2f} to {last:.2f} nats" if last < best / RISEN - SAME else ""
    means = quarters([value for _, value in run.points(name)])
    if not means or means[-1] <= RISEN * min(means) + SAME:
        return ""
    return f"{name.removeprefix('losses.')} rose from {min(means):.2f} to {means[-1]:.2f}"


# --------------------------------------------------------------------------- features


def features(run: Run) -> Iterator[Finding]:
    """Collapse: everything is mapped to the same place."""
    right, other = run.late("measures.positive_similarity"), run.late("measures.other_similarity")
    bound = run.late("measures.mi_bound")
    if right is not None and other is not None:
        yield _apart(run, right, other)
    elif right is not None and bound is not None:
        apart = bound > SAME
        yield Finding(
            "features",
            "fine" if apart else "unknown",
            f"the log is from before `other_similarity`; a bound of {bound:.2f} nats "
            + ("is impossible for features that are all the same" if apart else "allows a collapse"),
        )
    yield from _codes(run)


def _apart(run: Run, right: float, other: float) -> Finding:
    known = f"cosine of right pairs {right:.2f}, of pairs that do not belong together {other:.2f}"
    if not run.settled():
        return Finding("features", "unknown", f"{known}; too early to say more")
    if right - other < SAME or other > ALIKE:
        return Finding(
            "features",
            "wrong",
            f"{known}: all features are the same, a collapse",
            "go on from a checkpoint before it, or anew, with a lower optim.lr and a longer warm-up; see that "
            "task.itc is above 0 and the batch large enough for negatives",
        )
    return Finding("features", "fine", known)


def _codes(run: Run) -> Iterator[Finding]:
    """Of the stages on pictures."""
    perplexity = run.late("measures.code_perplexity")
    if perplexity is not None:
        few = perplexity < 2
        yield Finding(
            "features",
            "wrong" if few else "fine",
            f"the codes are as uncertain as {perplexity:.0f} even ones" + (": they have collapsed" if few else ""),
            "raise task.kl, which draws the codes' use towards an even one, or lower optim.lr" if few else "",
        )
    guessed, commonest = run.late("measures.code_accuracy"), run.late("measures.commonest_code")
    if guessed is not None and commonest is not None and run.settled():
        blind = guessed <= commonest
        yield Finding(
            "features",
            "wrong" if blind else "fine",
            f"{guessed:.1%} of the hidden codes guessed, {commonest:.1%} by always saying the commonest",
            "see that task.tokenizer is well trained: its own run, too, can be asked about" if blind else "",
        )


def temperature(run: Run) -> Iterator[Finding]:
    """A learnt temperature at its bound says that similarities do not get what they ask for."""
    task, points = run.recipe.task, run.points("measures.temperature")
    if not points or not task.learns_temperature:
        return
    value, bounds = points[-1][1], (0.001, 0.5)
    if task.contrast is not None and task.contrast.temperature_bounds:
        bounds = task.contrast.temperature_bounds
    known = f"{value:.4f}, bounds {bounds[0]:g} … {bounds[1]:g}"
    if value <= NEAR * bounds[0]:
        yield Finding(
            "temperature",
            "wrong",
            f"{known}: at its lower bound, the contrast is as sharp as it may be",
            "negatives are too few or too easy, or the run learns its pairs by heart: a larger batch or queue, more "
            "data, a lower optim.lr",
        )
    elif value >= bounds[1] / NEAR:
        yield Finding(
            "temperature",
            "wrong",
            f"{known}: at its upper bound, the contrast is as flat as it may be",
            "similarities do not tell right pairs from wrong ones: see `features`, `loss: itc` and whether pictures "
            "and texts belong together",
        )
    elif value < SHARPEST:
        yield Finding("temperature", "note", f"{known}; CLIP allows none below {SHARPEST:g}", "watch it")
    else:
        yield Finding("temperature", "fine", known)


def false_negatives(run: Run) -> Iterator[Finding]:
    """Other captions of the same picture among the negatives."""
    contrast = run.recipe.task.contrast
    if contrast is None or contrast.false_negatives is None:
        return
    share, kept = run.late("measures.false_negatives"), contrast.false_negatives == "keep"
    if share is None:
        yield Finding("false negatives", "unknown", "not logged, or too few lines yet")
        return
    known = f"{share:.1%} of the pairs have another caption of their picture among the candidates"
    if kept and share > FEW:
        yield Finding(
            "false negatives",
            "wrong" if share > MANY else "note",
            f"{known}, and are pushed away from it",
            "set task.false_negatives=mask",
        )
    elif share > HALF:
        yield Finding(
            "false negatives",
            "note",
            f"{known}; they are masked, but so negatives are lost",
            "more pictures, or fewer captions of each",
        )
    else:
        yield Finding("false negatives", "fine", known + (", and masked" if not kept else ""))


# --------------------------------------------------------------------------- validation


def validation(run: Run) -> Iterator[Finding]:
    """Whether what is measured on unseen records still gets better."""
    for name in ("validation.mean_recall", "validation.accuracy"):
        values = [(int(line["step"]), line[name]) for line in run.validations if name in line]
        if values:
            yield _validated(name.removeprefix("validation."), values)
            return
    why = "no validation yet" if run.recipe.run.validate_every else "run.validate_every=0"
    yield Finding("validation", "unknown", why)


def _validated(name: str, values: list[tuple[int, float]]) -> Finding:
    step, best = max(values, key=lambda point: point[1])
    last = values[-1][1]
    since = sum(later > step for later, _ in values)
    known = f"{name} {last:.1f} %, best {best:.1f} % at step {step:,}"
    if last < FALLEN * best:
        return Finding(
            "validation",
            "wrong",
            f"{known}: it has fallen",
            "the run learns its records by heart or has become unstable: use the best checkpoint (it is kept), more "
            "data or augmentation, a lower optim.lr",
        )
    if since >= STALE:
        return Finding(
            "validation",
            "note",
            f"{known}: {since} validations without a better one",
            "stop here (the best checkpoint is kept), or let run.patience do so",
        )
    return Finding("validation", "fine", known)
