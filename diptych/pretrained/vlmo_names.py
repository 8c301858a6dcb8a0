"""Names of VLMo's parameters in published checkpoints, and of a BEiT's → their names here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from diptych.checkpoints.convert import Absent, Count, Drop, Rename, Rule, Stack
from diptych.pretrained.formats import unused
from diptych.schema import VlmoConfig

_EXPERTS = {"text": "language_ffn", "imag": "vision_ffn", "vl": "vl_ffn"}
"""Published names of the experts → ours."""
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
_COMPUTED = "the index of relative positions, which is computed"
CLASSIFIERS = ("vqa_classifier", "nlvr2_classifier")
"""The heads of tasks: linear, LayerNorm, GELU, linear."""


def published_rules(config: VlmoConfig, classifiers: Sequence[str] = CLASSIFIERS) -> list[Rule]:
    """Makes the rules: names in every released VLMo file → names in the state of a task with a model of `config`."""
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
        *(
            Absent(part, "released VLMo has neither momentum encoder nor queue")
            for part in ("momentum_encoder", "momentum_head", "queue")
        ),
    ]


def _text_positions(config: VlmoConfig) -> list[Rule]:
    table, ids = "text_embeddings.position_embeddings.weight", "text_embeddings.position_ids"
    if config.positions == "absolute":
        return [Rename(table, "model.text.positions.weight"), Count(ids, of=table)]
    return [
        Drop(table, "never used: positions of texts are relative"),
        Drop(ids, "never used: it numbers the positions that are dropped"),
    ]


# --------------------------------------------------------------------------- BEiT

_LAYER_TABLE = "blocks.{}.attn.relative_position_bias_table"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
"""The table of a BEiT that is still pre-trained, which has one for all layers."""


_START: tuple[Rule, ...] = (
    Drop("lm_head.{p}", "predicts codes of a visual tokenizer that the file does not hold"),
    Drop("mask_token", "replaced masked patches in BEiT's own pre-training"),
    Absent("model.norm", "not in the file: fresh"),
)
"""What becomes of BEiT's own pre-training, where VLMo's second stage starts from it."""
_STAGE: tuple[Rule, ...] = (
    Rename("lm_head.{p}", "head.scores.{p}"),
    Rename("mask_token", "head.mask_token"),
    Absent("tokenizer", "the visual tokenizer is not part of a BEiT"),
)
"""And where VLMo's first stage, which is this pre-training, is exported."""


def beit_stage_rules(config: VlmoConfig) -> list[Rule]:
    """Makes the rules: names in a pre-trained BEiT → names in the state of VLMo's first stage, for export."""
    return beit_rules(config, _STAGE)


def as_beit(state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
    """Changes the state of VLMo's first stage into that of a BEiT, which has no token types and no text positions.

    VLMo adds the image's type to each of its tokens. Here it is added to the parameters that these tokens are made of.
    """
    image_type, beit = state["model.types.weight"][1], dict(state)
    for name in ("model.image.cls_token", "model.image.proj.bias", "head.mask_token"):
        beit[name] = state[name] + image_type
    beit["head.mask_token"] = beit["head.mask_token"].reshape(1, 1, -1)
    if config.positions == "relative":
        rows = len(beit["model.positions.table"]) - 2 * config.max_positions - 2
        beit["model.positions.table"] = beit["model.positions.table"][:rows]
    return beit


def beit_rules(config: VlmoConfig, stage: Sequence[Rule] = _START) -> list[Rule]:
    """Makes the rules: names in a BEiT, released or of timm → names in the state of a stage (VLMo §3.4).

    The table of relative positions has no rows of texts. `stage`: the rules for BEiT's own pre-training.
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
        Drop("fc_norm.{p}", "normalises pooled patches, for classes of other pictures"),
        Drop("head.{p}", "classes of other pictures"),
        *stage,
        Absent("model.types", "a BEiT has no token types: random"),
        *(Absent(f"model.{part}", "a BEiT reads no text: random") for part in ("text", "word_head")),
        Absent("model.blocks.{i}.language_ffn", "a BEiT reads no text: random"),
        Absent("model.blocks.{i}.vl_ffn", "a BEiT fuses nothing: random"),
        Absent("model.pooler", "a BEiT fuses nothing: random"),
        *unused(*ALIGNMENT, "match_head"),
    ]


ALIGNMENT = ("log_scale", "vl_log_scale", "image_proj", "text_proj", "vl_image_proj", "vl_text_proj")
"""Parts that only image-text contrast uses."""
