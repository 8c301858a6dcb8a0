"""The tokenizer as one file that the `tokenizers` library reads alone: clean-up, pieces, special tokens, length.

`Tokenizer.save` writes the vocabulary and leaves clean-up and lengths to the recipe. Whoever runs an exported model has
no recipe, so here all of it is in the file, and any text gets the ids that `prepare_texts` gives it.
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
    """Cuts texts to so many words and tokens, and pads a batch to its longest. `questions`: cleaned up as such."""
    ids = {piece: number for number, piece in enumerate(tokenizer.vocabulary)}
    engine = Engine(WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100, continuing_subword_prefix=CONTINUES))
    steps = [*_plain(), *([] if questions else _tidy()), _cut(max_words), BertNormalizer(lowercase=tokenizer.lowercase)]
    engine.normalizer = Sequence(steps)
    engine.pre_tokenizer = BertPreTokenizer()
    around = [CLS, "$A", SEP] if tokenizer.separator else [CLS, "$A"]
    engine.post_processor = TemplateProcessing(
        single=around, special_tokens=[(CLS, tokenizer.cls_id), (SEP, tokenizer.sep_id)]
    )
    engine.enable_truncation(max_tokens)
    engine.enable_padding(pad_id=tokenizer.pad_id, pad_token=PAD)
    return engine


def _plain() -> list[Lowercase | Replace]:
    """What `clean_caption` and `clean_question` share."""
    return [Lowercase(), Replace(Regex(r"""[,.'!?"()*#:;~]"""), ""), Replace(Regex("[-/]"), " ")]


def _tidy() -> list[Replace | Strip]:
    """What `clean_caption` does beyond that."""
    return [Replace("<person>", "person"), Replace(Regex(r"\s{2,}"), " "), Strip()]


def _cut(words: int) -> Replace:
    r"""To so many words; `\K` keeps what it matched before."""
    return Replace(Regex(rf"\A(?:[^ ]* ){{{words - 1}}}[^ ]*\K (?m:.*)"), "")
