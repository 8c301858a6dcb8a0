"""Generates hypotheses for visual entailment: texts that a scene entails, contradicts or leaves open.

A hypothesis is drawn from a scene, as a pure function of the scene and of random numbers that depend only on (seed,
split, index).

**How a hypothesis can be undecidable.** A scene consists of flat cut-outs: their names, numbers, sizes and places are
all there is to know about them. No picture tells whether a dog that it shows is hungry; but if there is no dog, there
is no hungry dog either. Each hypothesis names two things: a claim, which the picture shows or does not, and a thing
with a property that scenes do not have. An example is `there is a cat or a hungry dog`.

- entailment: there is a cat, and no dog.
- neutral: there is no cat, but there is a dog.
- contradiction: there is neither.

A cat together with a dog never occurs, so each label is right for both an inclusive and an exclusive `or`. Every kind
of claim, every wording, noun and adjective occurs equally often with all three labels, so the text alone says nothing
about its label.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig
from diptych.synthetic.claims import Claim, ClaimKind, absent, by_weight, choose, claim_kinds, draw_claim
from diptych.synthetic.generator import Scene
from diptych.synthetic.nouns import Noun

Label = Literal["contradiction", "neutral", "entailment"]
LABELS: tuple[Label, ...] = ("contradiction", "neutral", "entailment")
_WEIGHTS: dict[ClaimKind, float] = {"existence": 2.0, "background": 1.0, "count": 3.0, "size": 3.0, "relation": 3.0}
"""Kinds that fewer scenes allow have a higher weight."""

_OF_ANYTHING = ("famous", "lucky", "loved")
_OF_GOODS = ("cheap", "lost", "stolen")
UNSEEN: dict[str, tuple[str, ...]] = {
    "animal": ("hungry", "tame", "shy"),
    **dict.fromkeys(("food", "vehicle", "plant", "object", "clothing", "music", "sport"), _OF_GOODS),
}
"""Adjectives that no picture shows, by group of sprites. Other groups use `_OF_ANYTHING`."""


@dataclass(frozen=True)
class Hypothesis:
    """Holds a hypothesis, its label and its two parts."""

    text: str
    label: Label
    claim: Claim
    """The part that the picture decides."""
    unseen: Noun
    """The thing that has the property."""
    adjective: str
    """The property. No scene says whether it applies."""

    @property
    def kind(self) -> ClaimKind:
        return self.claim.kind


def hypothesis(scene: Scene, random: Random, config: ScenesConfig) -> Hypothesis | None:
    """Draws a hypothesis, whose labels are equally likely. Returns None if the scene allows none."""
    label = choose(LABELS, random)
    kinds = [kind for kind in claim_kinds(scene, config) if kind != "relation" or len(scene.kinds) > 2]
    if not kinds:
        return None
    kind = by_weight({kind: _WEIGHTS[kind] for kind in kinds}, random)[0]
    claim = draw_claim(scene, kind, label == "entailment", random, config)
    if claim is None:
        return None
    if label == "neutral":  # a thing in the picture that the claim does not name; `claim_kinds` ensures there is one
        unnamed = [members[0] for members in scene.kinds.values() if members[0].noun not in claim.nouns]
        item = choose(unnamed, random)
        noun, group = item.noun, item.group
    else:
        sprite = absent(scene, random, config, claim.nouns)
        noun, group = sprite.noun, sprite.group
    adjective = choose(UNSEEN.get(group, _OF_ANYTHING), random)
    return Hypothesis(_text(claim, noun, adjective, random), label, claim, noun, adjective)


def _text(claim: Claim, unseen: Noun, adjective: str, random: Random) -> str:
    parts = [(claim.verb, claim.phrase(random)), (unseen.verb(1), unseen.phrase(1, adjective))]
    # A relation always comes last, because the second thing of `a cat above a dog or a hungry mouse` might be meant to
    # be below the cat as well.
    if random.random() < 0.5 or claim.kind == "relation":
        parts.reverse()
    (verb, first), (_, second) = parts
    opener = "the picture has" if random.random() < 0.5 else f"there {verb}"
    return f"{opener} {first} or {second}"
