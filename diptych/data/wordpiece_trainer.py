"""Learning word pieces from word counts: byte-pair merges over characters, written as WordPiece entries.

Own code, because the trainer of the `tokenizers` package breaks ties by hash order, so that two runs learn different
vocabularies. Here ties are broken by the pieces themselves. Words are lists of pieces, "##" marks continuation.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

CONTINUES = "##"
Pair = tuple[str, str]


def count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    """How often each word occurs, after BERT's clean-up and splitting."""
    clean, split = BertNormalizer(lowercase=lowercase), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for word, _ in split.pre_tokenize_str(clean.normalize_str(text)):
            words[word] += times
    return words


def learn_pieces(words: Mapping[str, int], size: int) -> list[str]:
    """At most `size` pieces: every character (letters also as continuation), then the most frequent merges.

    Raises ValueError if `size` does not even hold the characters.
    """
    spelt = sorted(words)
    letters = sorted({letter for word in spelt for letter in word})
    spelling = {piece for word in spelt for piece in _spell(word)}
    spelling |= {CONTINUES + letter for letter in letters if letter.isalpha()}  # for the words of later queries
    pieces = dict.fromkeys([*letters, *sorted(spelling.difference(letters))])
    if len(pieces) > size:
        raise ValueError(
            f"the captions hold {len(letters)} different characters: tokenizer.size must be at least {len(pieces) + 5}"
        )
    merges = _Merges([_spell(word) for word in spelt], [words[word] for word in spelt])
    while len(pieces) < size and (pair := merges.best()):
        pieces.setdefault(_joined(pair))
        merges.merge(pair)
    return list(pieces)


def _spell(word: str) -> list[str]:
    return [word[0], *(CONTINUES + letter for letter in word[1:])]


def _joined(pair: Pair) -> str:
    return pair[0] + pair[1].removeprefix(CONTINUES)


class _Merges:
    """Words as pieces with the count of every neighbouring pair, kept up to date as pairs merge."""

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
        """The most frequent pair, the first in alphabetical order among equals; None when every word is one piece."""
        while self.heap:
            count, pair = self.heap[0]
            if count and self.pairs[pair] == -count:
                return pair
            heapq.heappop(self.heap)  # out of date: its present count stands elsewhere in the heap
        return None

    def merge(self, pair: Pair) -> None:
        touched: set[Pair] = set()
        for number in sorted(self.where[pair]):
            touched |= self._count(number, -1)
            self.words[number] = _merge(self.words[number], pair)
            touched |= self._count(number, +1)
        for changed in touched:
            if self.pairs[changed] > 0:
                heapq.heappush(self.heap, (-self.pairs[changed], changed))

    def _count(self, number: int, sign: int) -> set[Pair]:
        """Add (or take away) the pairs of a word; the pairs concerned."""
        pairs = list(pairwise(self.words[number]))
        for pair in pairs:
            self.pairs[pair] += sign * self.counts[number]
            (self.where[pair].add if sign > 0 else self.where[pair].discard)(number)
        return set(pairs)


def _merge(word: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for piece in word:
        # A pair that has just been formed cannot merge again: its piece is not the pair's first half.
        if merged and (merged[-1], piece) == pair:
            merged[-1] = _joined(pair)
        else:
            merged.append(piece)
    return merged
