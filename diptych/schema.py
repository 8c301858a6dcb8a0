"""The recipe tree: frozen, typed values that say everything about a run.

This module imports neither torch nor any other room, so that `--help`, override parsing and
checkpoint inspection cost nothing. Numbers are the papers' unless a comment says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

# --------------------------------------------------------------------------- models


@dataclass(frozen=True)
class VisionConfig:
    """A pre-norm vision transformer (ALBEF §3.1: ViT-B/16)."""

    image_size: int = 256
    """Side of the square input in pixels; a multiple of `patch_size`."""
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    stem: Literal["patch", "conv"] = "patch"
    """`patch`: one strided projection, as published. `conv`: a small stack of 3×3 convolutions, which learns
    from nothing far sooner (docs/decisions.md)."""


@dataclass(frozen=True)
class TextConfig:
    """A BERT whose last layers also attend to the image (ALBEF §3.1: BERT-base, 6 + 6 layers)."""

    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    """Text-only plus fusion layers; a fusion layer counts once, also where `images_per_text` repeats it."""
    fusion_start: int = 6
    """The first layer that has cross-attention; the layers before it see text only."""
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    pad_id: int = 0
    """Its word vector gets no gradient as an input, as in BERT."""
    norm_eps: float = 1e-12
    norm: Literal["post", "pre"] = "post"
    """Where the norms stand: `post` as in BERT, `pre` for training from nothing (docs/decisions.md)."""
    dropout: float = 0.1
    """On embeddings and on each sublayer's output."""
    attention_dropout: float = 0.0
    """On attention probabilities. BERT has 0.1; above 0 the fused kernel does not apply on a CPU."""


@dataclass(frozen=True)
class AlbefConfig:
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256
    temperature: float = 0.07
    """Start of the learnt temperature (ALBEF §3.2)."""
    keep_padding: bool = False
    """Compute padded text rows too, as the released code does. For parity tests; costs time, changes no valid row."""
    images_per_text: int = 1
    """Images that a text is fused with at once (NLVR2: 2). Each fusion layer then stands so many times, one for each
    image, with shared projections to keys and values (ALBEF §5)."""

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    @property
    def width(self) -> int:
        """Of the image encoder."""
        return self.vision.width

    @property
    def max_positions(self) -> int:
        """The longest text in tokens."""
        return self.text.max_positions

    def with_words(self, vocab_size: int, pad_id: int) -> AlbefConfig:
        """For a tokenizer of so many words."""
        return replace(self, text=replace(self.text, vocab_size=vocab_size, pad_id=pad_id))


@dataclass(frozen=True)
class VlmoConfig:
    """One pre-norm transformer with an expert feed-forward a modality (VLMo §3.1, §3.2); the defaults are `base`."""

    image_size: int = 224
    """Side of the square input in pixels; a multiple of `patch_size`."""
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    fusion_start: int = 10
    """The first layer with a vision-language expert; `depth` for none."""
    experts: Literal["modality", "one"] = "modality"
    """A feed-forward for each modality, or `one` for all: a standard transformer (VLMo, Tables 4 to 6)."""
    attention: Literal["shared", "separate"] = "shared"
    """One attention for all modalities, or `separate` matrices for text and image tokens, which still attend to each
    other (VLMo, Tables 4 to 6)."""
    positions: Literal["relative", "absolute"] = "relative"
    """`relative`: a learnt bias of every attention score (base, large). `absolute`: tables added to the input
    (base_plus)."""
    layer_scale: float | None = 0.1
    """Start of the learnt factors of both residual branches; None does without them (base_plus)."""
    max_positions: int = 196
    """The longest text in tokens, [CLS] and [SEP] included. Published: 196 in the language stage."""
    vocab_size: int = 30522
    pad_id: int = 0
    """Its word vector gets no gradient."""
    norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12
    """Of the norms of the text embeddings and of the word head."""
    temperature: float = 0.07
    """Start of both learnt temperatures."""
    drop_path: float = 0.1
    """Chance that the last layer leaves out a residual branch; it rises linearly from 0 at the first."""
    dropout: float = 0.1
    """On the text embeddings. Released: the same number as `drop_path`."""
    images_per_text: int = 1
    """Images that a text is fused with (NLVR2: 2), one after the other; each has its own token type."""
    stem: Literal["patch", "conv"] = "patch"
    """As in `VisionConfig`."""
    text_norm: bool = True
    """Normalise the text embeddings, as published. Without it [CLS] starts small, which learns sooner from nothing."""
    keep_padding: bool = False
    """Compute padded text rows too, as the released code does. For parity tests; costs time, changes no valid row."""

    @property
    def has_fusion_experts(self) -> bool:
        """Whether pairs pass experts of their own in the upper layers."""
        return self.experts == "modality" and self.fusion_start < self.depth

    def with_words(self, vocab_size: int, pad_id: int) -> VlmoConfig:
        """For a tokenizer of so many words."""
        return replace(self, vocab_size=vocab_size, pad_id=pad_id)


