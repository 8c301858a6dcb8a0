"""Fine-tuning ALBEF at its published size for the five tasks, on the published data.

As released, eight micro-batches make a step, there one a GPU, each with its own negatives: `run.batch_size` is one of
them, and what a GPU must hold. The rate falls with each iteration; the released code lowers it once an epoch, as
`released.schedule_by_epoch=true` does.

Each recipe starts from `init_from`: a run of `albef_base`, or the published pre-trained file after
`diptych convert ALBEF.pth --vocabulary vocab.txt --to runs/albef`. Positions are resized to 384 pixels.
How each layout's files lie and where pictures start from: docs/data.md.

Costs: torch's FlopCounterMode, attention included, texts of 14 pieces, scaled from 2 and 4 layers of full width to 12.
Expected are the paper's results, pre-trained on 4 million images / on 14 million.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.recipes.albef import albef_base
from diptych.schema import (
    AlbefConfig,
    DataConfig,
    EntailmentConfig,
    EvaluationConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    OptimConfig,
    Recipe,
    RetrievalConfig,
    RunConfig,
    ScheduleConfig,
    TaskConfig,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)

GPUS = 8
"""Of the released runs."""
CAPTIONS = 5
"""Of each picture of COCO and Flickr30k. An epoch over Karpathy's files takes one of them from each picture; a released
epoch takes all, as one over ALBEF's lists does (`data.source=albef`: a fifth of `run.epochs`, `task.alpha_ramp=1`)."""
WHOLE_SPLIT = 20_000
"""More records than the published validation splits of the tasks that are judged record by record have."""


def _base(
    name: str, task: TaskConfig, data: DataConfig, *, lr: float, epochs: int, batch_size: int, validate_every: int,
    image_size: int = 384, images_per_text: int = 1,
) -> Recipe:  # fmt: skip
    """A task of the published model, started from its checkpoint. `batch_size`: of one GPU, as released.

    One process computes the pieces of the eight GPUs in turn; eight compute the same with optim.accumulate=1 and eight
    times the run.batch_size.
    """
    base = albef_base()
    assert isinstance(base.model, AlbefConfig)
    vision = replace(base.model.vision, image_size=image_size)
    return replace(
        base,
        name=name,
        model=replace(base.model, vision=vision, images_per_text=images_per_text),
        task=task,
        data=data,
        optim=OptimConfig(lr=lr, weight_decay=0.02, accumulate=GPUS),
        schedule=ScheduleConfig(warmup_steps=0, min_lr=1e-6),
        run=RunConfig(
            epochs=epochs, batch_size=batch_size, validate_every=validate_every, validation_items=WHOLE_SPLIT
        ),
        init_from="runs/albef",
    )


def _data(source: str, crop: tuple[float, float] = (0.5, 1.0), held_out: float = 0.05) -> DataConfig:
    return DataConfig(source=source, crop=crop, held_out=held_out, max_tokens=30, max_tokens_evaluation=30)


def _retrieval(name: str, epochs: int, rerank: int, validate_every: int) -> Recipe:
    """`epochs`: over captions, as released."""
    made = _base(
        name, RetrievalConfig(alpha=0.4, alpha_ramp=float(CAPTIONS)), _data("karpathy"),
        lr=1e-5, epochs=epochs * CAPTIONS, batch_size=32, validate_every=validate_every,
    )  # fmt: skip
    return replace(made, run=replace(made.run, validation_items=1000), evaluation=EvaluationConfig(rerank=rerank))


def albef_base_retrieval_coco() -> Recipe:
    """Fine-tuning on COCO's Karpathy split; measured on its 5,000 test pictures, the best 256 re-ranked.

    Command: `diptych train albef_base_retrieval_coco data.path=dataset_coco.json data.root=coco`
    Cost: 491 GFLOP a pair and step; 2.8 million pairs.
    Expected: TR@1 73.1, IR@1 56.8 / TR@1 77.6, IR@1 60.7.
    """
    return _retrieval("albef_base_retrieval_coco", epochs=5, rerank=256, validate_every=2200)


def albef_base_retrieval_flickr() -> Recipe:
    """Fine-tuning on Flickr30k's Karpathy split; measured on its 1,000 test pictures, the best 128 re-ranked.

    Command: `diptych train albef_base_retrieval_flickr data.path=dataset_flickr30k.json data.root=flickr30k-images`
    Cost: 491 GFLOP a pair and step; 1.45 million pairs.
    Expected: TR@1 94.3, IR@1 82.8 / TR@1 95.9, IR@1 85.6.
    """
    return _retrieval("albef_base_retrieval_flickr", epochs=10, rerank=128, validate_every=560)


