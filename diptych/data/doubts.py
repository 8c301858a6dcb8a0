"""Notes questions and pairs that are hardly meant as they are written. This file imports no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from diptych.data.record import AnyRecord, PairStatement, Question
from diptych.printable import printable

MOST = 0.5
"""If more than this share of the records look wrong, all may be."""
SHORT = 3
"""Parts of so few words may be answers of their own, and questions of so few words may be answers."""
MERGED = 0.05
"""A note is given if a normal form merges more than this share of the different answers."""


class Doubts:
    """Collects what looks wrong in the questions and pairs of a split."""

    def __init__(self, normalise: Callable[[str], str] | None = None) -> None:
        """`normalise` brings an answer into the form in which its evaluation compares it."""
        self.normalise = normalise
        self.questions = self.asking = self.answer_words = self.question_words = 0
        self.several = 0
        """Questions whose only answer seems to be several."""
        self.example = ""
        self.forms: defaultdict[str, set[str]] = defaultdict(set)
        self.texts: set[int] = set()
        """Hashes of the different questions."""
        self.pairs = self.same = 0

    def add(self, record: AnyRecord) -> None:
        """Counts a record."""
        if isinstance(record, PairStatement):
            self.pairs += 1
            self.same += record.image_ids[0] == record.image_ids[1]
        if not isinstance(record, Question) or not record.targets:
            return
        answers = [answer for answer, _ in record.targets]
        self.questions += 1
        self.asking += all(answer.rstrip().endswith(("?", "？")) for answer in answers)
        self.answer_words += len(answers[0].split())
        self.question_words += len(record.question.split())
        self.texts.add(hash(record.question))
        parts = [part.split() for part in re.split("[,;|]", answers[0])]
        if len(answers) == 1 and len(parts) > 1 and all(0 < len(words) <= SHORT for words in parts):
            self.several += 1
            self.example = self.example or answers[0]
        for answer in answers:
            self.forms[self.normalise(answer) if self.normalise else answer].add(answer)

    def notes(self) -> Iterator[str]:
        """Says what looks wrong."""
        if self.questions and self._swapped():
            yield "`question` holds what looks like answers, and `answers` what looks like questions: are they swapped?"
        if self.several > MOST * self.questions:
            yield (
                f"{self.several:,} of {self.questions:,} questions have one answer with commas, semicolons or bars"
                f" between its parts, such as {printable(self.example[:80])!r}. It is read as one answer. If they are"
                ' several, write them as a list (["red", "red", "blue"])'
            )
        different = sum(map(len, self.forms.values()))
        if different - len(self.forms) > MERGED * different:
            most = max(map(sorted, self.forms.values()), key=lambda written: (len(written), written))
            yield (
                f"{different:,} different answers are {len(self.forms):,} after VQA's normalisation, such as"
                f" {', '.join(map(repr, most[:4]))}: a closed set makes a class of each frequent one. Write each answer"
                " in one way"
            )
        if self.same > MOST * self.pairs:
            yield f"{self.same:,} of {self.pairs:,} pairs show one image twice, so that left and right are the same"

    def _swapped(self) -> bool:
        if self.asking > MOST * self.questions:
            return True
        few = self.question_words <= SHORT * self.questions < self.answer_words and len(self.texts) < len(self.forms)
        return few and self.answer_words > 2 * self.question_words
