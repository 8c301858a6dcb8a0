"""The stages before VLMo's pre-training on pairs: the visual tokenizer, then images alone, then texts alone."""

from __future__ import annotations

from dataclasses import replace

from diptych.recipes.vlmo import vlmo_base, vlmo_base_plus, vlmo_large, vlmo_tiny
from diptych.schema import (
    DataConfig,
    LanguageStageConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    ScenesConfig,
    ScheduleConfig,
    VisionStageConfig,
    VisualTokenizerConfig,
    VisualTokenizerTrainingConfig,
    VlmoConfig,
)

ALONE = ScenesConfig(seed=1)
"""Scenes for the stages on one modality, which differ from those of the pairs."""


# --------------------------------------------------------------------------- the visual tokenizer


def visual_tokenizer_base() -> Recipe:
    """The published size of the visual tokens: 14 × 14 codes of 8,192 (BEiT §2.1), trained as DALL-E's discrete VAE.

    BEiT uses DALL-E's weights instead. Their training penalises each patch's divergence from a uniform distribution;
    here the penalty is on the codes' mean use.
    Command: `diptych train visual_tokenizer_base data.path=pictures`
    Cost: DALL-E's took three million steps of 512 images (arXiv 2102.12092, appendix A).
    Expected: no published figure, and not run to its end here; the perplexity shows whether codes fall out of use.
    """
    return Recipe(
        name="visual_tokenizer_base",
        model=VisualTokenizerConfig(),
        task=VisualTokenizerTrainingConfig(anneal_steps=150_000, kl=0.1),
        data=DataConfig(source="pictures", crop=(0.08, 1.0), randaugment=(0, 0), normalise="vlmo"),
        optim=OptimConfig(lr=1e-4, weight_decay=1e-4),
        schedule=ScheduleConfig(warmup_steps=5000, warmup_lr=0.0, min_lr=1.25e-6),
        run=RunConfig(steps=3_000_000, batch_size=512),
    )


def visual_tokenizer_tiny() -> Recipe:
    """The demo's visual tokenizer: 8 × 8 codes of 128 for a scene of 64 pixels.

    Command: `diptych train visual_tokenizer_tiny`
    Cost: four minutes of one core.
    Expected: 53 % of the variance reconstructed (35 % by each image's mean colour), 127 codes in use, perplexity 95.
    """
    return Recipe(
        name="visual_tokenizer_tiny",
        model=VisualTokenizerConfig(
            image_size=64, patch_size=8, codes=128, code_width=64, width=128, residual_blocks=2
        ),
        task=VisualTokenizerTrainingConfig(anneal_steps=150, kl=0.1),
        data=replace(vlmo_tiny().data, scenes=ALONE),
        optim=OptimConfig(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98)),
        schedule=ScheduleConfig(warmup_steps=50, warmup_lr=1e-5, min_lr=1e-5),
        run=RunConfig(steps=300, batch_size=64, log_every=25, validate_every=200, checkpoint_every=200),
    )


# --------------------------------------------------------------------------- stage 1, on images


def _vision(name: str, pairs: Recipe, visual: Recipe, min_block: int = VisionStageConfig.min_block) -> Recipe:
    """Builds the first stage of the model that `pairs` trains, with BEiT's settings and the codes of `visual`."""
    assert isinstance(visual.model, VisualTokenizerConfig)
    return replace(
        pairs,
        name=name,
        task=VisionStageConfig(tokenizer=f"runs/{visual.name}", min_block=min_block, visual=visual.model),
        data=visual.data,
        optim=OptimConfig(lr=1.5e-3, weight_decay=0.05, clip=3.0),
        schedule=ScheduleConfig(warmup_steps=6250, warmup_lr=0.0, min_lr=1e-5),
        run=RunConfig(epochs=800, batch_size=2048),
        init_from=None,
    )


def vlmo_base_vision() -> Recipe:
    """Masked image modelling for `vlmo_base` with BEiT's settings (BEiT §3.1), except for its colour jitter.

    The warm-up is ten epochs of ImageNet-1K's 1.28 million images. The published VLMo starts from published BEiT
    weights instead, which `diptych convert` reads.
    Command: `diptych train vlmo_base_vision data.path=pictures`, after `visual_tokenizer_base`
    Cost: BEiT's 500,000 steps of 2,048 images took five days on 16 V100.
    Expected: no published figure for the accuracy of the codes.
    """
    return _vision("vlmo_base_vision", vlmo_base(), visual_tokenizer_base())


def vlmo_base_plus_vision() -> Recipe:
    """The same for `vlmo_base_plus`.

    Command: `diptych train vlmo_base_plus_vision data.path=pictures`, after `visual_tokenizer_base`
    Cost: as `vlmo_base_vision`.
    Expected: no published figure for the accuracy of the codes.
    """
    return _vision("vlmo_base_plus_vision", vlmo_base_plus(), visual_tokenizer_base())


