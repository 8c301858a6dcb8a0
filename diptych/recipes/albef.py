"""ALBEF's pre-training at three sizes. Recipes are values: a variant calls another one and replaces fields."""

from __future__ import annotations

from dataclasses import replace

from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    ScenesConfig,
    ScheduleConfig,
    TextConfig,
    TokenizerConfig,
    VisionConfig,
)


def albef_base() -> Recipe:
    """The paper's size: ViT-B/16 and BERT-base split 6 + 6, 30 epochs at batch 512.

    Command: `diptych train albef_base data.source=jsonl data.path=pairs.jsonl tokenizer.vocabulary=vocab.txt`
    Cost: the paper used 8 A100 for 4 million pairs (§3.5). 216 GFLOP per pair and step
    (torch's FlopCounterMode, texts of 14 tokens), so a CPU step at batch 8 takes seconds.
    Expected: with the published data the results of the paper (Flickr30k TR@1 94.3, IR@1 82.8 after fine-tuning, 4M).
    """
    return Recipe(
        name="albef_base",
        model=AlbefConfig(),
        task=AlbefPretrainConfig(),
        data=DataConfig(source="jsonl"),
        tokenizer=TokenizerConfig(size=30522),
    )


def albef_tower() -> Recipe:
    """A published image encoder on one card: it stays as it is, while BERT and the fusion encoder learn to read it.

    DINOv2 by default. For another one set `init_from`, `data.normalise` and `model.vision.image_size`; the model is
    built as its encoders are (docs/weights.md). `albef_tower_whole` then trains all of it.
    Command: `diptych train albef_tower data.source=jsonl data.path=pairs.jsonl`
    Cost: no gradient passes the image encoder; pieces of 64 pairs in bf16, eight to a step, as the paper's batch.
    Expected: no published figure, and not run to its end here.
    """
    base = albef_base()
    assert isinstance(base.model, AlbefConfig)
    vision = replace(base.model.vision, image_size=224, patch_size=14, layer_scale=True)
    return replace(
        base,
        name="albef_tower",
        model=replace(base.model, vision=vision),
        data=replace(base.data, normalise="imagenet"),
        optim=replace(base.optim, accumulate=8),
        run=replace(base.run, epochs=10, batch_size=64, precision="bf16"),
        init_from="facebook/dinov2-base+bert-base",
        freeze=("model.vision.*",),
    )


def albef_tower_whole() -> Recipe:
    """The second part of `albef_tower`: the image encoder trains too, at a tenth of the rate.

    Command: `diptych train albef_tower_whole data.source=jsonl data.path=pairs.jsonl`, after `albef_tower`
    Cost: as a step of `albef_base` of this image size, with activations recomputed to fit one card.
    Expected: no published figure, and not run to its end here.
    """
    tower = albef_tower()
    return replace(
        tower,
        name="albef_tower_whole",
        optim=replace(tower.optim, lr=1e-5),
        schedule=replace(tower.schedule, warmup_lr=1e-6, min_lr=1e-6),
        run=replace(tower.run, epochs=5, activation_checkpointing=True),
        init_from="runs/albef_tower",
        freeze=(),
    )


TINY_TASK = AlbefPretrainConfig(
    queue_size=1024,
    momentum=0.98,
    fuse_start=200,
    momentum_start=700,
    alpha_ramp=0.2,
    mask_probability=0.4,
    phrases=0.5,
    match_phrases=True,
)
"""First ITC alone, of captions and of phrases, then all losses, then pseudo-targets (docs/decisions.md 12, 95, 139,
141)."""


def albef_tiny() -> Recipe:
    """The demo: 64-pixel scenes, minutes on two CPU cores, from random weights.

    Command: `diptych demo`, or `diptych train albef_tiny` (`data.source=folder data.path=DIR` for your own images)
    Cost: eight minutes on two cores.
    Expected: over 5 seeds a recall@1 of 96.9 % (image to text) and 96.0 % (text to image) among 1,000 unseen scenes,
    95.4 % at worst (chance 0.1 %), of which re-ranking adds 3 points.
    """
    return Recipe(
        name="albef_tiny",
        model=AlbefConfig(
            vision=VisionConfig(image_size=64, patch_size=8, width=128, depth=3, heads=4, stem="conv"),
            text=TextConfig(
                vocab_size=2000, width=128, layers=4, fusion_start=2, heads=4, intermediate=512, norm="pre", dropout=0.0
            ),
            embed_dim=128,
        ),
        task=TINY_TASK,
        # Every scene is new, and captions tell places and sizes, so nothing is augmented.
        data=DataConfig(source="scenes", crop=(1.0, 1.0), flip=0.0, randaugment=(0, 0)),
        tokenizer=TokenizerConfig(size=2000),
        optim=OptimConfig(lr=1.8e-3, kind="muon"),
        schedule=ScheduleConfig(warmup_steps=100, warmup_lr=1e-5, min_lr=1e-5),
        run=RunConfig(steps=1000, batch_size=64, log_every=25, validate_every=200, checkpoint_every=200),
        evaluation=EvaluationConfig(rerank=64, score="sum"),
    )


def albef_small() -> Recipe:
    """A third of the paper's width and half of its depth, for one GPU or a night on a CPU.

    It starts from random weights too, so it begins as `albef_tiny` does. Images are augmented as photographs are. For
    generated scenes, whose captions tell places and sizes, set data.crop=1,1 data.flip=0 data.randaugment=0,0.
    Command: `diptych train albef_small data.source=folder data.path=photos`
    Cost: 4.6 GFLOP per pair and step, a 47th of `albef_base` (torch's FlopCounterMode, texts of 14 tokens).
    Expected: no published figure, and not run to its end here; compare it with `albef_tiny` on the same data.
    """
    tiny = albef_tiny()
    assert isinstance(tiny.model, AlbefConfig)
    return replace(
        tiny,
        name="albef_small",
        model=AlbefConfig(
            vision=replace(tiny.model.vision, image_size=128, patch_size=16, width=256, depth=6),
            text=replace(tiny.model.text, vocab_size=8000, width=256, layers=6, fusion_start=3, intermediate=1024),
            embed_dim=128,
        ),
        task=replace(TINY_TASK, queue_size=8192, momentum=0.995, fuse_start=1000, momentum_start=3000, alpha_ramp=1.0),
        data=DataConfig(source="scenes", scenes=ScenesConfig(size=128)),
        tokenizer=TokenizerConfig(size=8000),
        optim=OptimConfig(lr=5e-4),
        schedule=replace(tiny.schedule, warmup_steps=2000),
        run=RunConfig(epochs=10, batch_size=128),
        evaluation=EvaluationConfig(),
    )