@dataclass(frozen=True)
class VisualTokenizerConfig:
    """A discrete variational autoencoder: a picture as a grid of codes, one a patch (the targets of BEiT §2.1)."""

    image_size: int = 112
    """Side of the square input in pixels; a multiple of `patch_size`. BEiT reads 112 px for pictures of 224 px, so
    that codes of 8 px stand for patches of 16."""
    patch_size: int = 8
    """Pixels a side that one code stands for; a power of two."""
    codes: int = 8192
    """Size of the codebook (BEiT §2.1)."""
    code_width: int = 256
    width: int = 256
    """Channels of the convolutions."""
    residual_blocks: int = 2

    @property
    def max_positions(self) -> None:
        """It reads no text."""
        return None

    def with_words(self, vocab_size: int, pad_id: int) -> VisualTokenizerConfig:
        """It reads no text."""
        return self


ModelConfig = AlbefConfig | VlmoConfig | VisualTokenizerConfig
"""What a recipe can build. Written to JSON, each but the first says its `kind`."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of a tokenizer's special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    continuing: tuple[int, ...] = ()
    """Of the pieces that continue a word (BERT's begin with `##`)."""


# --------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Contrast:
    """How a task contrasts pictures with texts (ITC), and where the hard negatives of ITM come from."""

    queue_size: int = 0
    keys: Literal["teacher", "batch"] = "batch"
    """Whether the candidates are features of a momentum encoder or of the model itself."""
    branches: int = 1
    """Pairs of embeddings that are contrasted (VLMo: the dual encoder's and those of the vision-language experts)."""
    negatives: Literal["all", "own"] = "own"
    """Whether hard negatives come from the batches of all processes or from each process's own batch."""
    fuses: bool = True
    """Whether ITM trains, so that pairs are fused at all."""
    temperature_bounds: tuple[float, float] | None = None
    """Where the learnt temperature is clamped; None where it is not."""
    false_negatives: Literal["mask", "keep"] | None = None
    """What happens to other captions of the same picture; None where they count as positives."""


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

    @property
    def contrast(self) -> Contrast | None:
        """How the task contrasts pictures with texts; None if it does not."""
        return None

    @property
    def guesses(self) -> tuple[Guess, ...]:
        """The terms of the loss whose value for a model that only guesses is known."""
        return ()


HeadKind = Literal["relu", "gelu"]
"""A classifier of two layers on the fused vector: ALBEF's with ReLU between them, or VLMo's, which is wider and has a
norm and GELU between them."""


@dataclass(frozen=True)
class AlbefPretrainConfig(TaskFacts):
    """ITC + ITM + MLM with a momentum teacher (ALBEF §3). A term's weight of 0 leaves the term out (Table 1)."""

    starts_from = "encoders"

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 1.0
    queue_size: int = 65536
    temperature_bounds: tuple[float, float] = (0.001, 0.5)
    momentum: float = 0.995
    alpha_itc: float = 0.4
    """Weight of the teacher's pseudo-targets in ITC (MoD on ITC in Table 1)."""
    alpha_mlm: float = 0.4
    """Weight of the teacher's word distribution in MLM (MoD on MLM in Table 1)."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Published: 1."""
    teacher_start: int = 0
    """Optimiser steps before which the teacher follows but is not asked: ITC's keys are the student's own features, no
    key is queued, alpha is 0. Published: 0, from encoders that were trained before; from nothing, keys that lag behind
    by two steps double the time until the contrast finds its first nouns (docs/decisions.md)."""
    fuse_start: int = 0
    """Optimiser steps before which only ITC trains: align, then fuse. Published: 0; with ITM and MLM from the first
    step the contrast takes off later (docs/decisions.md)."""
    mask_probability: float = 0.15
    hard_negatives: bool = True
    """False draws ITM's negatives uniformly (ablation in Table 1)."""
    negatives: Literal["all", "own"] = "all"
    """ITM's negatives from the batches of `all` processes, whose encoded images and texts are gathered, so that any
    number of processes learns what one would; or from each process's `own`, as released: less to send."""
    negatives_mask: Literal["before", "after"] = "before"
    """Positives leave the sampling weights `before` the softmax, or `after` it as released, which crashes when
    all that is left underflows (REFERENCE defect 1)."""
    false_negatives: Literal["mask", "keep"] = "mask"
    """Other captions of the same picture: `mask` them out of ITC and ITM, or `keep` them as negatives, as released
    (defect 2)."""
    teacher_dropout: bool = False
    """True runs the teacher with dropout, as released (defect 3)."""
    mask_special_tokens: bool = False
    """True lets MLM mask every special token but [CLS] and padding, as released (defect 13)."""

    @property
    def contrast(self) -> Contrast:
        return Contrast(
            self.queue_size, "teacher", negatives=self.negatives, fuses=bool(self.itm),
            temperature_bounds=self.temperature_bounds, false_negatives=self.false_negatives,
        )  # fmt: skip

    @property
    def guesses(self) -> tuple[Guess, ...]:
        fused = Guess("itm", "one match in three", since=self.fuse_start), Guess("mlm", "words", since=self.fuse_start)
        return tuple(guess for guess in (Guess("itc", "candidates"), *fused) if getattr(self, guess.term))


@dataclass(frozen=True)
class VisualTokenizerTrainingConfig(TaskFacts):
    """What a visual tokenizer learns from pictures alone: to give them back through its codes."""

    learns_from = "pictures"
    starts_from = "nothing"
    learns_temperature = False

    temperature: tuple[float, float] = (1.0, 0.0625)
    """Of the Gumbel-softmax at the first and at the last step of `anneal_steps`."""
    anneal_steps: int = 1000
    kl: float = 0.0
    """Weight of the divergence of the codes' use from a uniform one."""


@dataclass(frozen=True)
class VisionStageConfig(TaskFacts):
    """VLMo's first stage: masked image modelling on pictures alone (VLMo §3.4; BEiT §2.3)."""

    learns_from = "pictures"
    starts_from = "nothing"

    tokenizer: str = ""
    """Run or checkpoint of the visual tokenizer whose codes are predicted."""
    mask_share: float = 0.4
    """Of the patches (BEiT §2.3)."""
    min_block: int = 16
    """Patches of a masked block at least (BEiT, Algorithm 1)."""
    min_aspect: float = 0.3
    """Of a block's height to its width at least, and the reverse at most (BEiT, Algorithm 1)."""
    visual: VisualTokenizerConfig = field(default_factory=VisualTokenizerConfig)
    """What that tokenizer is; read from it when training begins, whatever stands here."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        codes = self.visual.codes
        return (Guess("masked_image", codes, f"log {codes}, the codes of the visual tokenizer"),)


@dataclass(frozen=True)
class LanguageStageConfig(TaskFacts):
    """VLMo's second stage: masked language modelling on texts alone, attention and vision frozen (VLMo §3.4)."""

    learns_from = "texts"
    starts_from = "vision stage"

    mask_probability: float = 0.15
    whole_words: bool = True
    """Hide all pieces of a word or none."""
    masking: Literal["repaired", "released"] = "repaired"
    """Of what the share is hidden: of a text's own tokens, or of the padded length as `released`, where padding counts
    as words that are drawn in vain."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("mlm", "words"),)


@dataclass(frozen=True)
class VlmoPretrainConfig(TaskFacts):
    """VLMo's third stage: ITC + ITM + MLM on pairs (VLMo §3.3). A term's weight of 0 leaves the term out (Table 6)."""

    starts_from = "language stage"

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 0.25
    """Released: 0.25, whatever the configuration said (REFERENCE defect 16)."""
    itc_branches: Literal["both", "main", "vl"] = "both"
    """Contrast of the dual encoder's features (`main`), of those that pass the vision-language experts (`vl`), or the
    mean of both, as released. Negatives are drawn by `main` wherever it is there."""
    temperature_bounds: tuple[float, float] | None = (0.001, 0.5)
    """None lets the temperatures move freely, as released (defect 16)."""
    mask_probability: float = 0.15
    whole_words: bool = True
    masking: Literal["repaired", "released"] = "repaired"
    """As in `LanguageStageConfig`."""
    hard_negatives: bool = True
    """False draws ITM's negatives uniformly."""
    negatives: Literal["all", "own"] = "all"
    """Negatives from `all` processes or each process's `own` (VLMo Table 5)."""
    negatives_mask: Literal["before", "after"] = "before"
    """As in `AlbefPretrainConfig`."""
    false_negatives: Literal["mask", "keep"] = "mask"
    """As in `AlbefPretrainConfig`."""
    gather: Literal["gradient", "released"] = "gradient"
    """Whether features gathered from other processes lead gradients back to them, so that any number of processes
    learns what one would. `released`: they do not, and the contrastive gradient is that of one process divided by their
    number (REFERENCE defect 15); MLM's mean is then over each process's own hidden words."""
    fusion_experts: Literal["fresh", "vision", "language"] = "fresh"
    """What the vision-language experts begin with where the stage before had none: new weights, as released, or a copy
    of each layer's vision or language expert."""
    fuse_start: int = 0
    """Optimiser steps before which only ITC trains. Published: 0."""

    @property
    def contrast(self) -> Contrast:
        return Contrast(
            branches=2 if self.itc_branches == "both" else 1, negatives=self.negatives, fuses=bool(self.itm),
            temperature_bounds=self.temperature_bounds, false_negatives=self.false_negatives,
        )  # fmt: skip

    @property
    def guesses(self) -> tuple[Guess, ...]:
        fused = Guess("itm", "one match in three", since=self.fuse_start), Guess("mlm", "words", since=self.fuse_start)
        return tuple(guess for guess in (Guess("itc", "candidates"), *fused) if getattr(self, guess.term))


@dataclass(frozen=True)
class RetrievalConfig(TaskFacts):
    """Fine-tuning for retrieval: ITC + ITM, in which every caption of a picture is right (ALBEF §5)."""

    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4
    """Weight of the teacher's pseudo-targets in ITC (MoD downstream in Table 1); 0 for none. ITC's keys are the
    teacher's features in any case."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Released: 1."""
    negatives_mask: Literal["before", "after"] = "before"
    """As in pre-training (REFERENCE defect 1)."""
    teacher_dropout: bool = False
    """True runs the teacher with dropout, as released (defect 3)."""
    keys: Literal["teacher", "batch"] = "teacher"
    """What ITC compares with: the `teacher`'s features of the batch and of `queue_size` pairs before it (ALBEF), or the
    model's own features of the `batch`, of all processes together (VLMo §4). The latter has neither teacher nor queue:
    `queue_size` and `alpha` are 0 then."""
    itc: float = 1.0
    itm: float = 1.0
    """Weights of the terms. 0 leaves a term out: without ITM a dual encoder trains alone, and nothing is fused."""

    @property
    def contrast(self) -> Contrast:
        return Contrast(self.queue_size, self.keys, negatives="all", fuses=bool(self.itm))

    @property
    def guesses(self) -> tuple[Guess, ...]:
        terms = Guess("itc", "candidates"), Guess("itm", "one match in three")
        return tuple(guess for guess in terms if getattr(self, guess.term))


@dataclass(frozen=True)
class EntailmentConfig(TaskFacts):
    """Visual entailment: contradiction, neutral or entailment (ALBEF §5)."""

    momentum: float = 0.995
    """Of the teacher. Released: fixed at 0.995, whatever pre-training had."""
    alpha: float = 0.4
    """Weight of the teacher's distribution over the classes (MoD downstream in Table 1); 0 does without a teacher."""
    alpha_ramp: float = 0.0
    """Epochs over which alpha rises linearly to its value. Released: 0, from the first step on."""
    teacher_dropout: bool = False
    """True runs the teacher with dropout, as released (defect 3)."""
    head: HeadKind = "relu"

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("entailment", 3, "log 3, the classes"),)


