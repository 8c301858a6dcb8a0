"""The recipe tree: frozen, typed values that describe a whole run.

This module imports neither torch nor anything else of the package, so `--help`, overrides and the inspection of
checkpoints cost nothing. Numbers are those of the papers unless a docstring says otherwise. Sections and equations are
ALBEF's (arXiv 2107.07651), VLMo's (2111.02358) or BEiT's (2106.08254); "released" means the published code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal


def _expand_home(config: Any, *names: str) -> None:
    """Replaces `~` by the home folder in fields that name a place, or several with commas between them.

    No shell does so behind `data.path=`, and none sees a recipe that is written in Python.
    """
    for name in names:
        value = getattr(config, name)
        if value and "~" in value:
            parts = (part.strip() if part.strip().startswith("~") else part for part in value.split(","))
            object.__setattr__(config, name, ",".join(map(os.path.expanduser, parts)))


# --------------------------------------------------------------------------- models


Stem = Literal["patch", "conv"]
"""How patches are embedded. `patch` is one strided projection, as published. `conv` is a small stack of 3×3
convolutions, which learns much sooner from random weights (docs/decisions.md 11)."""
Activation = Literal["gelu", "quick_gelu", "tanh_gelu"]
"""The function between the layers of an MLP: GELU (ViT, BERT), x · σ(1.702 x) as CLIP computes it, or GELU with tanh
(SigLIP)."""
Pooling = Literal["class", "attention"]
"""What stands for a whole image: a `class` token that passes all blocks, or a token that an `attention` layer behind
them gathers from the patches (SigLIP)."""
NormPlace = Literal["post", "pre"]
"""Where a transformer layer has its norms: behind each sublayer as in BERT (`post`), or before it (`pre`), which trains
from random weights (docs/decisions.md 11)."""


@dataclass(frozen=True)
class VisionConfig:
    """Describes a pre-norm vision transformer; the default is ViT-B/16 (ALBEF §3.1)."""

    image_size: int = 256
    """Side of the square input in pixels, a multiple of `patch_size`. ALBEF: 256 in pre-training, 384 downstream."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads of a block; they divide `width`."""
    mlp_ratio: float = 4.0
    """Width of the MLP divided by `width`."""
    norm_eps: float = 1e-6
    """Added to the variance in every layer norm. ViT: 1e-6."""
    drop_path: float = 0.0
    """Probability (0..1) that the last block drops a residual branch; it rises linearly from 0 at the first block."""
    stem: Stem = "patch"
    """How patches are embedded: `patch` as published, or `conv` for training from random weights."""
    activation: Activation = "gelu"
    """The function between the layers of the MLPs. CLIP: `quick_gelu`; SigLIP: `tanh_gelu`."""
    layer_scale: bool = False
    """Whether learnt factors scale what each sublayer adds, as in DINOv2."""
    input_norm: bool = False
    """Whether a norm stands before the first block, as in CLIP."""
    patch_bias: bool = True
    """Whether the projection of patches has a bias. CLIP: not."""
    pooling: Pooling = "class"
    """What stands for the whole image: a `class` token, or a token gathered by `attention` behind the blocks, as in
    SigLIP."""


@dataclass(frozen=True)
class TextConfig:
    """Describes a BERT whose last layers also attend to the image; the default is BERT-base, 6 + 6 (ALBEF §3.1)."""

    vocab_size: int = 30522
    """Number of word pieces. A run takes it from its tokenizer."""
    width: int = 768
    """Channels of a token."""
    layers: int = 12
    """Number of text-only and fusion layers together. A fusion layer counts once, also with two images per text."""
    fusion_start: int = 6
    """Index of the first layer with cross-attention; the layers below it see text only."""
    heads: int = 12
    """Attention heads of a layer; they divide `width`."""
    intermediate: int = 3072
    """Width of the feed-forward layers."""
    max_positions: int = 512
    """Length of the position table: the longest text in tokens."""
    pad_id: int = 0
    """Id of [PAD], whose embedding gets no gradient, as in BERT. A run takes it from its tokenizer."""
    norm_eps: float = 1e-12
    """Added to the variance in every layer norm. BERT: 1e-12."""
    norm: NormPlace = "post"
    """Where the norms stand: `post` as published, or `pre` for training from random weights."""
    dropout: float = 0.1
    """Dropout rate of the embeddings and of each sublayer's output. BERT: 0.1."""
    attention_dropout: float = 0.0
    """Dropout rate of attention probabilities. BERT has 0.1; above 0 the fused CPU kernel cannot be used."""