def albef_base_entailment() -> Recipe:
    """SNLI-VE: contradiction, neutral or entailment.

    Command: `diptych train albef_base_entailment data.path=snli_ve_train.jsonl data.validation_path=snli_ve_dev.jsonl
    data.test_path=snli_ve_test.jsonl data.root=flickr30k-images`
    Cost: 492 GFLOP a pair and step; 2.6 million pairs.
    Expected: accuracy on test 80.30 / 80.91.
    """
    return _base(
        "albef_base_entailment", EntailmentConfig(alpha=0.4), _data("snli_ve"),
        lr=2e-5, epochs=5, batch_size=32, validate_every=2000,
    )  # fmt: skip


def _vqa(name: str, task: TaskConfig) -> Recipe:
    return _base(name, task, _data("albef", held_out=0.0), lr=2e-5, epochs=8, batch_size=32, validate_every=0)


def albef_base_vqa() -> Recipe:
    """VQA v2 with the answer decoder, trained on ALBEF's lists of train, val and Visual Genome's questions.

    So none is left to validate on, and the last checkpoint counts; the answers of the test are the server's alone.
    Command: `diptych train albef_base_vqa data.path=vqa_train.json,vqa_val.json,vg_qa.json
    data.test_path=vqa_test.json`
    Cost: 496 GFLOP a question (of two answers) and step.
    Expected: test-dev 74.54 / 75.84.
    """
    return _vqa("albef_base_vqa", VqaDecoderConfig(alpha=0.4, candidates=128))


def albef_base_vqa_closed() -> Recipe:
    """VQA v2 with the closed set of 3,129 answers, otherwise as `albef_base_vqa`; ours, for comparison with VLMo.

    Command: `diptych train albef_base_vqa_closed data.path=vqa_train.json,vqa_val.json,vg_qa.json
    data.test_path=vqa_test.json`
    Cost: 492 GFLOP a question and step.
    Expected: no published figure; the decoder has 74.54 / 75.84, VLMo base 76.6 with its closed set.
    """
    return _vqa("albef_base_vqa_closed", VqaClosedSetConfig(alpha=0.4))


def albef_base_assignment() -> Recipe:
    """One more epoch of pre-training before NLVR2: does a text belong to the first picture, the second or neither?

    Command: `diptych train albef_base_assignment data.path=coco.json,vg.json,sbu.json,cc3m.json`
    Cost: 163 GFLOP a pair and step, at 256 pixels.
    Expected: no published figure (chance: 33 %); what it is worth shows in `albef_base_nlvr2`.
    """
    made = _base(
        "albef_base_assignment", TextAssignmentConfig(), DataConfig(source="albef", held_out=0.0),
        lr=2e-5, epochs=1, batch_size=64, validate_every=0, image_size=256, images_per_text=2,
    )  # fmt: skip
    return replace(made, schedule=replace(made.schedule, min_lr=1e-5))


def albef_base_nlvr2() -> Recipe:
    """NLVR2, from the run of `albef_base_assignment`, or from the published text-assignment file, converted.

    Command: `diptych train albef_base_nlvr2 data.path=train.json data.validation_path=dev.json
    data.test_path=test1.json data.root=images`
    Cost: 982 GFLOP a statement about two pictures and step; 0.86 million statements.
    Expected: accuracy on dev 80.24 / 82.55, on test-P 80.50 / 83.14.
    """
    made = _base(
        "albef_base_nlvr2", Nlvr2Config(alpha=0.4), _data("nlvr2"),
        lr=2e-5, epochs=10, batch_size=16, validate_every=670, images_per_text=2,
    )  # fmt: skip
    return replace(made, init_from="runs/albef_base_assignment")


def albef_base_grounding() -> Recipe:
    """RefCOCO+, weakly supervised: retrieval's losses on phrases, no box ever seen. Pictures are shown whole.

    Command: `diptych train albef_base_grounding data.path=refcoco+ data.root=coco` (`refcoco+/dets.json`: proposals)
    Cost: 491 GFLOP a pair and step; 0.6 million pairs.
    Expected: box accuracy on val, testA, testB 58.46, 65.89, 46.25, pre-trained on 14 million.
    """
    return _base(
        "albef_base_grounding", GroundingTrainingConfig(alpha=0.4), _data("refcoco", crop=(1.0, 1.0)),
        lr=1e-5, epochs=5, batch_size=32, validate_every=460,
    )  # fmt: skip