@dataclass(frozen=True)
class Nlvr2Config(TaskFacts):
    """NLVR2: is a statement false or true of two pictures? (ALBEF §5.) For a model with `images_per_text` 2."""

    momentum: float = 0.995
    """Of the teacher. Released: fixed at 0.995, whatever pre-training had."""
    alpha: float = 0.4
    """Weight of the teacher's distribution over the classes (MoD downstream in Table 1); 0 does without a teacher."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Released: 1."""
    teacher_dropout: bool = False
    """True runs the teacher with dropout, as released (defect 3)."""
    head: HeadKind = "relu"

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("nlvr2", 2, "log 2, true or false"),)


@dataclass(frozen=True)
class TextAssignmentConfig(TaskFacts):
    """Does a text belong to the first of two pictures, the second or neither? Pre-training for NLVR2 (ALBEF §5)."""

    temperature: float = 0.07
    """Divides the similarities of pictures by which a text's other pictures are drawn. Released: 0.07, not learnt."""
    false_negatives: Literal["mask", "keep"] = "mask"
    """The same picture under another caption: `mask` never shows it as another one, `keep` may, as released
    (REFERENCE defect 2)."""

    @property
    def guesses(self) -> tuple[Guess, ...]:
        return (Guess("text_assignment", 3, "log 3: the first picture, the second, neither"),)


