"""The five tasks for the demo's VLMo, minutes each on two CPU cores. Published settings: vlmo_base_tasks.py.

They train as ALBEF's do (albef_tasks.py), but none has a momentum encoder.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.recipes.albef_tasks import BOXES, TUNING, asked_together, tiny_task, tuned_gently
from diptych.recipes.vlmo import vlmo_tiny
from diptych.schema import (
    DecoderConfig,
    EntailmentConfig,
    EvaluationConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    TaskConfig,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)


def _tiny(name: str, task: TaskConfig, steps: int, images_per_text: int = 1) -> Recipe:
    return tiny_task(vlmo_tiny(), name, task, steps, TUNING, images_per_text, "runs/demo-vlmo")


def vlmo_tiny_retrieval() -> Recipe:
    """Retrieval with the dual encoder: ITC continues with every caption of an image as a positive; nothing is fused.

    Command: `diptych train vlmo_tiny_retrieval`, after `diptych demo --model vlmo`
    Cost: minutes on two cores.
    Expected: recall@1 94.1 and 94.9 %; 92.6 and 91.7 % before (one run).
    """
    task = RetrievalConfig(keys="batch", queue_size=0, alpha=0.0, itm=0.0)
    return replace(_tiny("vlmo_tiny_retrieval", task, 500), evaluation=EvaluationConfig(rerank=0))


def vlmo_tiny_grounding() -> Recipe:
    """Grounding: retrieval's losses on phrases; boxes from the attention of [CLS] in all blocks.

    ITM trains too, so that boxes can be read from the fusion attention: `task.boxes.mode=itm task.boxes.layer=2`.
    Command: `diptych train vlmo_tiny_grounding`, after `diptych demo --model vlmo`
    Cost: minutes on two cores.
    Expected: 49 % among proposals, 31 % from the map alone (one run); the most central proposal 19 %, the largest 14 %.
    """
    task = GroundingTrainingConfig(keys="batch", queue_size=0, alpha=0.0, boxes=BOXES)
    return tuned_gently(_tiny("vlmo_tiny_grounding", task, 300))


def vlmo_tiny_entailment() -> Recipe:
    """Visual entailment on generated hypotheses.

    Command: `diptych train vlmo_tiny_entailment`, after `diptych demo --model vlmo`
    Cost: minutes on two cores.
    Expected: 86 % (one run); 30 % on blank images, with single texts in an earlier version.
    """
    return asked_together(_tiny("vlmo_tiny_entailment", EntailmentConfig(alpha=0.0, head="gelu"), 2000))


def vlmo_tiny_vqa() -> Recipe:
    """VQA with a decoder that reads the fused text and image. Its first layer starts as a copy of the fusion block.

    Command: `diptych train vlmo_tiny_vqa`, after `diptych demo --model vlmo`
    Cost: minutes on two cores.
    Expected: 82 % (one run); 27 % on blank images, with single questions in an earlier version.
    """
    decoder = DecoderConfig(layers=2, heads=4, intermediate=512, norm_eps=1e-6, norm="pre", dropout=0.0)
    task = VqaDecoderConfig(decoder=decoder, alpha=0.0, answer_count=200)
    return asked_together(_tiny("vlmo_tiny_vqa", task, 2000))


def vlmo_tiny_vqa_closed() -> Recipe:
    """VQA with a classifier over the 200 most frequent answers.

    Command: `diptych train vlmo_tiny_vqa_closed`, after `diptych demo --model vlmo`
    Cost: minutes on two cores.
    Expected: VQA accuracy not measured; 28 % on blank images in an earlier version.
    """
    return asked_together(_tiny("vlmo_tiny_vqa_closed", VqaClosedSetConfig(answer_count=200), 2000))


def vlmo_tiny_assignment() -> Recipe:
    """Text assignment, the stage before `vlmo_tiny_nlvr2`: which of two images does a caption describe?

    Command: `diptych train vlmo_tiny_assignment`, after `diptych train vlmo_tiny_entailment`
    Cost: minutes on two cores.
    Expected: not measured; 33 % by chance.
    """
    recipe = _tiny("vlmo_tiny_assignment", TextAssignmentConfig(), 400, images_per_text=2)
    return replace(recipe, init_from="runs/vlmo_tiny_entailment")


def vlmo_tiny_nlvr2() -> Recipe:
    """NLVR2 on generated pairs of images: the statement is fused with each of them, and the two vectors are classified.

    Command: `diptych train vlmo_tiny_nlvr2`, after `diptych train vlmo_tiny_assignment`
    Cost: minutes on two cores.
    Expected: not measured; 50 % accuracy and 0 % consistency on blank images.
    """
    recipe = _tiny("vlmo_tiny_nlvr2", Nlvr2Config(alpha=0.0, head="gelu"), 1600, images_per_text=2)
    return replace(recipe, init_from="runs/vlmo_tiny_assignment")
