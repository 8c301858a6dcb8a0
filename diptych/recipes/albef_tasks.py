"""The five tasks for the demo's ALBEF, minutes each on two CPU cores. Published settings: albef_base_tasks.py."""

from __future__ import annotations

from dataclasses import replace

from diptych.recipes.albef import albef_tiny
from diptych.schema import (
    AlbefConfig,
    DecoderConfig,
    EntailmentConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    OptimConfig,
    Recipe,
    RetrievalConfig,
    RunConfig,
    ScheduleConfig,
    TaskConfig,
    TextAssignmentConfig,
    VlmoConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)


def tiny_task(
    tiny: Recipe, name: str, task: TaskConfig, steps: int, optim: OptimConfig, images_per_text: int, init_from: str
) -> Recipe:
    """Builds a task on generated scenes that starts from a demo's model, whose recipe is `tiny`."""
    assert isinstance(tiny.model, AlbefConfig | VlmoConfig)
    return replace(
        tiny,
        name=name,
        model=replace(tiny.model, images_per_text=images_per_text),
        task=task,
        optim=optim,
        schedule=ScheduleConfig(warmup_steps=100, warmup_lr=1e-5, min_lr=1e-5),
        run=RunConfig(steps=steps, batch_size=64, log_every=25, validate_every=500, checkpoint_every=500),
        init_from=init_from,
    )


TUNING = OptimConfig(lr=6e-4, betas=(0.9, 0.98), kind="muon")
"""A third of pre-training's rate (docs/decisions.md 129)."""


BOXES = GroundingConfig(mode="itc", layer="all", threshold=0.25)
"""Boxes of maps reach down to a quarter of the peak; in class activation maps to a fifth (Zhou et al., CVPR 2016)."""


def tuned_gently(recipe: Recipe) -> Recipe:
    """Trains at a third of the tasks' rate, which keeps what the model could locate before (docs/decisions.md 138)."""
    return replace(recipe, optim=replace(recipe.optim, lr=TUNING.lr / 3))


def asked_together(recipe: Recipe) -> Recipe:
    """Asks four texts about each image, twice as many a step about half as many images (docs/decisions.md 142)."""
    data = replace(recipe.data, texts_per_image=4, scenes=replace(recipe.data.scenes, count=400_000))
    return replace(recipe, data=data, run=replace(recipe.run, batch_size=2 * recipe.run.batch_size))


def _tiny(name: str, task: TaskConfig, steps: int, images_per_text: int = 1) -> Recipe:
    return tiny_task(albef_tiny(), name, task, steps, TUNING, images_per_text, "runs/demo")


def albef_tiny_retrieval() -> Recipe:
    """Retrieval: ITC and ITM continue at a lower rate, with every caption of an image as a positive.

    Command: `diptych train albef_tiny_retrieval`, after `diptych demo`
    Cost: minutes on two cores.
    Expected: recall@1 97.7 and 97.3 %; 97.1 and 96.0 % before (one run).
    """
    return _tiny("albef_tiny_retrieval", RetrievalConfig(queue_size=1024, momentum=0.98), 500)


def albef_tiny_grounding() -> Recipe:
    """Grounding: retrieval's losses on phrases; boxes from the attention of [CLS] in all image blocks.

    It reads mode itc, because fusion layers locate worse (docs/decisions.md 39, 140).
    Command: `diptych train albef_tiny_grounding`, after `diptych demo`
    Cost: minutes on two cores.
    Expected: accuracy 47 %, 33 % from the map alone (one run); the most central proposal 19 %, the largest 14 %.
    """
    task = GroundingTrainingConfig(queue_size=1024, momentum=0.98, boxes=BOXES)
    return tuned_gently(_tiny("albef_tiny_grounding", task, 300))


def albef_tiny_entailment() -> Recipe:
    """Visual entailment on generated hypotheses, without momentum encoder, because their labels have no noise.

    Command: `diptych train albef_tiny_entailment`, after `diptych demo`
    Cost: minutes on two cores.
    Expected: accuracy 87 % (one run); 30 % on blank images in an earlier version.
    """
    return asked_together(_tiny("albef_tiny_entailment", EntailmentConfig(alpha=0.0), 2000))


def albef_tiny_vqa() -> Recipe:
    """VQA with a decoder that ranks the answers of the training data.

    Command: `diptych train albef_tiny_vqa`, after `diptych demo`
    Cost: minutes on two cores.
    Expected: VQA accuracy 88 % (one run); 28 % on blank images in an earlier version.
    """
    decoder = DecoderConfig(layers=2, heads=4, intermediate=512, norm="pre", dropout=0.0)
    task = VqaDecoderConfig(decoder=decoder, alpha=0.0, answer_count=200)
    return asked_together(_tiny("albef_tiny_vqa", task, 2000))


def albef_tiny_vqa_closed() -> Recipe:
    """VQA with a classifier over the 200 most frequent answers.

    Command: `diptych train albef_tiny_vqa_closed`, after `diptych demo`
    Cost: minutes on two cores.
    Expected: VQA accuracy 85 % (one run); 28 % on blank images in an earlier version.
    """
    return asked_together(_tiny("albef_tiny_vqa_closed", VqaClosedSetConfig(answer_count=200), 2000))


def albef_tiny_assignment() -> Recipe:
    """Text assignment, the stage before `albef_tiny_nlvr2`: which of two images does a caption describe?

    It starts from entailment, after which the model can read a claim (docs/decisions.md 40).
    Command: `diptych train albef_tiny_assignment`, after `diptych train albef_tiny_entailment`
    Cost: minutes on two cores.
    Expected: accuracy 91 % (one run); 33 % by chance.
    """
    recipe = _tiny("albef_tiny_assignment", TextAssignmentConfig(), 400, images_per_text=2)
    return replace(recipe, init_from="runs/albef_tiny_entailment")


def albef_tiny_nlvr2() -> Recipe:
    """NLVR2 on generated pairs of images.

    Command: `diptych train albef_tiny_nlvr2`, after `diptych train albef_tiny_assignment`
    Cost: minutes on two cores.
    Expected: accuracy 88 %, consistency 67 % (one run); 50 and 0 % on blank images in an earlier version.
    """
    recipe = _tiny("albef_tiny_nlvr2", Nlvr2Config(alpha=0.0), 1600, images_per_text=2)
    return replace(recipe, init_from="runs/albef_tiny_assignment")