@dataclass(frozen=True)
class AlbefConfig:
    """Describes ALBEF's network: an image encoder, a text encoder and a multimodal encoder (ALBEF §3.1)."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256
    """Width of the vectors that ITC compares (ALBEF §3.2)."""
    temperature: float = 0.07
    """Initial value of the learnt temperature (ALBEF §3.2)."""
    images_per_text: int = 1
    """Number of images that a text is fused with at once; NLVR2 has 2. Each fusion layer is then repeated for each
    image, with shared projections to keys and values (ALBEF §5)."""

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    @property
    def width(self) -> int:
        """Returns the width of the image encoder."""
        return self.vision.width

    @property
    def max_positions(self) -> int:
        """Returns the longest text in tokens."""
        return self.text.max_positions

    def with_words(self, vocab_size: int, pad_id: int) -> AlbefConfig:
        """Returns the config for a tokenizer with this many word pieces and this id of [PAD]."""
        return replace(self, text=replace(self.text, vocab_size=vocab_size, pad_id=pad_id))


@dataclass(frozen=True)
class VlmoConfig:
    """Describes VLMo's network: one pre-norm transformer with MoME feed-forward layers; the default is `base`.

    Every block has one self-attention and a V-FFN and L-FFN, or a VL-FFN in the upper blocks (VLMo §3.1, §3.2).
    """

    image_size: int = 224
    """Side of the square input in pixels, a multiple of `patch_size`. VLMo: 224 in pre-training."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads of a block; they divide `width`."""
    mlp_ratio: float = 4.0
    """Width of a feed-forward layer divided by `width`."""
    fusion_start: int = 10
    """Index of the first block with a VL-FFN; `depth` for none. VLMo: the top 2 of 12, or 3 of 24 (§4.1)."""
    experts: Literal["modality", "one"] = "modality"
    """Whether each modality has its own feed-forward layer (MoME), or all share `one` as in a standard transformer
    (VLMo, Tables 4 to 6)."""
    attention: Literal["shared", "separate"] = "shared"
    """Whether text and image tokens share the attention matrices or have `separate` ones. In both cases they attend to
    each other (VLMo, Tables 4 to 6)."""
    positions: Literal["relative", "absolute"] = "relative"
    """How positions are encoded: by a learnt bias on every attention score as in base and large, or by position
    embeddings as in base_plus."""
    layer_scale: float | None = 0.1
    """Initial value of the learnt factors on both residual branches; none leaves the factors out, as base_plus does."""
    max_positions: int = 196
    """Longest text in tokens, [CLS] and [SEP] included. VLMo: 196 in the language stage."""
    vocab_size: int = 30522
    """Number of word pieces. A run takes it from its tokenizer."""
    pad_id: int = 0
    """Id of [PAD], whose embedding gets no gradient. A run takes it from its tokenizer."""
    norm_eps: float = 1e-6
    """Added to the variance in the layer norms of the blocks."""
    text_norm_eps: float = 1e-12
    """Added to the variance in the layer norms of the text embeddings and of the MLM head."""
    temperature: float = 0.07
    """Initial value of both learnt temperatures (VLMo §3.3)."""
    drop_path: float = 0.1
    """Probability (0..1) that the last block drops a residual branch; it rises linearly from 0 at the first block."""
    dropout: float = 0.1
    """Dropout rate of the text embeddings. The released code uses the value of `drop_path`."""
    images_per_text: int = 1
    """Number of images that a text is fused with, one after the other; NLVR2 has 2. Each has its own token type."""
    stem: Stem = "patch"
    """How patches are embedded: `patch` as published, or `conv` for training from random weights."""
    text_norm: bool = True
    """Whether the text embeddings are normalised, as published. Without the norm [CLS] starts small, which learns
    sooner from random weights (docs/decisions.md 11)."""

    @property
    def has_fusion_experts(self) -> bool:
        """Returns whether the upper blocks have a VL-FFN."""
        return self.experts == "modality" and self.fusion_start < self.depth

    def with_words(self, vocab_size: int, pad_id: int) -> VlmoConfig:
        """Returns the config for a tokenizer with this many word pieces and this id of [PAD]."""
        return replace(self, vocab_size=vocab_size, pad_id=pad_id)


@dataclass(frozen=True)
class VisualTokenizerConfig:
    """Describes a discrete VAE, which turns an image into a grid of codes: the targets of BEiT's MIM (BEiT §2.1)."""

    image_size: int = 112
    """Side of the square input in pixels, a multiple of `patch_size`. BEiT tokenizes at 112 pixels what its encoder
    sees at 224, so a code of 8 pixels corresponds to a patch of 16."""
    patch_size: int = 8
    """Side in pixels of the square that one code represents; a power of two."""
    codes: int = 8192
    """Number of codes in the codebook (BEiT §2.1)."""
    code_width: int = 256
    """Channels of a code's vector."""
    width: int = 256
    """Channels of the convolutions."""
    residual_blocks: int = 2
    """Number of residual blocks in the encoder, and as many in the decoder."""

    @property
    def max_positions(self) -> None:
        """Returns None, because it reads no text."""
        return None

    def with_words(self, vocab_size: int, pad_id: int) -> VisualTokenizerConfig:
        """Returns itself, because it reads no text."""
        return self


ModelConfig = AlbefConfig | VlmoConfig | VisualTokenizerConfig
"""The networks that a recipe can build. In JSON each but the first names its `kind`."""


@dataclass(frozen=True)
class SpecialIds:
    """Holds the ids of a tokenizer's special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    continuing: tuple[int, ...] = ()
    """Ids of the pieces that continue a word; BERT's begin with `##`. Whole-word masking needs them."""


# --------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Contrast:
    """How a task contrasts pictures with texts (ITC), and where the hard negatives of ITM come from."""

    queue_size: int = 0
    keys: Literal["momentum", "batch"] = "batch"
    """Whether the candidates are features of a momentum encoder or of the model itself."""
    branches: int = 1
    """Pairs of embeddings that are contrasted (VLMo: the dual encoder's and those of the vision-language experts)."""
    negatives: Literal["all", "own"] = "own"
    """Whether hard negatives come from the batches of all processes or from each process's own batch."""
    fuses: bool = True
    """Whether ITM trains, so that pairs are fused at all."""
    temperature_bounds: tuple[float, float] | None = None
    """Where the learnt temperature is clamped; None where it is not."""
    masks_false_negatives: bool = False
    """Whether other captions of the same picture are no negatives, unless `Released` keeps them. False where they count
    as positives."""
    ignores_true_texts: bool = False
    """Whether texts that are known to be true of an image are no negatives of it (`ignore_true_texts` of the task)."""
    offers_true_texts: bool = False
    """Whether the task has the field `ignore_true_texts`."""
    phrases: bool = False
    """Whether images are contrasted with single phrases, too."""


@dataclass(frozen=True)
class Guess:
    """A term of the loss that a model without any knowledge brings to the logarithm of a known number."""

    term: str
    """As in `losses.…` of the log."""
    among: int | Literal["words", "candidates", "one match in three"]
    """The number of equally likely choices, or what determines it."""
    words: str = ""
    """Says where the number comes from, if `among` is a number."""
    since: int = 0
    """Optimiser steps before which the term does not train."""


class TaskFacts:
    """Facts that every configuration of a task states and that need no torch: `diptych doctor` reads them.

    Whatever else is known of a task, its class in `diptych/tasks` states (`diptych.task.Task`).
    """

    learns_from: ClassVar[Literal["pairs", "pictures", "texts"]] = "pairs"
    """What a record of the training data holds; a statement about two pictures counts as a pair."""
    starts_from: ClassVar[Literal["nothing", "encoders", "vision stage", "language stage", "pre-training"]] = (
        "pre-training"
    )
    """The weights from which the published training starts."""
    learns_temperature: ClassVar[bool] = True
    """False where the logged temperature follows a schedule."""
    takes_released: ClassVar[bool] = True
    """Whether the class of the task is built with `Released` as its fourth argument."""

    @property
    def contrast(self) -> Contrast | None:
        """How the task contrasts pictures with texts; None if it does not."""
        return None

    @property
    def needs_claims(self) -> bool:
        """Whether training batches must say which texts are known to be true of which images."""
        return self.contrast is not None and (self.contrast.ignores_true_texts or self.contrast.phrases)

    @property
    def needs_phrases(self) -> bool:
        """Whether training batches must hold a phrase of each caption."""
        return self.contrast is not None and self.contrast.phrases

    @property
    def guesses(self) -> tuple[Guess, ...]:
        """The terms of the loss whose value for a model that only guesses is known."""
        return ()