@dataclass(frozen=True)
class GroundingConfig:
    """Where in a picture is what a phrase names? Grad-CAM, then a box (ALBEF §5, §6.4)."""

    mode: Literal["itm", "itc"] = "itm"
    """`itm`: cross-attention of a fusion layer, by the match logit. `itc`: the class token's self-attention in a block
    of the image encoder, by the similarity of picture and phrase."""
    layer: int = 8
    """The layer whose attention is read, from 0. In mode itm counted over the whole text stack: 8 is the third fusion
    layer of ALBEF's 12, as published; VLMo's blocks all attend to both. In mode itc a block of the image encoder;
    published: the last."""
    average: Literal["text", "batch"] = "text"
    """A phrase's map is the mean of its tokens' maps, [CLS] included: over the `text`'s own tokens, or over all
    positions of the padded `batch` as released, where longer batch mates make a map paler."""
    alpha: float = 0.5
    """A proposal's heat is divided by its area to this power. Published: 0.5."""
    threshold: float = 0.5
    """Without proposals: the share of the map's peak from which on a pixel belongs to the thing. Our own choice."""
    iou: Literal["continuous", "released"] = "continuous"
    """How a box is compared with the right one: geometrically, or as `released`, where an overlap of one pixel or less
    in width or height counts as none."""


