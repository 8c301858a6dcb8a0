"""Visual entailment on scenes: hypotheses that are true of a picture, false, or left open by it.

**What makes a hypothesis undecidable.** Scenes are flat cut-outs. What things are called, how many and how large they
are and where they stand is all there is to them: no mood, no price, no history. Whether a dog that is to be seen is
hungry, no picture can tell; but where there is no dog, there is no hungry dog either. Each hypothesis names two things,
one of which the picture shows or does not (the claim) and one that has a property scenes do not have:
`there is a cat or a hungry dog`.

- entailment: there is a cat, and no dog.
- neutral: there is no cat, but there is a dog.
- contradiction: there is neither.

A cat together with a dog is never asked about, so that each label is right whether `or` includes both or excludes it.
So every kind of claim, every wording, noun and adjective occurs in all three classes equally often, and the text alone
tells nothing about its label.
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
"""What a picture allows less often is drawn more often where it is allowed."""

_OF_ANYTHING = ("famous", "lucky", "loved")
_OF_GOODS = ("cheap", "lost", "stolen")
UNSEEN: dict[str, tuple[str, ...]] = {
    "animal": ("hungry", "tame", "shy"),
    **dict.fromkeys(("food", "vehicle", "plant", "object", "clothing", "music", "sport"), _OF_GOODS),
}
"""Adjectives that no picture shows, by group of sprites; others take `_OF_ANYTHING`."""


@dataclass(frozen=True)
class Hypothesis:
    text: str
    label: Label
    claim: Claim
    """What the picture decides."""
    unseen: Noun
    """The thing that has the property."""
    adjective: str
    """The property; no scene says whether it applies."""

    @property
    def kind(self) -> ClaimKind:
        return self.claim.kind


def hypothesis(scene: Scene, random: Random, config: ScenesConfig) -> Hypothesis | None:
    """A hypothesis with each label equally likely; None where the scene leaves nothing to say."""
    label = choose(LABELS, random)
    kinds = [kind for kind in claim_kinds(scene, config) if kind != "relation" or len(scene.kinds) > 2]
    if not kinds:
        return None
    kind = by_weight({kind: _WEIGHTS[kind] for kind in kinds}, random)[0]
    claim = draw_claim(scene, kind, label == "entailment", random, config)
    if claim is None:
        return None
    noun, group = _visible(scene, claim, random) if label == "neutral" else _invisible(scene, claim, random, config)
    adjective = choose(UNSEEN.get(group, _OF_ANYTHING), random)
    return Hypothesis(_text(claim, noun, adjective, random), label, claim, noun, adjective)


def _visible(scene: Scene, claim: Claim, random: Random) -> tuple[Noun, str]:
    """Something there that the claim does not speak of, and its group: any picture of `claim_kinds` has it."""
    item = choose([kind[0] for kind in scene.kinds.values() if kind[0].noun not in claim.nouns], random)
    return item.noun, item.group


def _invisible(scene: Scene, claim: Claim, random: Random, config: ScenesConfig) -> tuple[Noun, str]:
    sprite = absent(scene, random, config, claim.nouns)
    return sprite.noun, sprite.group


def _text(claim: Claim, unseen: Noun, adjective: str, random: Random) -> str:
    parts = [(claim.verb, claim.phrase(random)), (unseen.verb(1), unseen.phrase(1, adjective))]
    if random.random() < 0.5 or claim.kind == "relation":  # what follows `a cat above a dog or` might be below the cat
        parts.reverse()
    (verb, first), (_, second) = parts
    opener = "the picture has" if random.random() < 0.5 else f"there {verb}"
    return f"{opener} {first} or {second}"