HeadKind = Literal["relu", "gelu"]
"""A classifier of two layers on the fused [CLS]: ALBEF's with ReLU, or VLMo's, which is wider and has a layer norm and
GELU."""


@dataclass(frozen=True)
class PretrainConfig(TaskFacts):
    """Configures what the pre-training of ALBEF and that of VLMo have in common: ITC + ITM + MLM on pairs."""

    itc: float = 1.0
    """Weight of image-text contrast in the loss; 0 leaves the term out."""
    itm: float = 1.0
    """Weight of image-text matching in the loss; 0 leaves the term out."""
    mlm: float = 1.0
    """Weight of masked language modelling in the loss; 0 leaves the term out."""
    temperature_bounds: tuple[float, float] = (0.001, 0.5)
    """Smallest and largest value of the learnt temperatures, as in ALBEF's released code."""
    fuse_start: int = 0
    """Optimiser steps during which only ITC trains. The papers: 0. From random weights, ITM and MLM from the first step
    delay ITC (docs/decisions.md 12)."""
    fused_share: float = 1.0
    """Share of a batch's pairs that ITM and MLM train on, 0..1, evenly spaced from a random pair on. Their negatives
    come from the whole batch. The papers: 1. From random weights, many steps with few fused pairs teach more than few
    steps with many (docs/decisions.md 132)."""
    mask_probability: float = 0.15
    """Share of the tokens that MLM masks (ALBEF §3.2, VLMo §3.3)."""
    hard_negatives: bool = True
    """Whether ITM draws negatives by their contrastive similarity (ALBEF §3.2, VLMo §3.3), or uniformly."""
    negatives: Literal["all", "own"] = "all"
    """Whether ITM draws negatives from the gathered batches of `all` processes, so that the number of processes changes
    nothing, or from each process's `own` batch, which sends less (ALBEF's released code; VLMo Table 5)."""
    ignore_true_texts: bool = False
    """Whether a text that is known to be true of another pair's image is no negative of that image, in ITC (ALBEF's
    queue included) and in ITM: an equal text, or one whose phrases are all true of it (docs/data.md, short
    captions)."""
    phrases: float = 0.0
    """Weight of a further contrast of each image, with one phrase of its caption such as "a fox" (docs/data.md, short
    captions); 0 leaves it out. Our own addition: the demos align twice as fast with it (docs/decisions.md 139)."""
    match_phrases: bool = False
    """Whether ITM, too, learns from these phrases, each with its image and with a hard one, at the weight of `phrases`
    (docs/decisions.md 141)."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        fused = Guess("itm", "one match in three", since=self.fuse_start), Guess("mlm", "words", since=self.fuse_start)
        return tuple(guess for guess in (Guess("itc", "candidates"), *fused) if getattr(self, guess.term))


@dataclass(frozen=True)
class AlbefPretrainConfig(PretrainConfig):
    """Configures ALBEF's pre-training: ITC + ITM + MLM with a momentum encoder (ALBEF §3.2, §3.3)."""

    starts_from = "encoders"

    queue_size: int = 65536
    """Number of pairs whose momentum features wait as further candidates of ITC (ALBEF §3.2)."""
    momentum: float = 0.995
    """Share of the momentum encoder's weights that a step keeps (ALBEF §3.3)."""
    alpha_itc: float = 0.4
    """Weight of the pseudo-targets in ITC, 0..1 (ALBEF Eq. 6; MoD on ITC in Table 1)."""
    alpha_mlm: float = 0.4
    """Weight of the pseudo-targets in MLM, 0..1 (ALBEF Eq. 7; MoD on MLM in Table 1)."""
    alpha_ramp: float = 1.0
    """Epochs in which both weights of pseudo-targets rise linearly to their value. ALBEF: 1 (§3.5)."""
    momentum_start: int = 0
    """Optimiser steps during which the momentum encoder is updated but not used: ITC's keys are the trained model's own
    features, nothing is queued and alpha is 0. ALBEF: 0, because its encoders were pre-trained. From random weights,
    lagging keys double the time until ITC learns anything (docs/decisions.md 12)."""

    @property
    def contrast(self) -> Contrast:
        return Contrast(
            self.queue_size, "momentum", negatives=self.negatives, fuses=bool(self.itm),
            temperature_bounds=self.temperature_bounds, masks_false_negatives=True,
            ignores_true_texts=self.ignore_true_texts, offers_true_texts=True, phrases=bool(self.phrases),
        )  # fmt: skip


@dataclass(frozen=True)
class VisualTokenizerTrainingConfig(TaskFacts):
    """Configures the training of a visual tokenizer: to reconstruct images from their codes (BEiT §2.1)."""

    learns_from = "pictures"
    starts_from = "nothing"
    learns_temperature = False

    temperature: tuple[float, float] = (1.0, 0.0625)
    """Temperature of the Gumbel-softmax at the first step, and from the end of `anneal_steps` on."""
    anneal_steps: int = 1000
    """Optimiser steps in which that temperature falls."""
    kl: float = 0.0
    """Weight of the KL divergence between the codes' mean use in a batch and a uniform distribution."""


@dataclass(frozen=True)
class VisionStageConfig(TaskFacts):
    """Configures VLMo's first stage: masked image modelling on images alone (VLMo §3.4; BEiT §2.3)."""

    learns_from = "pictures"
    starts_from = "nothing"

    tokenizer: str = ""
    """Run or checkpoint of the visual tokenizer whose codes are predicted."""
    mask_share: float = 0.4
    """Share of the patches that are masked (BEiT §2.3)."""
    min_block: int = 16
    """Smallest masked block in patches (BEiT, Algorithm 1)."""
    min_aspect: float = 0.3
    """Smallest ratio of a block's height to its width; the largest is its inverse (BEiT, Algorithm 1)."""
    visual: VisualTokenizerConfig = field(default_factory=VisualTokenizerConfig)
    """Sizes of that tokenizer. They are read from `tokenizer` when training begins, whatever is set here."""

    def __post_init__(self) -> None:
        _expand_home(self, "tokenizer")

    @property
    def guesses(self) -> tuple[Guess, ...]:
        codes = self.visual.codes
        return (Guess("masked_image", codes, f"log {codes}, the number of codes of the visual tokenizer"),)


