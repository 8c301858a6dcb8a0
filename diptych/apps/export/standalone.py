"""Builds a tokenizer file that the `tokenizers` library runs alone: clean-up, word pieces, special tokens, lengths.

`Tokenizer.save` writes the vocabulary and leaves clean-up and lengths to the recipe. An exported model has no recipe,
so this file holds everything, and gives any text the same ids as `prepare_texts`.
"""

from __future__ import annotations

from tokenizers import Regex
from tokenizers import Tokenizer as Engine
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from diptych.data.tokenizer import CLS, PAD, SEP, UNK, Tokenizer
from diptych.data.wordpiece_trainer import CONTINUES


def standalone(tokenizer: Tokenizer, max_words: int, max_tokens: int, questions: bool = False) -> Engine:
    """Builds a tokenizer that cuts texts to `max_words` and `max_tokens`, and pads a batch to its longest text.

    `questions` selects the clean-up of questions instead of captions.
    """
    ids = {piece: number for number, piece in enumerate(tokenizer.vocabulary)}
    engine = Engine(WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100, continuing_subword_prefix=CONTINUES))
    clean = [*_question_clean_up(), *([] if questions else _caption_clean_up()), _cut(max_words)]
    engine.normalizer = Sequence([*clean, BertNormalizer(lowercase=tokenizer.lowercase)])
    engine.pre_tokenizer = BertPreTokenizer()
    template = [CLS, "$A", SEP] if tokenizer.separator else [CLS, "$A"]
    engine.post_processor = TemplateProcessing(
        single=template, special_tokens=[(CLS, tokenizer.cls_id), (SEP, tokenizer.sep_id)]
    )
    engine.enable_truncation(max_tokens)
    engine.enable_padding(pad_id=tokenizer.pad_id, pad_token=PAD)
    return engine


def _question_clean_up() -> list[Lowercase | Replace]:
    """Does what `clean_question` does, which `clean_caption` begins with, too."""
    return [Lowercase(), Replace(Regex(r"""[,.'!?"()*#:;~]"""), ""), Replace(Regex("[-/]"), " ")]


def _caption_clean_up() -> list[Replace | Strip]:
    """Does what `clean_caption` does beyond that."""
    return [Replace("<person>", "person"), Replace(Regex(r"\s{2,}"), " "), Strip()]


def _cut(words: int) -> Replace:
    r"""Cuts a text after so many words. `\K` keeps what the pattern matched before it."""
    return Replace(Regex(rf"\A(?:[^ ]* ){{{words - 1}}}[^ ]*\K (?m:.*)"), "")
