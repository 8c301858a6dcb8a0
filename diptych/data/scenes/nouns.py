"""English nouns: article, plural, number words. Names in other languages are kept as they are and never inflected."""

from __future__ import annotations

from dataclasses import dataclass

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
MOST_OBJECTS = len(NUMBER_WORDS) - 1

IRREGULAR_PLURALS = {
    "child": "children",
    "deer": "deer",
    "die": "dice",
    "ewe": "ewes",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "squid": "squid",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}
PLURAL_ALREADY = {"clothes", "glasses", "gloves", "grapes", "jeans", "scissors", "shorts", "socks", "sunglasses"}
O_WITH_ES = {"buffalo", "hero", "mango", "mosquito", "potato", "tomato", "volcano"}

_CONSONANT_SOUND = ("eu", "ewe", "one", "uni", "ufo", "use", "ut")
_VOWEL_SOUND = ("hour", "honest", "heir")
_HEAD_ENDS_BEFORE = {"with", "of", "in", "on", "at", "over", "without", "and"}


@dataclass(frozen=True)
class Noun:
    singular: str
    plural: str

    def phrase(self, count: int, adjective: str = "") -> str:
        """`an apple`, `a small apple`, `two small apples`."""
        words = f"{adjective} {self.singular if count == 1 else self.plural}".lstrip()
        return f"{article(words)} {words}" if count == 1 else f"{NUMBER_WORDS[count]} {words}"


def article(phrase: str) -> str:
    """`a` or `an`, by the sound that the phrase starts with."""
    word = phrase.lower()
    vowel = word[:1] in ("a", "e", "i", "o", "u") and not word.startswith(_CONSONANT_SOUND)
    return "an" if vowel or word.startswith(_VOWEL_SOUND) else "a"


def english(singular: str) -> Noun:
    """A noun with its plural formed: `ear of corn` → `ears of corn`, `soccer ball` → `soccer balls`."""
    words = singular.split(" ")
    head = next((i - 1 for i, word in enumerate(words) if i and word in _HEAD_ENDS_BEFORE), len(words) - 1)
    return Noun(singular, " ".join([*words[:head], plural(words[head]), *words[head + 1 :]]))


def plural(word: str) -> str:
    """The plural of one English word."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word in PLURAL_ALREADY:
        return word
    if word.endswith("man") and word not in ("human", "caiman"):
        return word[:-3] + "men"
    if word in O_WITH_ES or word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
