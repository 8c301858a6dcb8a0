"""Learns word pieces from word counts: byte-pair merges over characters, written as WordPiece entries.

The trainer of the `tokenizers` package breaks ties by hash order, so that two runs learn different vocabularies. This
one breaks ties by the word pieces themselves. A word is a list of word pieces; "##" marks one that continues a word.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from string import ascii_lowercase, digits

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

CONTINUES = "##"
BASIC = digits + ascii_lowercase
Pair = tuple[str, str]


def count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    """Counts the words of texts, which are cleaned and split as by BERT."""
    normalizer, splitter = BertNormalizer(lowercase=lowercase), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            words[word] += times
    return words


def learn_pieces(words: Mapping[str, int], size: int) -> list[str]:
    """Learns at most `size` word pieces: every character (letters also as continuation) and the most frequent merges.

    The digits and Latin letters that no word has come last, as far as they fit into a tenth of `size`. Texts of later
    tasks may need them: captions say "two foxes", and an answer is "2".

    Raises ValueError if `size` is too small for the characters alone.
    """
    ordered = sorted(words)
    letters = sorted({letter for word in ordered for letter in word})
    spelling = {piece for word in ordered for piece in _spell(word)}
    spelling |= {CONTINUES + letter for letter in letters if letter.isalpha()}  # for words that are met later
    pieces = dict.fromkeys([*letters, *sorted(spelling.difference(letters))])
    if len(pieces) > size:
        raise ValueError(
            f"the captions hold {len(letters)} different characters: tokenizer.size must be at least {len(pieces) + 5}"
        )
    later = [start + sign for sign in BASIC for start in ("", CONTINUES) if start + sign not in pieces][: size // 10]
    merges = _Merges([_spell(word) for word in ordered], [words[word] for word in ordered])
    while len(pieces) + len(later) < size and (pair := merges.best()):
        pieces.setdefault(_joined(pair))
        merges.merge(pair)
    return [*pieces, *later][:size]


def _spell(word: str) -> list[str]:
    return [word[0], *(CONTINUES + letter for letter in word[1:])]


def _joined(pair: Pair) -> str:
    return pair[0] + pair[1].removeprefix(CONTINUES)


class _Merges:
    """Holds words as word pieces, and keeps the count of every neighbouring pair up to date while pairs are merged."""

    def __init__(self, words: list[list[str]], counts: list[int]) -> None:
        self.words = words
        self.counts = counts
        self.pairs: Counter[Pair] = Counter()
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number in range(len(words)):
            self._count(number, +1)
        self.heap = [(-count, pair) for pair, count in self.pairs.items()]
        heapq.heapify(self.heap)

    def best(self) -> Pair | None:
        """Returns the most frequent pair, or the first in alphabetical order of several.

        Returns None when every word is a single word piece.
        """
        while self.heap:
            count, pair = self.heap[0]
            if count and self.pairs[pair] == -count:
                return pair
            heapq.heappop(self.heap)  # this entry is out of date; the pair's present count is elsewhere in the heap
        return None

    def merge(self, pair: Pair) -> None:
        """Merges a pair in all words."""
        touched: set[Pair] = set()
        for number in sorted(self.where[pair]):
            touched |= self._count(number, -1)
            self.words[number] = _merge(self.words[number], pair)
            touched |= self._count(number, +1)
        for changed in touched:
            if self.pairs[changed] > 0:
                heapq.heappush(self.heap, (-self.pairs[changed], changed))

    def _count(self, number: int, sign: int) -> set[Pair]:
        """Adds the pairs of a word to the counts, or removes them. Returns these pairs."""
        pairs = list(pairwise(self.words[number]))
        for pair in pairs:
            self.pairs[pair] += sign * self.counts[number]
            (self.where[pair].add if sign > 0 else self.where[pair].discard)(number)
        return set(pairs)


def _merge(word: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for piece in word:
        # A pair that has just been merged cannot merge again: its word piece is not the first half of the pair.
        if merged and (merged[-1], piece) == pair:
            merged[-1] = _joined(pair)
        else:
            merged.append(piece)
    return merged