def vlmo_large_vision() -> Recipe:
    """The same for `vlmo_large`, with a smaller decay rate of Adam's second moment.

    Command: `diptych train vlmo_large_vision data.path=pictures`, after `visual_tokenizer_base`
    Cost: about three and a half times `vlmo_base_vision`.
    Expected: no published figure for the accuracy of the codes.
    """
    recipe = _vision("vlmo_large_vision", vlmo_large(), visual_tokenizer_base())
    return replace(recipe, optim=replace(recipe.optim, betas=(0.9, 0.98)))


def vlmo_tiny_vision() -> Recipe:
    """The demo's first stage: about 26 of a scene's 64 patches are masked.

    Command: `diptych train vlmo_tiny_vision`, after `visual_tokenizer_tiny`
    Cost: five minutes of one core.
    Expected: 13 % of the masked patches' codes predicted in 500 unseen scenes (one run); 1 % by chance.
    """
    recipe = _vision("vlmo_tiny_vision", vlmo_tiny(), visual_tokenizer_tiny(), min_block=2)
    return replace(
        recipe,
        optim=OptimConfig(lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98)),
        schedule=ScheduleConfig(warmup_steps=100, warmup_lr=1e-5, min_lr=1e-5),
        run=RunConfig(steps=300, batch_size=64, log_every=25, validate_every=200, checkpoint_every=200),
    )


# --------------------------------------------------------------------------- stage 2, on texts


def frozen_attention(model: VlmoConfig) -> tuple[str, ...]:
    """Returns what the language stage freezes: attention, its norm and the layer scales, learnt on images (VLMo §3.4).

    V-FFNs do not train in any case, because texts do not reach them.
    """
    scales = ("model.blocks.*.gamma_*",) if model.layer_scale is not None else ()
    return ("model.blocks.*.attention.*", "model.blocks.*.norm1.*", *scales)


def _language(name: str, pairs: Recipe, longest: int) -> Recipe:
    """Builds the second stage of the model that `pairs` trains, on texts of at most `longest` tokens."""
    assert isinstance(pairs.model, VlmoConfig)
    return replace(
        pairs,
        name=name,
        model=replace(pairs.model, max_positions=longest),
        task=LanguageStageConfig(),
        data=DataConfig(source="texts", max_tokens=longest, max_tokens_evaluation=longest),
        init_from=f"runs/{pairs.name}_vision",
        freeze=frozen_attention(pairs.model),
    )


def vlmo_base_language() -> Recipe:
    """Masked language modelling for `vlmo_base` on texts of 196 tokens. Batch, rate and steps are those on pairs.

    Command: `diptych train vlmo_base_language data.path=texts tokenizer.vocabulary=vocab.txt`, after `vlmo_base_vision`
    Cost: not published.
    Expected: no published figure for accuracy or perplexity. Published: English Wikipedia and BookCorpus (VLMo §4.1).
    """
    return _language("vlmo_base_language", vlmo_base(), 196)


def vlmo_base_plus_language() -> Recipe:
    """The same for `vlmo_base_plus`. The stage on pairs keeps the first of its text positions.

    Command: `diptych train vlmo_base_plus_language data.path=texts tokenizer.vocabulary=vocab.txt`, after
    `vlmo_base_plus_vision`
    Cost: not published.
    Expected: no published figure.
    """
    return _language("vlmo_base_plus_language", vlmo_base_plus(), 196)


def vlmo_large_language() -> Recipe:
    """The same for `vlmo_large`.

    Command: `diptych train vlmo_large_language data.path=texts tokenizer.vocabulary=vocab.txt`, after
    `vlmo_large_vision`
    Cost: not published.
    Expected: no published figure.
    """
    return _language("vlmo_large_language", vlmo_large(), 196)


def vlmo_tiny_language() -> Recipe:
    """The demo's second stage, on captions of scenes that the other stages do not see.

    Command: `diptych train vlmo_tiny_language`, after `vlmo_tiny_vision`
    Cost: three minutes of one core.
    Expected: 43 % of the masked tokens predicted in unseen captions (one run); 26 % by the most frequent token.
    """
    tiny = vlmo_tiny()
    assert isinstance(tiny.model, VlmoConfig)
    return replace(
        _language("vlmo_tiny_language", tiny, tiny.model.max_positions),
        task=LanguageStageConfig(mask_probability=0.4),
        data=replace(tiny.data, scenes=replace(ALONE, seed=2)),
        optim=OptimConfig(lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98)),
        schedule=ScheduleConfig(warmup_steps=100, warmup_lr=1e-5, min_lr=1e-5),
        run=RunConfig(steps=300, batch_size=128, log_every=25, validate_every=200, checkpoint_every=200),
    )
