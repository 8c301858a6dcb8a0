"""Checks the texts that a run learns from, as its start counted them (`data.json`)."""

from __future__ import annotations

from collections.abc import Iterator

from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import Run
from diptych.data.profile import DataProfile, TextProfile

MANY = 0.1
"""Share of unknown word pieces above which texts count as unreadable, and of pairs of pictures with the same text above
which contrast counts as misled. Our own choice; a smaller share is a note."""


def texts(run: Run) -> Iterator[Finding]:
    """Checks that the vocabulary knows the texts, that pictures have their own, and that data stayed the same."""
    try:
        profiles = [DataProfile.from_json(entry) for entry in run.data]
    except (KeyError, TypeError):
        profiles = []
    if not profiles:  # an earlier version began the run, and did not count them
        return
    now = profiles[-1].texts
    if now.texts:
        yield _known(now)
        yield from _repeated(run, now)
    for before, after, entry in zip(profiles, profiles[1:], run.data[1:], strict=False):
        if others := before.differences(after):
            yield Finding(
                "data",
                "note",
                f"from step {entry['since']:,} on the run has other data ({after.place}) than before ({before.place}): "
                f"{'; '.join(others)}",
                "compare the loss before and after this step; only a new run tells what these data alone would give",
            )


def _known(profile: TextProfile) -> Finding:
    if words := profile.unknown_words():
        return Finding(
            "texts",
            "wrong" if profile.unknown is not None and profile.unknown > MANY else "note",
            words,
            "start again with tokenizer.vocabulary=VOCAB of this language, or none to learn it from the captions",
        )
    return Finding("texts", "fine", "the vocabulary knows the words of the texts")


def _repeated(run: Run, profile: TextProfile) -> Iterator[Finding]:
    contrast = run.recipe.task.contrast
    if contrast is None or not (repeated := profile.repetition()):
        return
    if contrast.ignores_true_texts and not profile.same_for_all:
        yield Finding("texts", "fine", f"{repeated}; they are no negatives (task.ignore_true_texts)")
        return
    way_out = "set task.ignore_true_texts=true, or " * (contrast.offers_true_texts and not profile.same_for_all)
    yield Finding(
        "texts",
        "wrong" if profile.same_text > MANY else "note",
        f"{repeated}, and contrast counts them as each other's negatives",
        f"{way_out}give texts that tell more of each picture",
    )
