"""Groups the members of a tar shard into samples by their names, and tells which of two rules a shard follows.

WebDataset takes the name up to its first dot: `17.left.jpg`, `17.right.jpg` and `17.json` are one sample. img2dataset
takes it up to its last dot: `a.v1.png` and `a.v1.txt` are a sample, and `a.v2.png` belongs to another one. Names with
one dot mean the same under both rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from diptych.data.picture_kinds import is_picture
from diptych.schema import MemberNames, SampleNames

TEXT_SUFFIXES = (".txt", ".json", ".caption")


def key_of(member: str, naming: MemberNames = "first_dot") -> str:
    """Returns the name of the sample that a member belongs to.

    >>> key_of("00000/000000017.left.jpg"), key_of("00000/000000017.left.jpg", "last_dot")
    ('00000/000000017', '00000/000000017.left')
    """
    folder, slash, name = member.rpartition("/")
    return folder + slash + (name.partition(".")[0] if naming == "first_dot" else PurePosixPath(name).stem)


def choose_naming(members: Iterable[str], wanted: SampleNames, usual: MemberNames) -> tuple[MemberNames, str]:
    """Returns the rule by which a shard's members form samples, and a note if the other rule would form other samples.

    Unless one is wanted, it is the rule that leaves more samples whole. If both leave as many, it is the usual one.
    """
    names = list(members)
    counts = {naming: _whole(names, naming) for naming in ("first_dot", "last_dot")}
    other: MemberNames = "last_dot" if usual == "first_dot" else "first_dot"
    chosen = wanted if wanted != "auto" else other if counts[other] > counts[usual] else usual
    if all(key_of(name) == key_of(name, "last_dot") for name in names):
        return chosen, ""
    rejected: MemberNames = "last_dot" if chosen == "first_dot" else "first_dot"
    return chosen, (
        f"members belong together whose names agree up to the {_words(chosen)}, which gives {counts[chosen]} whole"
        f" samples; up to the {_words(rejected)} there would be {counts[rejected]} (data.sample_names)"
    )


def _words(naming: MemberNames) -> str:
    return naming.replace("_", " ")


def _whole(names: list[str], naming: MemberNames) -> int:
    """Counts the samples that have a picture and one text, or, in a shard without texts, one picture."""
    pictures: defaultdict[str, int] = defaultdict(int)
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        key, suffix = key_of(name, naming), PurePosixPath(name).suffix.lower()
        if is_picture(name):
            pictures[key] += 1
        elif suffix in TEXT_SUFFIXES:
            texts[key].append(suffix)
    if not texts:
        return sum(count == 1 for count in pictures.values())
    return sum(0 < len(texts[key]) == len(set(texts[key])) for key in list(pictures))