@dataclass(frozen=True)
class GroundingTrainingConfig(RetrievalConfig):
    """Weakly supervised grounding: retrieval's losses on phrases, no box ever seen; measured by boxes (ALBEF §6.4)."""

    boxes: GroundingConfig = field(default_factory=GroundingConfig)
    """How a trained model finds them."""


@dataclass(frozen=True)
class DecoderConfig:
    """A causal BERT that reads a question's fused states by cross-attention; as wide as they are (ALBEF §5)."""

    layers: int = 6
    """Published: as many as the fusion encoder has, from which it starts."""
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    norm_eps: float = 1e-12
    norm: Literal["post", "pre"] = "post"
    """As in `TextConfig`; so are the two rates of dropout."""
    dropout: float = 0.1
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class VqaDecoderConfig(TaskFacts):
    """Answers written by a decoder, or the likeliest of a list (ALBEF §5)."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    alpha: float = 0.4
    """Weight of the teacher's word distribution (MoD downstream in Table 1); 0 does without a teacher."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Released: 1."""
    momentum: float = 0.995
    """Of the teacher. Released: fixed at 0.995, whatever pre-training had."""
    teacher_dropout: bool = False
    """True runs the teacher with dropout, as released (defect 3)."""
    answers: tuple[str, ...] = ()
    """The list of which a question's answer is chosen; `@FILE` reads it from JSON, as the published one is. Empty: the
    `answer_count` most frequent answers of the training data."""
    answer_count: int = 3192
    """Length of the published list (ALBEF §5)."""
    inference: Literal["rank", "generate"] = "rank"
    """How an answer is found: `rank` chooses it from the list, as published, `generate` writes it."""
    candidates: int = 128
    """Answers of a list that are scored whole: those whose first word is likeliest. Released: 128."""
    score: Literal["likelihood", "mean", "released"] = "likelihood"
    """What ranks a candidate: log P(answer), its `mean` over the answer's words and [SEP], or, as `released`, the
    likelihood with the first word counted twice (REFERENCE defect 9)."""
    beams: int = 4
    """Answers kept at each word when one is written freely; 1 is greedy. The released code only ranks."""
    max_answer_tokens: int = 10
    """Longest written answer, [SEP] included."""