@dataclass(frozen=True)
class LanguageStageConfig(TaskFacts):
    """Configures VLMo's second stage: masked language modelling on texts alone (VLMo §3.4)."""

    learns_from = "texts"
    starts_from = "vision stage"

    mask_probability: float = 0.15
    """Share of a text's tokens that are masked (VLMo §3.3)."""
    whole_words: bool = True
    """Whether all pieces of a word are masked together (VLMo §3.3), or each token by itself."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("mlm", "words"),)


@dataclass(frozen=True)
class VlmoPretrainConfig(PretrainConfig):
    """Configures VLMo's third stage: ITC + ITM + MLM on image-text pairs (VLMo §3.3)."""

    starts_from = "language stage"

    mlm: float = 0.25
    """Weight of masked language modelling in the loss; 0 leaves the term out. The released code has 0.25 whatever its
    configuration says (docs/released_code.md, defect 16)."""
    itc_branches: Literal["both", "main", "vl"] = "both"
    """Features that ITC compares: the dual encoder's (`main`), those that also pass the VL-FFNs (`vl`), or the mean of
    both losses as in the released code. Hard negatives are drawn by `main` wherever it is computed."""
    whole_words: bool = True
    """Whether all pieces of a word are masked together (VLMo §3.3), or each token by itself."""
    fusion_experts: Literal["fresh", "vision", "language"] = "fresh"
    """Initial weights of the VL-FFNs if the previous stage had none: random as in the released code, or a copy of each
    block's V-FFN (`vision`) or L-FFN (`language`)."""

    @property
    def contrast(self) -> Contrast:
        return Contrast(
            branches=2 if self.itc_branches == "both" else 1, negatives=self.negatives, fuses=bool(self.itm),
            temperature_bounds=self.temperature_bounds, masks_false_negatives=True,
            ignores_true_texts=self.ignore_true_texts, offers_true_texts=True, phrases=bool(self.phrases),
        )  # fmt: skip


@dataclass(frozen=True)
class RetrievalConfig(TaskFacts):
    """Configures fine-tuning for retrieval: ITC + ITM, where every caption of an image is a positive (ALBEF §5)."""

    queue_size: int = 65536
    """Number of pairs whose momentum features wait as further candidates of ITC."""
    momentum: float = 0.995
    """Share of the momentum encoder's weights that a step keeps (ALBEF §3.3)."""
    alpha: float = 0.4
    """Weight of the pseudo-targets in ITC, 0..1 (MoD downstream in ALBEF Table 1). ITC's keys are the momentum
    encoder's features in any case."""
    alpha_ramp: float = 1.0
    """Epochs in which alpha rises linearly to its value. The released code: 1."""
    keys: Literal["momentum", "batch"] = "momentum"
    """Candidates of ITC: the `momentum` encoder's features of the batch and of `queue_size` earlier pairs (ALBEF), or
    the model's own features of the `batch` of all processes (VLMo §3.5), which needs `queue_size` 0 and `alpha` 0."""
    itc: float = 1.0
    """Weight of image-text contrast in the loss; 0 leaves the term out."""
    itm: float = 1.0
    """Weight of image-text matching in the loss; 0 trains a dual encoder alone, without fusion (VLMo §3.5)."""

    @property
    def contrast(self) -> Contrast:
        return Contrast(self.queue_size, self.keys, fuses=bool(self.itm))

    @property
    def guesses(self) -> tuple[Guess, ...]:
        terms = Guess("itc", "candidates"), Guess("itm", "one match in three")
        return tuple(guess for guess in terms if getattr(self, guess.term))


@dataclass(frozen=True)
class EntailmentConfig(TaskFacts):
    """Configures visual entailment: contradiction, neutral or entailment (ALBEF §5)."""

    momentum: float = 0.995
    """Share of the momentum encoder's weights that a step keeps. The released code always has 0.995 downstream."""
    alpha: float = 0.4
    """Weight of the pseudo-targets, 0..1 (MoD downstream in ALBEF Table 1); 0 trains without a momentum encoder."""
    alpha_ramp: float = 0.0
    """Epochs in which alpha rises linearly to its value. The released configuration: 0, the full value at once."""
    head: HeadKind = "relu"
    """The classifier on the fused [CLS]: ALBEF's `relu` or VLMo's `gelu`."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("entailment", 3, "log 3, the number of classes"),)


@dataclass(frozen=True)
class Nlvr2Config(TaskFacts):
    """Configures NLVR2: is a statement true of two images? (ALBEF §5). The model needs `images_per_text` 2."""

    momentum: float = 0.995
    """Share of the momentum encoder's weights that a step keeps. The released code always has 0.995 downstream."""
    alpha: float = 0.4
    """Weight of the pseudo-targets, 0..1 (MoD downstream in ALBEF Table 1); 0 trains without a momentum encoder."""
    alpha_ramp: float = 1.0
    """Epochs in which alpha rises linearly to its value. The released code: 1."""
    head: HeadKind = "relu"
    """The classifier on both fused [CLS]: ALBEF's `relu` or VLMo's `gelu`."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("nlvr2", 2, "log 2, for true and false"),)


@dataclass(frozen=True)
class TextAssignmentConfig(TaskFacts):
    """Configures text assignment, the pre-training for NLVR2: does a text belong to the first image, the second image
    or neither? (ALBEF §5)."""

    temperature: float = 0.07
    """Temperature of the similarities by which the other images of a text are drawn. The released code: 0.07, fixed."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("text_assignment", 3, "log 3, for the first picture, the second, and neither"),)


@dataclass(frozen=True)
class GroundingConfig:
    """Configures how a phrase is located in an image: by Grad-CAM, then a box (ALBEF §5, §6.4)."""

    mode: Literal["itm", "itc"] = "itm"
    """What Grad-CAM reads: in `itm` the cross-attention of a fusion layer, by the match logit; in `itc` the
    self-attention of [CLS] in a block of the image encoder, by the similarity of image and phrase."""
    layer: int | Literal["all"] = 8
    """Index of the layer whose attention is read. In `itm` it counts the whole text stack, where ALBEF reads 8, its
    third fusion layer. In `itc` it counts the image encoder's blocks, where ALBEF reads the last. `all` adds up the
    maps of all fusion layers or blocks, which points better in small models (docs/decisions.md 140)."""
    alpha: float = 0.5
    """Power of a proposal's area that its heat is divided by (ALBEF §6.4: 0.5)."""
    threshold: float = 0.5
    """Share of the map's peak that a pixel needs to belong to the object when there are no proposals. Our own
    choice."""


