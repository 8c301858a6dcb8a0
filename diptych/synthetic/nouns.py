"""Inflects English nouns: articles, plurals and number words. Names in other languages are never inflected."""

from __future__ import annotations

from dataclasses import dataclass

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
MOST_OBJECTS = len(NUMBER_WORDS) - 1

IRREGULAR_PLURALS = {
    "child": "children",
    "deer": "deer",
    "die": "dice",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
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
_PLURAL_ALREADY = {"men", "women", "people", "children"}
_SINGULAR_IN_S = {"rhinoceros"}
_O_WITH_ES = {"hero", "mango", "mosquito", "potato", "tomato", "volcano"}
_HEAD_ENDS_BEFORE = {"with", "of", "in", "on", "at", "over", "without", "and", "up", "down", "holding", "hugging"}
_DOERS = {"person", "man", "woman", "chart"}
"""A name that begins with one of these and continues with an `-ing` has its noun first: `person bouncing ball`."""

_CONSONANT_SOUND = ("eu", "ewe", "one", "uni", "ufo", "use", "ut")
_VOWEL_SOUND = ("hour", "honest", "heir", "x-ray")


@dataclass(frozen=True)
class Noun:
    """Holds the two forms of a noun."""

    singular: str
    plural: str

    def phrase(self, count: int, adjective: str = "") -> str:
        """Returns the noun with its article or number. A noun without singular, such as `grapes`, has no article.

        >>> Noun("apple", "apples").phrase(1), Noun("apple", "apples").phrase(2, "small")
        ('an apple', 'two small apples')
        """
        words = f"{adjective} {self.singular if count == 1 else self.plural}".lstrip()
        if count > 1:
            return f"{NUMBER_WORDS[count]} {words}"
        return words if self.plural_only else f"{article(words)} {words}"

    @property
    def plural_only(self) -> bool:
        """Whether the noun has no singular, as `grapes`."""
        return self.singular == self.plural and self.singular not in IRREGULAR_PLURALS

    def verb(self, count: int) -> str:
        """Returns `is` or `are`, depending on the count.

        >>> Noun("apple", "apples").verb(1), Noun("sheep", "sheep").verb(1), Noun("grapes", "grapes").verb(1)
        ('is', 'is', 'are')
        """
        return "is" if count == 1 and not self.plural_only else "are"


def article(phrase: str) -> str:
    """Returns `a` or `an`, by the sound with which the phrase begins."""
    word = phrase.lower()
    vowel = word[:1] in tuple("aeiou") and not word.startswith(_CONSONANT_SOUND)
    return "an" if vowel or word.startswith(_VOWEL_SOUND) else "a"


def english(singular: str) -> Noun:
    """Returns the noun of an English name, with its plural.

    >>> english("ear of corn").plural, english("person running").plural, english("ice cream").plural
    ('ears of corn', 'people running', 'ice creams')
    """
    words = singular.split(" ")
    head = next((i - 1 for i, word in enumerate(words) if i and word in _HEAD_ENDS_BEFORE), len(words) - 1)
    if words[0] in _DOERS and any(word.endswith("ing") for word in words[1:]):
        head = 0
    return Noun(singular, " ".join([*words[:head], plural(words[head]), *words[head + 1 :]]))


def plural(word: str) -> str:
    """Returns the plural of one English word. A word that ends in a single s is taken for a plural already."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word in _PLURAL_ALREADY:
        return word
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in _SINGULAR_IN_S:
        return word
    if word.endswith("man") and word != "human":
        return word[:-3] + "men"
    if word in _O_WITH_ES or word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