@dataclass(frozen=True)
class VqaClosedSetConfig(TaskFacts):
    """Answers chosen from the frequent ones of the training data, several at once (VLMo §4)."""

    answers: tuple[str, ...] = ()
    """The closed set, by class. Empty: the `answer_count` most frequent answers of the training data."""
    answer_count: int = 3129
    """VQA v2's usual number (VLMo §4)."""
    alpha: float = 0.0
    """Weight of the teacher's probabilities; 0, as in VLMo, does without a teacher. ALBEF has 0.4 elsewhere."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value."""
    momentum: float = 0.995
    teacher_dropout: bool = False
    """True runs the teacher with dropout, as ALBEF was released (defect 3)."""
    head: HeadKind = "gelu"


# --------------------------------------------------------------------------- data


Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class ScenesConfig:
    """Pictures composed from sprites, with captions; a pure function of (seed, index)."""

    sprites: Literal["openmoji", "shapes"] = "openmoji"
    names: Literal["curated", "full"] = "curated"
    """`curated`: at least 100 clear nouns in groups. `full`: every usable sprite (at least 1,000)."""
    language: str = "en"
    """Language of the sprites' names, as shipped by the `emoji` package. Sentences are English only; other
    languages get name lists."""
    count: int = 100_000
    """Training scenes in one epoch."""
    evaluation_count: int = 1_000
    """Scenes in the validation split and in the test split, each."""
    size: int = 64
    """Side of the picture in pixels."""
    objects: tuple[int, int] = (1, 4)
    """Least and most objects in a scene."""
    complete: float = 0.6
    """Share of training captions that name every kind of thing in the picture; validation's and test's all do."""
    size_said: float = 0.35
    """Chance that a small or large thing is called so."""
    background_said: float = 0.35
    """Share of captions that say the background's colour, which a model learns before any noun (docs/decisions.md)."""
    relation_said: float = 0.55
    """Share of captions that say who stands where, if two things stand clearly apart."""
    compositions: Literal["all", "familiar", "held_out"] = "all"
    """Which relations texts speak of. A checksum holds out a tenth of the combinations of a name and a relation, like
    a dog to the left of anything. `familiar` never speaks of these: train so. `held_out` speaks of no other relation,
    and the texts of tasks of nothing else: evaluate so what was trained on the familiar."""
    noise: float = 0.0
    """Share of training captions turned into web-like noise."""
    seed: int = 0


Normalise = Literal["albef", "vlmo"]


@dataclass(frozen=True)
class MixConfig:
    """One of several sources of a run."""

    source: str
    """As `data.source`."""
    path: str | None = None
    """As `data.path`."""
    root: str | None = None
    """As `data.root`."""
    weight: float = 1.0
    """Its part of every batch is its weight by the sum of all."""