@dataclass(frozen=True)
class GroundingTrainingConfig(RetrievalConfig):
    """Configures weakly supervised grounding: trained as retrieval on phrases, without boxes (ALBEF §6.4)."""

    boxes: GroundingConfig = field(default_factory=GroundingConfig)
    """How the trained model finds boxes."""


@dataclass(frozen=True)
class DecoderConfig:
    """Describes the answer decoder: a causal BERT that cross-attends to a question's fused tokens (ALBEF §5).

    Its width is that of the fused tokens.
    """

    layers: int = 6
    """Number of layers. ALBEF: as many as its multimodal encoder has, from which the decoder starts."""
    heads: int = 12
    """Attention heads of a layer; they divide the width."""
    intermediate: int = 3072
    """Width of the feed-forward layers."""
    max_positions: int = 512
    """Length of the position table: the longest answer in tokens."""
    norm_eps: float = 1e-12
    """Added to the variance in every layer norm."""
    norm: NormPlace = "post"
    """Where the norms stand, as in `TextConfig`."""
    dropout: float = 0.1
    """Dropout rate of the embeddings and of each sublayer's output."""
    attention_dropout: float = 0.0
    """Dropout rate of attention probabilities."""


@dataclass(frozen=True)
class VqaDecoderConfig(TaskFacts):
    """Configures VQA with an answer decoder, which ranks a list of answers or generates one (ALBEF §5)."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    alpha: float = 0.4
    """Weight of the pseudo-targets, 0..1 (MoD downstream in ALBEF Table 1); 0 trains without a momentum encoder."""
    alpha_ramp: float = 1.0
    """Epochs in which alpha rises linearly to its value. The released code: 1."""
    momentum: float = 0.995
    """Share of the momentum encoder's weights that a step keeps. The released code always has 0.995 downstream."""
    answers: tuple[str, ...] = ()
    """Answers to rank; `@FILE` reads them from JSON, as ALBEF's list is published. If empty, they are the
    `answer_count` most frequent answers of the training data."""
    answer_count: int = 3192
    """Length of the list. ALBEF: 3,192 (§5)."""
    inference: Literal["rank", "generate"] = "rank"
    """How a question is answered: `rank` chooses from the list as published, `generate` writes freely."""
    candidates: int = 128
    """Answers of the list that are scored whole, chosen by their first token. The released code: 128."""
    score: Literal["likelihood", "mean"] = "likelihood"
    """Score of an answer: log P(answer), or its `mean` over the answer's tokens and [SEP], which favours long ones.
    With `released.count_first_answer_token_twice` it is the released code's sum instead."""
    beams: int = 4
    """Width of the beam search in `generate`; 1 is greedy. The released code only ranks."""
    max_answer_tokens: int = 10
    """Longest generated answer in tokens, [SEP] included."""


@dataclass(frozen=True)
class VqaClosedSetConfig(TaskFacts):
    """Configures VQA as multi-label classification over the frequent answers of the training data (VLMo §4)."""

    answers: tuple[str, ...] = ()
    """The answers in the order of the classes. If empty, they are the `answer_count` most frequent answers of the
    training data."""
    answer_count: int = 3129
    """Number of classes. VQA v2's usual number is 3,129 (VLMo §4)."""
    alpha: float = 0.0
    """Weight of the pseudo-targets, 0..1; 0 trains without a momentum encoder, as VLMo does."""
    alpha_ramp: float = 1.0
    """Epochs in which alpha rises linearly to its value."""
    momentum: float = 0.995
    """Share of the momentum encoder's weights that a step keeps."""
    head: HeadKind = "gelu"
    """The classifier on the fused [CLS]: ALBEF's `relu` or VLMo's `gelu`."""


# --------------------------------------------------------------------------- the released code's defects


DecayRule = Literal["repaired", "albef", "vlmo"]


@dataclass(frozen=True)
class Released:
    """Chooses which defects of the released code a run reproduces; by default none.

    `released=all` sets every defect that the released code of the recipe's model has. A field that does not concern a
    recipe's model or task changes nothing. docs/released_code.md describes the defects by their numbers.
    """

    negatives_mask_after_softmax: bool = False
    """Defect 1. Positives leave ITM's sampling weights after the softmax, not before it. The odds of the negatives are
    the same until all of them underflow, and then no negative can be drawn. Test: tests/contracts/test_defects.py."""
    keep_false_negatives: bool = False
    """Defect 2. Other captions of the same image count as negatives of ITC and ITM, and text assignment may show the
    same image as another one. The model learns that true captions are false. Test:
    tests/contracts/test_defects.py."""
    momentum_encoder_dropout: bool = False
    """Defect 3. The momentum encoder runs with dropout, so its pseudo-targets are noisy.
    Test: tests/contracts/test_defects.py."""
    mask_special_tokens: bool = False
    """Defect 13. ALBEF's MLM may mask [SEP], [UNK] and [MASK], not only words. Test:
    tests/contracts/test_defects.py."""
    masking_of_padding: bool = False
    """Defect 18. VLMo masks 15 % of the padded length, where padding counts as words that are drawn in vain. Some short
    texts then have no masked word. Test: tests/parity/vlmo/test_masking.py."""
    gather_without_gradient: bool = False
    """Defect 15. Features that VLMo gathers from other processes carry no gradient, so the contrastive gradient is
    divided by the number of processes, and MLM's mean is over each process's own masked words.
    Test: tests/parity/vlmo/test_two_ranks.py."""
    unbounded_temperature: bool = False
    """Defect 16. VLMo's learnt temperatures move freely, beyond `task.temperature_bounds`.
    Test: tests/properties/test_vlmo_pretraining.py."""
    keep_padding: bool = False
    """Defect 16. Padded text tokens are computed too. It costs time and changes no other token, so that it serves
    parity tests only. Test: tests/parity/test_pretrain.py."""
    decay: DecayRule = "repaired"
    """Defect 19. The rule that chooses which parameters decay. `repaired` decays the weights of linear and convolution
    layers only. `albef` decays all but one-dimensional parameters and biases, so temperature, class token, positions
    and embeddings shrink too. `vlmo` decays all but biases, relative positions and those norms whose names the released
    patterns match, so the norms of experts and heads shrink. Test: tests/contracts/test_optim.py,
    tests/parity/vlmo/test_optim.py."""
    adam_decays_after_update: bool = False
    """Defect 20. VLMo's AdamW decays the updated weight, and adds `optim.eps` to the root before its bias correction,
    which damps the first steps. Test: tests/contracts/test_optim.py, tests/parity/vlmo/test_trace.py."""
    schedule_by_epoch: bool = False
    """Defect 8. ALBEF's cosine (`schedule.kind=cosine`) changes once an epoch. Its warm-up rises every 100 iterations,
    `schedule.warmup_steps` in all, and ends with the first epoch. Test: tests/parity/test_schedule.py."""
    count_first_answer_token_twice: bool = False
    """Defect 9. The score that ranks an answer counts its first token twice, which favours answers with a likely first
    token. Test: tests/properties/test_vqa.py."""
    heat_map_averages_padding: bool = False
    """Defect 21. A phrase's heat map is the mean over the padded length, so longer phrases in the batch make it paler.
    Test: tests/properties/test_grounding.py."""
    iou_in_whole_pixels: bool = False
    """Defect 22. Boxes that overlap by one pixel or less in width or height count as apart.
    Test: tests/parity/test_grounding_eval.py."""
    flip_directional_texts: bool = False
    """Defect 12. Images are flipped under texts that say left or right too, which makes such texts false half of the
    time. Test: tests/properties/test_data_transforms.py."""
    autocontrast_overflow: bool = False
    """Defect 23. AutoContrast turns every channel white whose darkest value is above 0.
    Test: tests/parity/test_images.py."""
    sharpness_overflow: bool = False
    """Defect 24. ALBEF's Sharpness wraps around beyond black and white, which leaves bright and dark specks.
    Test: tests/properties/test_data_transforms.py."""


