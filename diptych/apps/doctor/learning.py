"""Checks whether a run learns: loss against chance, features, temperature, false negatives, validation.

Thresholds without a source are our own choices; each states its meaning where it is defined.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from diptych.apps.doctor.chance import Chance, chances
from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import Run, quarters

AT_CHANCE = 0.98
"""Share of the chance level from which on a loss counts as not learning at all."""
HARDLY = 0.9
"""Share from which on a loss counts as hardly learning yet, which is a note."""
FAR_ABOVE = 1.5
"""Multiple of the chance level above which no loss should begin."""
RISEN = 1.15
"""Multiple of its best quarter's mean from which on a loss counts as risen again."""
SAME = 0.05
"""Difference of two cosines below which they count as equal."""
ALIKE = 0.95
"""Cosine of unrelated pairs above which features count as collapsed, whatever the right pairs have."""
NEAR = 1.05
"""Multiple of its bound within which a temperature counts as being at the bound."""
SHARPEST = 0.01
"""CLIP's lower bound of the temperature (arXiv 2103.00020, §2.5); anything below is a note."""
FEW, MANY = 0.01, 0.05
"""Shares of pairs with a kept false negative above which it is a note, and above which it is wrong."""
HALF = 0.5
"""Share of pairs with masked negatives above which it is a note."""
FALLEN = 0.8
"""Share of its best value below which a validation counts as fallen."""
HARDLY_BETTER = 1.05
"""Multiple of what a guesser gets up to which the best validation counts as hardly better, which is a note."""
STALE = 5
"""Number of validations without an improvement from which on it is a note."""


# --------------------------------------------------------------------------- loss


def chance(run: Run) -> Iterator[Finding]:
    """Compares each term of the loss with its level for a model that guesses."""
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
            way = "lower optim.lr or lengthen schedule.warmup_steps, and check labels and tokenizer"
            return Finding(name, "note", f"begins at {first:.2f}, while {known}", way)
        return Finding(name, "unknown", f"begins at {first:.2f}, while {known}; it is too early to tell more")
    if late >= AT_CHANCE * level.nats:
        return Finding(
            name,
            "wrong",
            f"{late:.2f} after {run.step - level.since:,} steps of this loss, while {known}: the run learns nothing",
            "check that pictures and texts belong together (`diptych data show`), then try a third and three times the "
            "optim.lr; a longer warm-up helps where the loss fell at first",
        )
    if late >= HARDLY * level.nats:
        return Finding(name, "note", f"{late:.2f}, while {known}: the run has hardly learnt yet", "train longer")
    return Finding(name, "fine", f"{late:.2f}, while {known}")


def _bound(run: Run, level: Chance) -> Finding:
    """Judges ITC by the bound log N less the loss against hard labels, with the true N and without pseudo-targets."""
    bound = run.late("measures.mi_bound")
    assert bound is not None
    batch = math.log(run.recipe.run.batch_size)
    known = f"the mutual-information bound is {bound:.2f} nats, and 0 for guessing (log N less the loss, {level.words})"
    if not run.settled():
        return Finding("loss: itc", "unknown", f"{known}; it is too early to tell more")
    if bound <= (1 - AT_CHANCE) * batch:
        worse = "worse than guessing" if bound < 0 else "no better than guessing"
        return Finding(
            "loss: itc",
            "wrong",
            f"{known}: {worse}",
            "check that pictures and texts belong together (`diptych data show`), see `features` and `start` here, "
            "then try a third and three times the optim.lr",
        )
    return Finding("loss: itc", "fine", known)