@dataclass(frozen=True)
class DataConfig:
    source: str = "scenes"
    """A name of catalog.SOURCES: scenes, folder, jsonl, pictures, texts, shards, mix, albef, or a published layout:
    karpathy (COCO, Flickr30k), visual_genome, sbu, conceptual, img2dataset, snli_ve, vqa, nlvr2, refcoco."""
    path: str | None = None
    """Folder, JSONL file, annotation list or shards that the source reads; several with commas between them."""
    root: str | None = None
    """Folder that relative picture paths start from; default: beside the annotation file."""
    validation_path: str | None = None
    """Annotations of the validation split; default: a share of `path`, chosen by the picture's identity."""
    test_path: str | None = None
    held_out: float = 0.05
    """Share of pictures for validation, and as much again for test, where no such path is given; three each at least,
    if the source has twelve or more."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    crop: tuple[float, float] = (0.2, 1.0)
    """Area of the random resized crop as a share of the picture; (1, 1) shows all of it."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    flip_directional: bool = False
    """True flips under texts that say left or right too, as released (defect 12)."""
    randaugment: tuple[int, int] = (2, 7)
    """Operations drawn and their magnitude of 10 (no colour operations); (0, 0) for none."""
    augmentation: Literal["repaired", "released"] = "repaired"
    """`released` keeps two overflows of the released operations: AutoContrast turns every picture white whose darkest
    value is above 0, and Sharpness wraps around beyond black and white."""
    max_tokens: int = 25
    """Longest training text in tokens; longer ones are cut. Released: 25 in pre-training."""
    max_tokens_evaluation: int = 30
    max_words: int = 30
    """Caption clean-up keeps this many words."""
    blank_images: bool = False
    """True shows every picture as plain grey, in training and evaluation: what can be learnt from the texts alone."""
    bad_share: float = 0.01
    """Training stops when more than this share of the source's records cannot be read. A small source is always
    allowed some, up to a quarter and at most ten records, unless this is 0. Evaluation allows none."""
    workers: int = 1
    """Loader processes beside the training process; 0 loads in it."""
    mix: tuple[MixConfig, ...] = ()
    """For `source` mix only: the sources that are mixed. The first gives validation and test. On the command line a
    list in JSON, or `@FILE` with one."""
    lanes: int = 8
    """For shards and mix only: streams that an epoch is dealt to, each giving equal parts of every batch. Divides
    `run.batch_size`, and is a multiple of the number of processes, which read whole lanes."""
    window: int = 4
    """For shards only: those of a lane that are open at once, among which samples are shuffled."""
    cache: str | None = None
    """Folder for fetched shards, and for indices that cannot lie beside theirs; default: DIPTYCH_CACHE, else `diptych`
    in the user's cache folder."""
    cache_bytes: int = 64 << 30
    """The most that fetched shards may take there, all runs of a machine together; what was not used for longest goes
    first. Must hold the shards that are open at once."""
    timeout: float = 60.0
    """Seconds without a byte after which fetching a shard is tried again."""
    retries: int = 5
    """Further tries after one that failed, the first after a second, each later one after twice as long. A shard that
    is not got then counts as bad records."""
    normalise: Normalise = "albef"
    """What colours become. `albef`: 0 at the mean of natural pictures and 1 a deviation above it. `vlmo`: -1 to 1. A
    model must see pictures as it was trained on them."""


@dataclass(frozen=True)
class TokenizerConfig:
    vocabulary: str | None = None
    """A vocab.txt, a folder that holds one, or None: learn word pieces from the run's own captions."""
    size: int = 2000
    """Pieces to learn when there is no vocabulary."""
    separator: bool = False
    """Close each text with [SEP]. The released ALBEF does not (defect 11); stock BERT does."""
    lowercase: bool = True


# --------------------------------------------------------------------------- optimisation and run