WARMUP_UNIT = 100
"""Iterations after which ALBEF's warm-up rises (`schedule_by_epoch`)."""
ALBEF_AS_RELEASED = Released(
    negatives_mask_after_softmax=True,
    keep_false_negatives=True,
    momentum_encoder_dropout=True,
    mask_special_tokens=True,
    keep_padding=True,
    decay="albef",
    schedule_by_epoch=True,
    count_first_answer_token_twice=True,
    heat_map_averages_padding=True,
    iou_in_whole_pixels=True,
    flip_directional_texts=True,
    autocontrast_overflow=True,
    sharpness_overflow=True,
)
VLMO_AS_RELEASED = Released(
    negatives_mask_after_softmax=True,
    keep_false_negatives=True,
    masking_of_padding=True,
    gather_without_gradient=True,
    unbounded_temperature=True,
    keep_padding=True,
    decay="vlmo",
    adam_decays_after_update=True,
    flip_directional_texts=True,
    autocontrast_overflow=True,
)


def as_released(model: ModelConfig) -> Released:
    """Returns what `released=all` means for a model: every defect of the code that was released for it."""
    if isinstance(model, AlbefConfig):
        return ALBEF_AS_RELEASED
    return VLMO_AS_RELEASED if isinstance(model, VlmoConfig) else Released()


# --------------------------------------------------------------------------- data


Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class ScenesConfig:
    """Configures generated scenes: images composed of sprites, with captions; a pure function of seed and index."""

    sprites: Literal["openmoji", "shapes"] = "openmoji"
    """What scenes are composed of: emojis, or plain shapes."""
    names: Literal["curated", "full"] = "curated"
    """Which emojis: `curated` has about a hundred clear nouns in groups, `full` has every usable one, over a
    thousand."""
    language: str = "en"
    """Language of the sprites' names, as the `emoji` package has them. Captions are whole sentences in English, and
    lists of names in other languages."""
    count: int = 100_000
    """Training scenes in an epoch."""
    evaluation_count: int = 1_000
    """Scenes in the validation split, and as many in the test split."""
    size: int = 64
    """Side of the image in pixels."""
    objects: tuple[int, int] = (1, 4)
    """Smallest and largest number of objects in a scene."""
    complete: float = 0.6
    """Share of training captions that name every kind of object in the image. Validation and test captions all do."""
    size_said: float = 0.35
    """Probability that the caption says the size of a small or large object."""
    background_said: float = 0.35
    """Share of captions that say the background's colour, which a model learns before any noun (docs/decisions.md
    24)."""
    relation_said: float = 0.55
    """Share of captions that say where one object is relative to another, if two are clearly apart."""
    compositions: Literal["all", "familiar", "held_out"] = "all"
    """Which relations texts may speak of. A checksum holds out a tenth of the combinations of a name and a relation,
    such as a dog to the left of something. `familiar` leaves these out, for training; `held_out` has no others, for the
    evaluation of what was trained on `familiar`."""
    noise: float = 0.0
    """Share of training captions that are replaced by web-like noise."""
    seed: int = 0
    """Seed of all scenes."""
    mismatch: float = 0.0
    """Share of training captions that are replaced by the caption of another image. These are not made noisy."""


Normalise = Literal["albef", "vlmo", "imagenet"]
MemberNames = Literal["first_dot", "last_dot"]
"""The part of their names by which members of a tar shard belong together."""
SampleNames = Literal["auto", "first_dot", "last_dot"]
"""The same as a setting, with a choice by looking at the names."""


@dataclass(frozen=True)
class MixConfig:
    """Describes one of several sources that a run mixes."""

    source: str
    """Name of the source, as `data.source`."""
    path: str | None = None
    """Where it is, as `data.path`."""
    root: str | None = None
    """Folder of its images, as `data.root`."""
    weight: float = 1.0
    """Its share of every batch is its weight divided by the sum of all weights."""

    def __post_init__(self) -> None:
        _expand_home(self, "path", "root")


