"""What captions found on the web suffer from: they belong to another picture, lose words, or advertise."""

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
    """The text without about half of its words: at least one is lost and one kept. A single word stays."""
    words = text.split(" ")
    kept = [word for word in words if random.random() < 0.5]
    if len(kept) == len(words) > 1:
        kept = words[1:]
    return " ".join(kept or words[-1:])


def add_boilerplate(text: str, random: Random) -> str:
    """Advertising after the text, or, one time in three, instead of it."""
    first = int(random.random() * len(BOILERPLATE))
    second = (first + 1 + int(random.random() * (len(BOILERPLATE) - 1))) % len(BOILERPLATE)
    advert = f"{BOILERPLATE[first]}, {BOILERPLATE[second]}"
    return advert if random.random() < 1 / 3 else f"{text}, {advert}"
