"""The recipe tree: frozen, typed values that say everything about a run.

This module imports neither torch nor any other room, so that `--help`, override parsing and
checkpoint inspection cost nothing. Numbers are the papers' unless a comment says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

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


HeadKind = Literal["relu", "gelu"]
"""A classifier of two layers on the fused vector: ALBEF's with ReLU between them, or VLMo's, which is wider and has a
norm and GELU between them."""


@dataclass(frozen=True)
class AlbefPretrainConfig:
    """ITC + ITM + MLM with a momentum teacher (ALBEF §3). A term's weight of 0 leaves the term out (Table 1)."""

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


@dataclass(frozen=True)
class VisualTokenizerTrainingConfig:
    """What a visual tokenizer learns from pictures alone: to give them back through its codes."""

    temperature: tuple[float, float] = (1.0, 0.0625)
    """Of the Gumbel-softmax at the first and at the last step of `anneal_steps`."""
    anneal_steps: int = 1000
    kl: float = 0.0
    """Weight of the divergence of the codes' use from a uniform one."""


@dataclass(frozen=True)
class VisionStageConfig:
    """VLMo's first stage: masked image modelling on pictures alone (VLMo §3.4; BEiT §2.3)."""

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


@dataclass(frozen=True)
class LanguageStageConfig:
    """VLMo's second stage: masked language modelling on texts alone, attention and vision frozen (VLMo §3.4)."""

    mask_probability: float = 0.15
    whole_words: bool = True
    """Hide all pieces of a word or none."""


@dataclass(frozen=True)
class VlmoPretrainConfig:
    """VLMo's third stage: ITC + ITM + MLM on pairs (VLMo §3.3). A term's weight of 0 leaves the term out (Table 6)."""

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 0.25
    """Released: 0.25, whatever the configuration said (REFERENCE defect 16)."""
    itc_branches: Literal["both", "main", "vl"] = "both"
    """Contrast of the dual encoder's features (`main`), of those that pass the vision-language experts (`vl`), or the
    mean of both, as released. Negatives are drawn by `main` wherever it is there."""
    temperature_bounds: tuple[float, float] = (0.001, 0.5)
    """Least and largest value of the learnt temperatures, as in ALBEF."""
    mask_probability: float = 0.15
    whole_words: bool = True
    hard_negatives: bool = True
    """False draws ITM's negatives uniformly."""
    negatives: Literal["all", "own"] = "all"
    """Negatives from `all` processes or each process's `own` (VLMo Table 5)."""
    fusion_experts: Literal["fresh", "vision", "language"] = "fresh"
    """What the vision-language experts begin with where the stage before had none: new weights, as released, or a copy
    of each layer's vision or language expert."""
    fuse_start: int = 0
    """Optimiser steps before which only ITC trains. Published: 0."""


@dataclass(frozen=True)
class RetrievalConfig:
    """Fine-tuning for retrieval: ITC + ITM, in which every caption of a picture is right (ALBEF §5)."""

    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4
    """Weight of the teacher's pseudo-targets in ITC (MoD downstream in Table 1); 0 for none. ITC's keys are the
    teacher's features in any case."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Released: 1."""
    keys: Literal["teacher", "batch"] = "teacher"
    """What ITC compares with: the `teacher`'s features of the batch and of `queue_size` pairs before it (ALBEF), or the
    model's own features of the `batch`, of all processes together (VLMo §4). The latter has neither teacher nor queue:
    `queue_size` and `alpha` are 0 then."""
    itc: float = 1.0
    itm: float = 1.0
    """Weights of the terms. 0 leaves a term out: without ITM a dual encoder trains alone, and nothing is fused."""


@dataclass(frozen=True)
class EntailmentConfig:
    """Visual entailment: contradiction, neutral or entailment (ALBEF §5)."""

    momentum: float = 0.995
    """Of the teacher. Released: fixed at 0.995, whatever pre-training had."""
    alpha: float = 0.4
    """Weight of the teacher's distribution over the classes (MoD downstream in Table 1); 0 does without a teacher."""
    alpha_ramp: float = 0.0
    """Epochs over which alpha rises linearly to its value. Released: 0, from the first step on."""
    head: HeadKind = "relu"