@dataclass(frozen=True)
class DataConfig:
    """Configures what is read and how images and texts are prepared."""

    source: str = "scenes"
    """Name of the source (catalog.SOURCES): scenes, folder, jsonl, table, datasets, pictures, texts, shards, mix,
    albef, or a published layout: karpathy (COCO, Flickr30k), coco_captions, visual_genome, sbu, conceptual,
    img2dataset, snli_ve, vqa, nlvr2, refcoco. `auto` has it recognised by looking at the files."""
    path: str | None = None
    """Folder, JSONL file, annotation list or shards that the source reads; several are separated by commas."""
    root: str | None = None
    """Folder that relative image paths start from; none takes the folder of the annotation file."""
    validation_path: str | None = None
    """Annotations of the validation split; none draws a share of `path` by the identity of images."""
    test_path: str | None = None
    """Annotations of the test split; none draws a share of `path` by the identity of images."""
    held_out: float = 0.05
    """Share of images that a drawn validation split gets, and a drawn test split as well. Each has at least three
    images if the source has twelve or more."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    crop: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest area of the random resized crop as a share of the image; 1,1 shows the whole image. ALBEF:
    0.2 in pre-training, 0.5 downstream."""
    resize: Literal["pillow", "torch"] = "pillow"
    """What scales training crops: `pillow` as in the released code, or `torch`, several times as fast and equal to
    within one or two grey levels. Evaluation uses Pillow."""
    flip: float = 0.5
    """Probability of a horizontal flip. Images whose text says left or right are not flipped."""
    randaugment: tuple[int, int] = (2, 7)
    """Number of RandAugment operations and their magnitude of 10, without colour operations (ALBEF §3.5); 0,0 for
    none."""
    texts_per_image: int = 1
    """Number of questions or hypotheses about an image that stand beside each other in training batches. Their image is
    cropped, augmented and encoded once for all of them (docs/training.md). Made scenes have that many texts each. With
    1, texts are shuffled singly, as in the released code."""
    max_tokens: int = 25
    """Longest training text in tokens; longer texts are cut. The released ALBEF: 25 in pre-training."""
    max_tokens_evaluation: int = 30
    """Longest text in tokens in an evaluation. The released ALBEF: 30."""
    max_words: int = 30
    """Number of words that the clean-up keeps of a caption. The released ALBEF: 30."""
    partial_captions: float = 0.0
    """Share of training captions of which only a part is shown: a run of their phrases, which end at commas,
    semicolons, *and*, *or*, *but*, *while* and *with* (docs/data.md). Evaluations show whole captions."""
    single_phrases: float = 0.0
    """Share of training captions of which a single phrase is shown, such as "a fox". The others, 1 minus both shares,
    are shown whole."""
    blank_images: bool = False
    """Whether every image is shown as plain grey, in training and evaluation, to measure what texts alone give away."""
    bad_share: float = 0.01
    """Share of unreadable records above which training stops. A small source may always have some, up to a quarter and
    at most ten records, unless this is 0. An evaluation allows none."""
    workers: int = 1
    """Loader processes beside each training process; 0 loads in the training process."""
    mix: tuple[MixConfig, ...] = ()
    """Sources to mix, if `source` is mix; the first also gives validation and test. On the command line a list in JSON,
    or `@FILE` with one."""
    lanes: int = 8
    """Number of streams that shards and mixes are dealt to, each of which fills an equal part of every batch. It
    divides `run.batch_size` and is a multiple of the number of processes."""
    window: int = 4
    """Number of shards of a lane that are open at once, among which samples are shuffled."""
    cache: str | None = None
    """Folder for fetched shards, and for indexes that cannot be written beside theirs; none takes DIPTYCH_CACHE, or
    `diptych` in the user's cache folder."""
    cache_bytes: int = 64 << 30
    """Largest size of the fetched shards in that folder, in bytes, for all runs of a machine together. The least
    recently used go first. The shards that are open at once must fit."""
    timeout: float = 60.0
    """Seconds without a byte after which fetching a shard is tried again."""
    retries: int = 5
    """Number of further tries after a failed one, the first after a second, each later one after twice the wait. A
    shard that cannot be fetched counts as unreadable records."""
    normalise: Normalise = "albef"
    """How pixels are normalised: by mean and deviation of natural images (`albef`), or to -1..1 (`vlmo`). A model must
    see images as it was trained on them."""
    image_column: str | None = None
    """Name of the column or key of a table that holds images or their paths; none chooses it by the values and says
    so."""
    caption_column: str | None = None
    """Name of the column or key of a table that holds captions, or several with commas between; none chooses it by the
    values and says so."""
    sample_names: SampleNames = "auto"
    """How the names of a tar shard's members form samples: `first_dot` groups names that agree up to their first dot
    (WebDataset), `last_dot` up to their last one (img2dataset), `auto` takes what leaves more samples whole."""
    largest_pixels: int = 100_000_000
    """Largest number of pixels of an image. Larger ones are unreadable records, refused before they are decoded: a
    decoded image takes 4 bytes per pixel, and decoders take several times that."""

    def __post_init__(self) -> None:
        _expand_home(self, "path", "root", "validation_path", "test_path", "cache")


DATA_PLACES = ("path", "root", "validation_path", "test_path", "mix", "cache")
"""Fields of `DataConfig` that say where data lie. A run can go on when they have moved."""
RESUMABLE = tuple(f"data.{name}" for name in (*DATA_PLACES, "cache_bytes", "workers", "timeout", "retries"))
"""Fields that resuming may change, because the same data from elsewhere give the same bits."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Configures the WordPiece tokenizer."""

    vocabulary: str | None = None
    """A vocab.txt or a folder that holds one; none learns word pieces from the run's own captions."""
    size: int = 2000
    """Number of pieces to learn if there is no vocabulary."""
    separator: bool = False
    """Whether each text is closed by [SEP]. The released ALBEF does not do so, stock BERT does (docs/released_code.md,
    defect 11)."""
    lowercase: bool = True
    """Whether texts are lower-cased and lose their accents, as in bert-base-uncased."""

    def __post_init__(self) -> None:
        _expand_home(self, "vocabulary")


# --------------------------------------------------------------------------- optimisation and run