def course(run: Run) -> Iterator[Finding]:
    """Checks that no loss has risen again. ITC is judged by its bound, since a filling queue may raise its loss."""
    if any(math.isnan(value) for line in run.lines for value in line.values()):
        yield Finding(
            "loss: course", "wrong", "the log holds NaN", "go on from an earlier checkpoint with a lower optim.lr"
        )
        return
    risen = [text for term in run.terms if (text := _risen(run, term))]
    if risen:
        yield Finding(
            "loss: course",
            "wrong",
            f"the run got worse again: {'; '.join(risen)}",
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
    """Checks that features have not collapsed into one place."""
    right, other = run.late("measures.positive_similarity"), run.late("measures.other_similarity")
    bound = run.late("measures.mi_bound")
    if right is not None and other is not None:
        yield _apart(run, right, other)
    elif right is not None and bound is not None:
        apart = bound > SAME
        yield Finding(
            "features",
            "fine" if apart else "unknown",
            f"an earlier version wrote the log without `other_similarity`; a bound of {bound:.2f} nats "
            + ("excludes a collapse" if apart else "does not exclude a collapse"),
        )
    yield from _codes(run)


def _apart(run: Run, right: float, other: float) -> Finding:
    known = f"the cosine of right pairs is {right:.2f}, that of pairs that do not belong together {other:.2f}"
    if not run.settled():
        return Finding("features", "unknown", f"{known}; it is too early to tell more")
    if right - other < SAME or other > ALIKE:
        return Finding(
            "features",
            "wrong",
            f"{known}: the features have collapsed",
            "go on from an earlier checkpoint, or start again, with a lower optim.lr and a longer warm-up; check that "
            "task.itc is above 0 and the batch large enough for negatives",
        )
    return Finding("features", "fine", known)


def _codes(run: Run) -> Iterator[Finding]:
    """Checks the visual tokens in the stages on pictures."""
    perplexity = run.late("measures.code_perplexity")
    if perplexity is not None:
        few = perplexity < 2
        yield Finding(
            "features",
            "wrong" if few else "fine",
            f"the perplexity of the codes is {perplexity:.0f}" + (": they have collapsed" if few else ""),
            "raise task.kl, which makes the use of the codes more even, or lower optim.lr" if few else "",
        )
    guessed, commonest = run.late("measures.code_accuracy"), run.late("measures.commonest_code")
    if guessed is not None and commonest is not None and run.settled():
        blind = guessed <= commonest
        yield Finding(
            "features",
            "wrong" if blind else "fine",
            f"{guessed:.1%} of the masked codes are guessed; always the commonest code would give {commonest:.1%}",
            "check that task.tokenizer is well trained: run `diptych doctor` on its run, too" if blind else "",
        )


def temperature(run: Run) -> Iterator[Finding]:
    """Checks that the learnt temperature is not at a bound, where similarities cannot become sharper or flatter."""
    task, points = run.recipe.task, run.points("measures.temperature")
    if not points or not task.learns_temperature:
        return
    value, bounds = points[-1][1], (0.001, 0.5)
    if task.contrast is not None and task.contrast.temperature_bounds and not run.recipe.released.unbounded_temperature:
        bounds = task.contrast.temperature_bounds
    known = f"it is {value:.4f}, with bounds {bounds[0]:g} … {bounds[1]:g}"
    if value <= NEAR * bounds[0]:
        yield Finding(
            "temperature",
            "wrong",
            f"{known}: at its lower bound, so the softmax cannot get sharper",
            "negatives are too few or too easy, or the run learns its pairs by heart: use a larger batch or queue, "
            "more data, or a lower optim.lr",
        )
    elif value >= bounds[1] / NEAR:
        yield Finding(
            "temperature",
            "wrong",
            f"{known}: at its upper bound, so the softmax cannot get flatter",
            "similarities do not tell right pairs from wrong ones: see `features` and `loss: itc`, and check that "
            "pictures and texts belong together",
        )
    elif value < SHARPEST:
        yield Finding("temperature", "note", f"{known}; CLIP allows no value below {SHARPEST:g}", "watch it")
    else:
        yield Finding("temperature", "fine", known)


def false_negatives(run: Run) -> Iterator[Finding]:
    """Checks how often another caption of the same picture is among the negatives."""
    contrast = run.recipe.task.contrast
    if contrast is None or not contrast.masks_false_negatives:
        return
    share, kept = run.late("measures.false_negatives"), run.recipe.released.keep_false_negatives
    if share is None:
        yield Finding("false negatives", "unknown", "the log has no such measure, or too few lines yet")
        return
    known = f"{share:.1%} of the pairs have another caption of their picture among the candidates"
    if kept and share > FEW:
        yield Finding(
            "false negatives",
            "wrong" if share > MANY else "note",
            f"{known}, and the loss pushes them apart",
            "set released.keep_false_negatives=false",
        )
    elif share > HALF:
        yield Finding(
            "false negatives",
            "note",
            f"{known}; masking them leaves fewer negatives",
            "use more pictures, or fewer captions of each",
        )
    else:
        yield Finding("false negatives", "fine", known + ("" if kept else "; they are masked"))


# --------------------------------------------------------------------------- validation


def validation(run: Run) -> Iterator[Finding]:
    """Checks that the measure on unseen records still improves."""
    for name in ("validation.mean_recall", "validation.accuracy"):
        values = [(int(line["step"]), line[name]) for line in run.validations if name in line]
        if values:
            guess = run.validations[-1].get("validation.chance")
            yield _validated(name.removeprefix("validation."), values, guess, run.settled())
            return
    why = "there is no validation yet" if run.recipe.run.validate_every else "run.validate_every=0 turns it off"
    yield Finding("validation", "unknown", why)


def _validated(name: str, values: list[tuple[int, float]], guess: float | None, settled: bool) -> Finding:
    """Judges a measure by its course, and by `guess`, what a guesser would get; earlier versions did not log it."""
    step, best = max(values, key=lambda point: point[1])
    last = values[-1][1]
    since = sum(later > step for later, _ in values)
    known = f"{name} is {last:.1f} %, and was best with {best:.1f} % at step {step:,}"
    if guess is not None:
        known += f"; guessing gets {guess:.1f} %"
        if best <= guess:
            return Finding(
                "validation",
                "wrong" if settled else "unknown",
                f"{known}: the run is no better than guessing" + ("" if settled else ", but it is too early to tell"),
                "see `texts`, `features` and the losses here; where guessing gets this much, also validate on more "
                "records",
            )
        if best <= HARDLY_BETTER * guess:
            return Finding(
                "validation", "note", f"{known}: the run is hardly better than guessing", "train longer, on more data"
            )
    if last < FALLEN * best:
        return Finding(
            "validation",
            "wrong",
            f"{known}: it has fallen",
            "the run learns its records by heart or has become unstable: use the best checkpoint, which is kept, more "
            "data or augmentation, or a lower optim.lr",
        )
    if since >= STALE:
        return Finding(
            "validation",
            "note",
            f"{known}: the last {since} validations brought no improvement",
            "stop here, since the best checkpoint is kept, or set run.patience to stop automatically",
        )
    return Finding("validation", "fine", known)
