"""Names that VLMo's parts have in published checkpoints, and those of a BEiT that its first stage may start from."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.checkpoints.convert import Count, Drop, Rename, Rule
from diptych.schema import VlmoConfig

_EXPERTS = {"text": "text", "imag": "image", "vl": "fusion"}
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
_INDEX_TABLES = ("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index")
CLASSIFIERS = ("vqa_classifier", "nlvr2_classifier")
"""A task's head: linear, LayerNorm, GELU, linear."""


def published_rules(config: VlmoConfig, classifiers: Sequence[str] = CLASSIFIERS) -> list[Rule]:
    """Names in every released VLMo file → names in the state of a task with a model of `config`."""
    blocks = _BLOCK | {
        f"{theirs}_{published}{part}": f"experts.{ours}.{mine}"
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
        *(Rename(f"{name}.{{i}}.{{p}}", "head.{i}.{p}") for name in classifiers),
        *(Drop(name, "which relative position lies where: computed") for name in _INDEX_TABLES),
        *_text_positions(config),
    ]


def _text_positions(config: VlmoConfig) -> list[Rule]:
    table, ids = "text_embeddings.position_embeddings.weight", "text_embeddings.position_ids"
    if config.positions == "absolute":
        return [Rename(table, "model.text.positions.weight"), Count(ids, of=table)]
    return [
        Drop(table, "never read: positions of texts are relative"),
        Drop(ids, "consecutive numbers of the text positions that are never read"),
    ]