@dataclass(frozen=True)
class OptimConfig:
    """Configures the optimiser.

    `released.decay` says which parameters decay, and `released.adam_decays_after_update` when.
    """

    lr: float = 1e-4
    """Largest learning rate, at the end of the warm-up (ALBEF §3.5: 1e-4)."""
    weight_decay: float = 0.02
    """Share of a weight that decays per step, times the learning rate (ALBEF §3.5: 0.02; VLMo §4.1: 0.01)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments. VLMo: 0.9,0.98."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    clip: float | None = None
    """Largest norm of the gradient; none does not clip."""
    accumulate: int = 1
    """Number of pieces of `run.batch_size` pairs that make an optimiser step. The pieces are one batch: their pairs are
    each other's negatives. They save memory, and each is computed again in the backward pass."""
    head_lr: float = 1.0
    """Factor on the learning rate of a task's head, which starts from random weights. VLMo's VQA: 20."""
    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw` for all parameters, as in both papers, or `muon` for the matrices between hidden states and AdamW for the
    others. From random weights Muon takes fewer steps, each of which takes longer (docs/training.md). It needs
    `run.parallel=ddp`."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Configures the learning rate at every optimiser step."""

    kind: Literal["cosine", "linear", "polynomial", "cosine_to_zero"] = "cosine"
    """How the rate falls after a linear warm-up: by ALBEF's `cosine` to `min_lr`, or by one of VLMo's: `linear`,
    `polynomial`, or `cosine_to_zero`, which ignores `min_lr`."""
    warmup_steps: int = 1000
    """Optimiser steps of the warm-up (ALBEF §3.5: 1,000; VLMo §4.1: 2,500)."""
    warmup_lr: float = 1e-5
    """Learning rate of the first step (ALBEF §3.5: 1e-5; VLMo: 0)."""
    min_lr: float = 1e-5
    """Learning rate at the end (ALBEF §3.5: 1e-5; 1e-6 downstream)."""
    warmup_share: float | None = None
    """Warm-up as a share of the run's steps, which replaces `warmup_steps`; none does not."""
    power: float = 1.0
    """Power of the remaining share of steps, for `polynomial` only."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Experiment trackers (diptych/train/trackers.py)."""


@dataclass(frozen=True)
class RunConfig:
    """Configures a run: its length, batch, devices, checkpoints and validation."""

    steps: int | None = None
    """Optimiser steps in all; none takes `epochs`."""
    epochs: int = 30
    """Passes over the training data, if `steps` is none (ALBEF §3.5: 30)."""
    batch_size: int = 512
    """Pairs in a batch of all processes together. An optimiser step sees `optim.accumulate` times as many."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and every random draw."""
    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products. With bf16 the weights, the optimiser, the momentum encoder and the losses stay
    fp32."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How the processes that `torchrun` starts share a model: `ddp` keeps it whole in each, `fsdp` cuts weights,
    gradients, optimiser and momentum encoder into equal parts. Both compute the same."""
    timeout: float = 600.0
    """Seconds without a batch, or without a step of several processes, after which a run stops and says what it waits
    for. A process that hangs is named. A checkpoint has twice the time."""
    activation_checkpointing: bool = False
    """Whether only the input of each block is kept and the block computed again in the backward pass, which needs less
    memory and a third more computation."""
    compile: bool = False
    """Whether each block is compiled by `torch.compile`."""
    threads: int | None = None
    """CPU threads; none leaves the choice to torch."""
    log_every: int = 10
    """Steps between lines of the log."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    checkpoint_async: bool = False
    """Whether checkpoints are written from a copy in memory while training goes on."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that are kept beside the best one."""
    validate_every: int = 500
    """Steps between validations; 0 for none."""
    validation_items: int = 500
    """Largest number of images in a validation."""
    patience: int | None = None
    """Number of validations without an improvement after which the run stops; none never stops it."""
    tensorboard: bool = False
    """Whether the log is also written for TensorBoard, as with `trackers=tensorboard`."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that also receive the log, such as `wandb` or `tensorboard,mlflow`."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Configures how a trained model is measured."""

    rerank: int = 128
    """Candidates per query that the fusion encoder re-ranks (ALBEF's k_test: 256 for COCO, 128 for Flickr30k). 0 ranks
    by similarity alone and fuses nothing (VLMo §3.5)."""
    batch_size: int = 64
    """Images or texts that are encoded at once."""
    bootstrap: int = 1000
    """Number of resamples behind the 95 % intervals."""
    keep_bytes: int = 2 << 30
    """Largest size in bytes of the encoded images that are kept between the two stages. If they do not fit, images are
    encoded twice."""
    tokens_per_call: int = 4_096
    """Largest number of tokens in a call of the fusion encoder over all its pairs: text tokens, and in VLMo image
    tokens too. It bounds the memory of re-ranking."""
    score: Literal["match", "sum"] = "match"
    """What orders re-ranked candidates: ITM's `match` alone, as in ALBEF, or the `sum` of ITM's log odds and of
    similarity / temperature, by which a fusion encoder that has trained for minutes adds to the similarity instead of
    replacing it (docs/decisions.md 94). For `match`, `evaluate` sorts by the raw logit of class 1, as the released code
    does, and searches by the log odds (the logit of a match minus that of no match)."""

    def __post_init__(self) -> None:
        least = {"rerank": 0, "batch_size": 1, "bootstrap": 0, "keep_bytes": 0, "tokens_per_call": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"evaluation.{name}={getattr(self, name)}: it must be at least {number}")


@dataclass(frozen=True)
class AddedTaskConfig(TaskFacts):
    """Base class of the configs of tasks that are not the library's (examples/captioning.py)."""

    takes_released = False


TaskConfig = (
    AlbefPretrainConfig
    | RetrievalConfig
    | GroundingTrainingConfig
    | EntailmentConfig
    | VqaDecoderConfig
    | VqaClosedSetConfig
    | Nlvr2Config
    | TextAssignmentConfig
    | VlmoPretrainConfig
    | LanguageStageConfig
    | VisionStageConfig
    | VisualTokenizerTrainingConfig
    | AddedTaskConfig
)
"""The tasks that a recipe can train. In JSON each but the first names its `kind`."""


@dataclass(frozen=True)
class Recipe:
    """Describes a whole run."""

    name: str
    """Name of the function in catalog.RECIPES that the run started from."""
    model: ModelConfig
    task: TaskConfig
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    released: Released = field(default_factory=Released)
    """Defects of the released code that this run reproduces: none, all, or single fields (docs/released_code.md)."""
    init_from: str | None = None
    """Run, checkpoint or exported folder, Hub name, or published weights (`diptych weights`), such as
    `deit-base+bert-base`, whose weights training starts from. Not found is an error."""
    freeze: tuple[str, ...] = ()
    """Patterns of the names of parameters that do not train, in which `*` stands for anything, such as
    `model.blocks.*.attention.*`. A pattern that matches nothing is an error."""

    def __post_init__(self) -> None:
        _expand_home(self, "init_from")