@dataclass(frozen=True)
class Nlvr2Config:
    """NLVR2: is a statement false or true of two pictures? (ALBEF §5.) For a model with `images_per_text` 2."""

    momentum: float = 0.995
    """Of the teacher. Released: fixed at 0.995, whatever pre-training had."""
    alpha: float = 0.4
    """Weight of the teacher's distribution over the classes (MoD downstream in Table 1); 0 does without a teacher."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Released: 1."""
    head: HeadKind = "relu"


@dataclass(frozen=True)
class TextAssignmentConfig:
    """Does a text belong to the first of two pictures, the second or neither? Pre-training for NLVR2 (ALBEF §5)."""

    temperature: float = 0.07
    """Divides the similarities of pictures by which a text's other pictures are drawn. Released: 0.07, not learnt."""


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
    alpha: float = 0.5
    """A proposal's heat is divided by its area to this power. Published: 0.5."""
    threshold: float = 0.5
    """Without proposals: the share of the map's peak from which on a pixel belongs to the thing. Our own choice."""


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
class VqaDecoderConfig:
    """Answers written by a decoder, or the likeliest of a list (ALBEF §5)."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    alpha: float = 0.4
    """Weight of the teacher's word distribution (MoD downstream in Table 1); 0 does without a teacher."""
    alpha_ramp: float = 1.0
    """Epochs over which alpha rises linearly to its value. Released: 1."""
    momentum: float = 0.995
    """Of the teacher. Released: fixed at 0.995, whatever pre-training had."""
    answers: tuple[str, ...] = ()
    """The list of which a question's answer is chosen; `@FILE` reads it from JSON, as the published one is. Empty: the
    `answer_count` most frequent answers of the training data."""
    answer_count: int = 3192
    """Length of the published list (ALBEF §5)."""
    inference: Literal["rank", "generate"] = "rank"
    """How an answer is found: `rank` chooses it from the list, as published, `generate` writes it."""
    candidates: int = 128
    """Answers of a list that are scored whole: those whose first word is likeliest. Released: 128."""
    score: Literal["likelihood", "mean"] = "likelihood"
    """What ranks a candidate: log P(answer), or its `mean` over the answer's tokens and [SEP]."""
    beams: int = 4
    """Answers kept at each word when one is written freely; 1 is greedy. The released code only ranks."""
    max_answer_tokens: int = 10
    """Longest written answer, [SEP] included."""


@dataclass(frozen=True)
class VqaClosedSetConfig:
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
    head: HeadKind = "gelu"


# --------------------------------------------------------------------------- the released code's defects


DecayRule = Literal["repaired", "albef", "vlmo"]


