"""Names that VLMo's parts have in published checkpoints, and those of a BEiT that its first stage may start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from diptych.checkpoints.convert import Absent, Count, Drop, Rename, Rule, Stack
from diptych.schema import VlmoConfig

_EXPERTS = {"text": "language_ffn", "imag": "vision_ffn", "vl": "vl_ffn"}
"""Published and ours."""
_BLOCK = {
    "gamma_1": "gamma_1",
    "gamma_2": "gamma_2",
    "norm1.{p}": "norm1.{p}",
    "attn.q_bias": "attention.q_bias",
    "attn.v_bias": "attention.v_bias",
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.proj.{p}": "attention.out.{p}",
}
_PARTS = {
    "relative_position_bias_table": "positions.table",
    "transformer.cls_token": "image.cls_token",
    "transformer.pos_embed": "image.positions",
    "transformer.patch_embed.proj.{p}": "image.proj.{p}",
    "transformer.norm.{p}": "norm.{p}",
    "text_embeddings.word_embeddings.weight": "text.words.weight",
    "text_embeddings.token_type_embeddings.weight": "text.types.weight",
    "text_embeddings.LayerNorm.{p}": "text.norm.{p}",
    "token_type_embeddings.weight": "types.weight",
    "pooler.dense.{p}": "pooler.{p}",
    "mlm_score.transform.dense.{p}": "word_head.dense.{p}",
    "mlm_score.transform.LayerNorm.{p}": "word_head.norm.{p}",
    "mlm_score.decoder.weight": "word_head.decoder.weight",
    "mlm_score.bias": "word_head.bias",
    "itm_score.fc.{p}": "match_head.{p}",
    "itc_image_proj.fc.weight": "image_proj.weight",
    "itc_text_proj.fc.weight": "text_proj.weight",
    "itc_vl_image_proj.fc.weight": "vl_image_proj.weight",
    "itc_vl_text_proj.fc.weight": "vl_text_proj.weight",
    "logit_scale": "log_scale",
    "logit_vl_scale": "vl_log_scale",
}
INDEX_TABLES = ("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index")
_COMPUTED = "which relative position lies where: computed"
CLASSIFIERS = ("vqa_classifier", "nlvr2_classifier")
"""A task's head: linear, LayerNorm, GELU, linear."""


def published_rules(config: VlmoConfig, classifiers: Sequence[str] = CLASSIFIERS) -> list[Rule]:
    """Names in every released VLMo file → names in the state of a task with a model of `config`."""
    blocks = _BLOCK | {
        f"{theirs}_{published}{part}": f"{ours}.{mine}"
        for published, ours in _EXPERTS.items()
        for theirs, part, mine in (
            ("norm2", ".{p}", "norm.{p}"), ("mlp", ".fc1.{p}", "fc1.{p}"), ("mlp", ".fc2.{p}", "fc2.{p}")
        )
    }  # fmt: skip
    return [
        *(Rename(published, f"model.{ours}") for published, ours in _PARTS.items()),
        *(
            Rename(f"transformer.blocks.{{i}}.{theirs}", f"model.blocks.{{i}}.{ours}")
            for theirs, ours in blocks.items()
        ),
        *(Rename(f"{name}.{layer}.{{p}}", f"head.{layer}.{{p}}") for name in classifiers for layer in (0, 1, 3)),
        *(Drop(name, _COMPUTED) for name in INDEX_TABLES),
        *_text_positions(config),
        *(Absent(part, "released VLMo has neither teacher nor queue") for part in ("teacher", "teacher_head", "queue")),
    ]


def _text_positions(config: VlmoConfig) -> list[Rule]:
    table, ids = "text_embeddings.position_embeddings.weight", "text_embeddings.position_ids"
    if config.positions == "absolute":
        return [Rename(table, "model.text.positions.weight"), Count(ids, of=table)]
    return [
        Drop(table, "never read: positions of texts are relative"),
        Drop(ids, "consecutive numbers of the text positions that are never read"),
    ]


