"""Adds noise to captions, as captions from the web have it: lost words and advertising.

The noise is drawn from random numbers that depend only on (seed, split, index). The caption of another picture, which
is a third kind of noise and also stands alone (`scenes.mismatch`), is chosen by diptych/data/sources/scenes.py.
"""

from __future__ import annotations

from random import Random

BOILERPLATE = (
    "stock photo",
    "free download",
    "hd wallpaper",
    "image for sale",
    "best price online",
    "click here for more",
)


def drop_words(text: str, random: Random) -> str:
    """Drops about half of the words of a text, at least one and not all. A single word stays."""
    words = text.split(" ")
    kept = [word for word in words if random.random() < 0.5]
    if len(kept) == len(words) > 1:
        kept = words[1:]
    return " ".join(kept or words[-1:])


def add_boilerplate(text: str, random: Random) -> str:
    """Adds advertising after a text, or, one time in three, replaces the text by it."""
    first = int(random.random() * len(BOILERPLATE))
    second = (first + 1 + int(random.random() * (len(BOILERPLATE) - 1))) % len(BOILERPLATE)
    advert = f"{BOILERPLATE[first]}, {BOILERPLATE[second]}"
    return advert if random.random() < 1 / 3 else f"{text}, {advert}"
