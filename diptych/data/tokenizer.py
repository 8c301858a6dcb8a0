"""Tokenizes texts with BERT's WordPiece, from a vocabulary file or one learnt from captions. It imports no torch.

A text becomes [CLS], its word pieces, and [SEP] only if `separator` is set. The released ALBEF writes no [SEP] and
stock BERT writes one; a checkpoint that is used with the wrong policy silently loses accuracy
(docs/released_code.md, defect 11). A word piece is an entry of the vocabulary; one that continues a word starts with
"##".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from diptych.data.wordpiece_trainer import CONTINUES, count_words, learn_pieces
from diptych.places import allow
from diptych.reading import disguise, expand_home, parse_json, read_bounded

PAD, UNK, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens, in the order of their ids in a learnt vocabulary. A vocabulary file has its own ids."""
VOCABULARY_FILE = "vocab.txt"
POLICY_FILE = "tokenizer.json"
LARGEST_VOCABULARY = 1 << 24
"""Bytes of a vocabulary file. BERT's multilingual one has a million."""


class Tokenizer:
    """Turns texts into ids and back. Two tokenizers are equal if they give every text the same ids."""

    def __init__(self, vocabulary: Sequence[str], *, separator: bool = False, lowercase: bool = True) -> None:
        """`vocabulary` lists the word pieces by id.

        Raises ValueError if it lacks a special token or holds a word piece twice.
        """
        self.vocabulary = tuple(vocabulary)
        self.separator = separator
        self.lowercase = lowercase
        self._ids = {piece: number for number, piece in enumerate(self.vocabulary)}
        self._check()
        self._engine = _engine(self._ids, lowercase)

    # ------------------------------------------------------------------ creating, loading and saving

    @classmethod
    def from_vocabulary(cls, path: str | Path, separator: bool = False, lowercase: bool = True) -> Tokenizer:
        """Reads a file with one word piece per line, whose number is its id, or the vocab.txt of a folder."""
        allow({"tokenizer.vocabulary": path if isinstance(path, str) else None})
        path = expand_home(path)
        file = path / VOCABULARY_FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"no vocabulary at {file}: give a {VOCABULARY_FILE} or a folder that holds one")
        content = read_bounded(file, LARGEST_VOCABULARY)
        if kind := disguise(content):
            raise ValueError(f"{file} is no vocabulary: it is {kind}")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not a vocabulary: one piece a line, in UTF-8 ({error})") from None
        # Splits at line ends only: str.splitlines also splits at characters that vocabularies hold as word pieces.
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        try:
            return cls(lines, separator=separator, lowercase=lowercase)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def train(cls, texts: Iterable[str], size: int, separator: bool = False, lowercase: bool = True) -> Tokenizer:
        """Learns at most `size` word pieces from texts. The order of the texts makes no difference."""
        words = count_words(texts, lowercase)
        if not words:
            raise ValueError("cannot learn word pieces: the captions hold no words")
        return cls((*SPECIAL, *learn_pieces(words, size - len(SPECIAL))), separator=separator, lowercase=lowercase)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Loads the vocabulary and the [SEP] policy that `save` wrote."""
        policy_file = Path(folder) / POLICY_FILE
        try:
            policy = parse_json(read_bounded(policy_file))
            separator, lowercase = bool(policy["separator"]), bool(policy["lowercase"])
        except FileNotFoundError:
            raise ValueError(f"no tokenizer in {folder}: {POLICY_FILE} is missing") from None
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{policy_file} does not say `separator` and `lowercase`") from None
        return cls.from_vocabulary(folder, separator=separator, lowercase=lowercase)

    def save(self, folder: str | Path) -> None:
        """Writes vocab.txt and tokenizer.json (the [SEP] policy and letter case) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VOCABULARY_FILE).write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8", newline="\n")
        policy = {"kind": "wordpiece", "separator": self.separator, "lowercase": self.lowercase}
        (folder / POLICY_FILE).write_text(json.dumps(policy, indent=1) + "\n", encoding="utf-8")

    # ------------------------------------------------------------------ texts to ids and back

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Encodes each text as [CLS], its word pieces and, by policy, [SEP].

        Texts longer than `max_tokens` lose word pieces from their end.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, not one text")
        extra = 2 if self.separator else 1
        if max_tokens is not None and max_tokens < extra:
            raise ValueError(f"max_tokens is {max_tokens}, but the special tokens alone take {extra}")
        keep = None if max_tokens is None else max_tokens - extra
        end = [self.sep_id] if self.separator else []
        return [[self.cls_id, *ids[:keep], *end] for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1:  # for one text the engine's batch call costs more than it saves
            return [self._engine.encode(texts[0], add_special_tokens=False).ids]
        return [encoding.ids for encoding in self._engine.encode_batch(list(texts), add_special_tokens=False)]

    def pieces(self, text: str) -> list[str]:
        """Returns the word pieces of a text, without the special tokens that `encode` adds."""
        return [self.vocabulary[number] for number in self._encode([text])[0]]

    def token(self, number: int) -> str:
        """Returns the word piece with this id."""
        if not 0 <= number < len(self.vocabulary):
            raise ValueError(f"id {number} is outside the vocabulary of {len(self.vocabulary)} pieces")
        return self.vocabulary[number]

    def decode(self, ids: Iterable[int]) -> str:
        """Joins word pieces into readable words. Special tokens other than [UNK] and [MASK] are left out."""
        silent = {self.pad_id, self.cls_id, self.sep_id}
        words = " ".join(self.token(int(number)) for number in ids if int(number) not in silent)
        return words.replace(" " + CONTINUES, "")

    # ------------------------------------------------------------------ properties

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def unk_id(self) -> int:
        return self._ids[UNK]

    @property
    def cls_id(self) -> int:
        return self._ids[CLS]

    @property
    def sep_id(self) -> int:
        return self._ids[SEP]

    @property
    def mask_id(self) -> int:
        return self._ids[MASK]

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return frozenset(self._ids[piece] for piece in SPECIAL)

    @property
    def continuing_ids(self) -> tuple[int, ...]:
        """The ids of the word pieces that continue a word."""
        return tuple(number for number, piece in enumerate(self.vocabulary) if piece.startswith(CONTINUES))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} pieces, separator={self.separator}, lowercase={self.lowercase})"

    @property
    def _identity(self) -> tuple[tuple[str, ...], bool, bool]:
        return self.vocabulary, self.separator, self.lowercase

    def _check(self) -> None:
        missing = [piece for piece in SPECIAL if piece not in self._ids]
        if missing:
            raise ValueError(
                f"the vocabulary lacks {', '.join(missing)}:"
                " a BERT vocabulary lists one piece a line, the special ones included"
            )
        if len(self._ids) != len(self.vocabulary):
            number, piece = next((n, p) for n, p in enumerate(self.vocabulary) if self._ids[p] != n)
            raise ValueError(f"the vocabulary holds {piece!r} twice, in lines {number + 1} and {self._ids[piece] + 1}")


def _engine(ids: dict[str, int], lowercase: bool) -> Engine:
    """Builds a WordPiece engine: BERT's clean-up of control characters, accents and Chinese, then longest match."""
    engine = Engine(WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100, continuing_subword_prefix=CONTINUES))
    engine.normalizer = BertNormalizer(lowercase=lowercase)  # strips accents if and only if it lowers
    engine.pre_tokenizer = BertPreTokenizer()
    # A literal "[SEP]" in a text, in capitals only, is the special token. The released VQA code ends answers with it.
    engine.add_special_tokens([AddedToken(piece, normalized=False) for piece in SPECIAL])
    return engine