# --------------------------------------------------------------------------- BEiT

_LAYER_TABLE = "blocks.{}.attn.relative_position_bias_table"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
"""A BEiT's while it is pre-trained: one for all layers."""


_START: tuple[Rule, ...] = (
    Drop("lm_head.{p}", "predicts codes of a visual tokenizer that the file does not hold"),
    Drop("mask_token", "stood for hidden patches in its own pre-training"),
    Absent("model.norm", "not in the file: fresh"),
)
_STAGE: tuple[Rule, ...] = (
    Rename("lm_head.{p}", "head.scores.{p}"),
    Rename("mask_token", "head.mask_token"),
    Absent("tokenizer", "the visual tokenizer is no part of a BEiT"),
)


def beit_stage_rules(config: VlmoConfig) -> list[Rule]:
    """Names in a BEiT as it is pre-trained → names in the state of VLMo's first stage, for export (`as_beit`)."""
    return beit_rules(config, _STAGE)


def as_beit(state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
    """The state of VLMo's first stage as a BEiT computes it: positions of patches alone, no token types.

    The type that is added to each of an image's tokens goes into what these are made of.
    """
    kind, made = state["model.types.weight"][1], dict(state)
    for name in ("model.image.cls_token", "model.image.proj.bias", "head.mask_token"):
        made[name] = state[name] + kind
    made["head.mask_token"] = made["head.mask_token"].reshape(1, 1, -1)
    if config.positions == "relative":
        rows = len(made["model.positions.table"]) - 2 * config.max_positions - 2
        made["model.positions.table"] = made["model.positions.table"][:rows]
    return made


def beit_rules(config: VlmoConfig, stage: Sequence[Rule] = _START) -> list[Rule]:
    """Names in a BEiT, as released or of timm → names in the state of a stage with a model of `config` (§3.4).

    The table of relative positions comes without the rows of texts. `stage`: what becomes of BEiT's own pre-training.
    """
    blocks = _BLOCK | {
        "norm2.{p}": "vision_ffn.norm.{p}",
        "mlp.fc1.{p}": "vision_ffn.fc1.{p}",
        "mlp.fc2.{p}": "vision_ffn.fc2.{p}",
    }
    tables = tuple(_LAYER_TABLE.format(number) for number in range(config.depth))
    return [
        Rename("cls_token", "model.image.cls_token"),
        Rename("pos_embed", "model.image.positions"),
        Rename("patch_embed.proj.{p}", "model.image.proj.{p}"),
        Rename("norm.{p}", "model.norm.{p}"),
        *(Rename(f"blocks.{{i}}.{theirs}", f"model.blocks.{{i}}.{ours}") for theirs, ours in blocks.items()),
        Stack(tables, "model.positions.table", dim=1),
        Rename(SHARED_TABLE, "model.positions.table"),
        Drop("blocks.{i}.attn.relative_position_index", _COMPUTED),
        Drop("rel_pos_bias.relative_position_index", _COMPUTED),
        Drop("fc_norm.{p}", "norm of pooled patches, for classes of other pictures"),
        Drop("head.{p}", "classes of other pictures"),
        *stage,
        Absent("model.types", "a BEiT tells no texts from images: random"),
        *(Absent(f"model.{part}", "a BEiT reads no text: random") for part in ("text", "word_head")),
        Absent("model.blocks.{i}.language_ffn", "a BEiT reads no text: random"),
        Absent("model.blocks.{i}.vl_ffn", "a BEiT fuses nothing: random"),
        Absent("model.pooler", "a BEiT fuses nothing: random"),
        *absent(*ALIGNMENT, "match_head"),
    ]


ALIGNMENT = ("log_scale", "vl_log_scale", "image_proj", "text_proj", "vl_image_proj", "vl_text_proj")
"""What only the contrasts have."""


def absent(*parts: str) -> list[Rule]:
    """Parts of the model that the published file lacks because its stage or task does not use them."""
    return [Absent(f"model.{part}", "its stage does not use it: random") for part in parts]