@dataclass(frozen=True)
class Released:
    """Defects of the released code, each of which a field brings back; by default all are repaired.

    Set `released=all` for everything that the released code of the recipe's model does, or single fields. A field that
    does not concern a recipe's model or task changes nothing. docs/released_code.md describes the defects by number.
    """

    negatives_mask_after_softmax: bool = False
    """Defect 1. Positives leave ITM's sampling weights after the softmax, not before it. The odds of the negatives are
    the same until all of them underflow, and then no negative can be drawn. tests/contracts/test_defects.py"""
    keep_false_negatives: bool = False
    """Defect 2. Other captions of the same picture count as negatives of ITC and ITM, and text assignment may show the
    same picture as another one. The model learns that true captions are false. tests/contracts/test_defects.py"""
    momentum_encoder_dropout: bool = False
    """Defect 3. The momentum encoder runs with dropout, so its pseudo-targets are noisy.
    tests/contracts/test_defects.py"""
    mask_special_tokens: bool = False
    """Defect 13. ALBEF's MLM may mask [SEP], [UNK] and [MASK], not only words. tests/contracts/test_defects.py"""
    masking_of_padding: bool = False
    """Defect 18. VLMo masks 15 % of the padded length, where padding counts as words that are drawn in vain. Some short
    texts then have no masked word. tests/parity/vlmo/test_masking.py"""
    gather_without_gradient: bool = False
    """Defect 15. Features that VLMo gathers from other processes carry no gradient, so the contrastive gradient is
    divided by the number of processes, and MLM's mean is over each process's own masked words.
    tests/parity/vlmo/test_two_ranks.py"""
    unbounded_temperature: bool = False
    """Defect 16. VLMo's learnt temperatures move freely, beyond `task.temperature_bounds`.
    tests/properties/test_vlmo_pretraining.py"""
    keep_padding: bool = False
    """Defect 16. Padded text tokens are computed too. It costs time and changes no other token, so that it serves
    parity tests only. tests/parity/test_pretrain.py"""
    decay: DecayRule = "repaired"
    """Defect 19. Which parameters decay. `repaired` decays the weights of linear and convolution layers only. `albef`
    decays all but one-dimensional parameters and biases, so temperature, class token, positions and embeddings shrink
    too. `vlmo` decays all but biases, relative positions and those norms whose names the released patterns match, so
    the norms of experts and heads shrink. tests/contracts/test_optim.py, tests/parity/vlmo/test_optim.py"""
    adam_decays_after_update: bool = False
    """Defect 20. VLMo's AdamW decays the updated weight, and adds `optim.eps` to the root before its bias correction,
    which damps the first steps. tests/contracts/test_optim.py, tests/parity/vlmo/test_trace.py"""
    schedule_by_epoch: bool = False
    """Defect 8. ALBEF's cosine (`schedule.kind=cosine`) changes once an epoch. Its warm-up rises every 100 iterations,
    `schedule.warmup_steps` in all, and ends with the first epoch. tests/parity/test_schedule.py"""
    count_first_answer_token_twice: bool = False
    """Defect 9. The score that ranks an answer counts its first token twice, which favours answers with a likely first
    token. tests/properties/test_vqa.py"""
    heat_map_averages_padding: bool = False
    """Defect 21. A phrase's heat map is the mean over the padded length, so longer phrases in the batch make it paler.
    tests/properties/test_grounding.py"""
    iou_in_whole_pixels: bool = False
    """Defect 22. Boxes that overlap by one pixel or less in width or height count as apart.
    tests/parity/test_grounding_eval.py"""
    flip_directional_texts: bool = False
    """Defect 12. Images are flipped under texts that say left or right too, which makes such texts false half of the
    time. tests/properties/test_data_transforms.py"""
    autocontrast_overflow: bool = False
    """Defect 23. AutoContrast turns each channel white whose darkest value is above 0.
    tests/parity/test_images.py"""
    sharpness_overflow: bool = False
    """Defect 24. ALBEF's Sharpness wraps around beyond black and white, which leaves bright and dark specks.
    tests/properties/test_data_transforms.py"""


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
    randaugment: tuple[int, int] = (2, 7)
    """Operations drawn and their magnitude of 10 (no colour operations); (0, 0) for none."""
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


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-4
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    """Largest gradient norm."""
    accumulate: int = 1
    """Pieces that an optimiser step's pairs are computed in, each of `run.batch_size`. Their pairs are each other's
    negatives, as in a batch of all of them: the pieces save memory, each being computed again on the way back."""
    head_lr: float = 1.0
    """Multiplies the rate of a task's head, which starts from nothing beside a trained model. VLMo's VQA: 20."""


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["cosine", "linear", "polynomial", "cosine_to_zero"] = "cosine"
    """How the rate falls after a linear warm-up: by ALBEF's `cosine` down to `min_lr`, or by one of VLMo's: `linear`,
    `polynomial`, and `cosine_to_zero`, which ignores `min_lr`."""
    warmup_steps: int = 1000
    warmup_lr: float = 1e-5
    """The rate of the first step. VLMo: 0."""
    min_lr: float = 1e-5
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
class AddedTaskConfig:
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
    released: Released = field(default_factory=Released)
    """Defects of the released code that this run reproduces: `none`, `all`, or single fields."""
    init_from: str | None = None
    """Checkpoint to start from: a run folder or a checkpoint folder. Not found is an error."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not train, by patterns of their names in which `*` stands for anything, such as
    `model.blocks.*.attention.*`. A pattern that fits none is an error."""