DecayRule = Literal["released", "repaired", "released_vlmo"]


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-4
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: DecayRule = "repaired"
    """Which parameters decay. `released`: ALBEF's, all but one-dimensional ones and biases, so temperature, class
    token, positions and embeddings decay too. `released_vlmo`: all but biases, relative positions and most norms;
    those of experts and heads decay (defect 16). `repaired`: weight matrices and convolutions only."""
    clip: float | None = None
    """Largest gradient norm."""
    accumulate: int = 1
    """Pieces that an optimiser step's pairs are computed in, each of `run.batch_size`. Their pairs are each other's
    negatives, as in a batch of all of them: the pieces save memory, each being computed again on the way back."""
    head_lr: float = 1.0
    """Multiplies the rate of a task's head, which starts from nothing beside a trained model. VLMo's VQA: 20."""
    adam: Literal["torch", "released_vlmo"] = "torch"
    """The order of AdamW's parts. `torch`: decay, then the update with `eps` added to the corrected root.
    `released_vlmo`: the update with `eps` added to the root as it is, then decay of what came out."""


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["cosine", "released", "linear", "polynomial", "cosine_to_zero"] = "cosine"
    """`cosine`: linear warm-up, then cosine, by iteration. `released`: ALBEF's, warm-up in steps of 100 iterations
    within the first epoch only, then constant within an epoch (defect 8). VLMo's, by iteration after linear warm-up:
    `linear`, `polynomial` and `cosine_to_zero`, whatever `min_lr` says."""
    warmup_steps: int = 1000
    warmup_lr: float = 1e-5
    """The rate of the first step. VLMo: 0."""
    min_lr: float = 1e-5
    warmup_epochs: int = 20
    """For `released` only: its unit is 100 iterations."""
    warmup_share: float | None = None
    """Warm-up as a share of the run's steps, in place of `warmup_steps`."""
    power: float = 1.0
    """For `polynomial` only: that of the share of steps still to go."""


@dataclass(frozen=True)
class RunConfig:
    steps: int | None = None
    """Optimiser steps in all; None: `epochs` decides."""
    epochs: int = 30
    batch_size: int = 512
    """Pairs of all processes together; `optim.accumulate` times as many an optimiser step."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 multiplies in bfloat16; weights, optimiser, teacher and losses stay fp32."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How the processes that `torchrun` starts share a model: `ddp` keeps it whole in each, `fsdp` cuts weights,
    gradients, optimiser and teacher into equal parts. Both compute the same."""
    timeout: float = 600.0
    """Seconds without a step after which a run on several processes stops, and says which of them hangs."""
    activation_checkpointing: bool = False
    """Keep only what enters each block, and compute the block again on the way back: less memory, a third more work."""
    compile: bool = False
    """Compile each block (`torch.compile`)."""
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""
    log_every: int = 10
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    checkpoint_async: bool = False
    """Write checkpoints beside the training, from a copy in memory."""
    keep_checkpoints: int = 2
    """Newest ones kept beside the best."""
    validate_every: int = 500
    """Steps between validations; 0 for none."""
    validation_items: int = 500
    """Pictures at most in one validation."""
    patience: int | None = None
    """Stop after so many validations without a better one."""
    tensorboard: bool = False


@dataclass(frozen=True)
class EvaluationConfig:
    rerank: int = 128
    """Candidates that the fusion encoder re-ranks for each query (k_test: 256 COCO, 128 Flickr30k); 0 searches by
    similarity alone and fuses nothing (VLMo §4)."""
    batch_size: int = 64
    bootstrap: int = 1000
    """Resamples behind the 95 % intervals."""
    keep_bytes: int = 2 << 30
    """Encoded pictures are kept between the two stages if all fit into so many bytes; else they are encoded twice."""
    tokens_per_call: int = 4_096
    """Rows, over all pairs, of one call of the fusion encoder: text tokens and, in VLMo, image tokens too. Bounds the
    memory of re-ranking."""


@dataclass(frozen=True)
class AddedTaskConfig(TaskFacts):
    """What the config of a task derives from that is not the library's (examples/captioning.py)."""


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
"""What a recipe can train. Written to JSON, each but the first says its `kind`."""


@dataclass(frozen=True)
class Recipe:
    """Everything about a run. `name` finds the function in catalog.RECIPES."""

    name: str
    model: ModelConfig
    task: TaskConfig
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    init_from: str | None = None
    """Checkpoint to start from: a run folder or a checkpoint folder. Not found is an error."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not train, by patterns of their names in which `*` stands for anything, such as
    `model.blocks.*.attention.*`. A pattern that fits none is an error."""
