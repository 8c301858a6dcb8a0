"""Names of ALBEF's parameters in published checkpoints → their names here."""

from __future__ import annotations

from diptych.checkpoints.convert import Alias, Count, Drop, Rename, Rule, Stack
from diptych.pretrained.formats import unused
from diptych.schema import AlbefConfig


def _model_rules(mark: str, ours: str, with_words: bool = True) -> list[Rule]:
    """Makes the rules for one copy of the model. Its `mark` is "" for the student and "_m" for the momentum encoder.

    `with_words`: whether the file has a word head. The names of the text encoder are one level deeper then.
    """
    vision, text = f"visual_encoder{mark}", f"text_encoder{mark}"
    bert = f"{text}.bert" if with_words else text
    renames = {
        f"{vision}.cls_token": "vision.embedding.cls_token",
        f"{vision}.pos_embed": "vision.embedding.positions",
        f"{vision}.patch_embed.proj.{{p}}": "vision.embedding.proj.{p}",
        f"{vision}.blocks.{{i}}.attn.qkv.{{p}}": "vision.blocks.{i}.qkv.{p}",
        f"{vision}.blocks.{{i}}.attn.proj.{{p}}": "vision.blocks.{i}.out.{p}",
        f"{vision}.blocks.{{i}}.mlp.fc1.{{p}}": "vision.blocks.{i}.fc1.{p}",
        f"{vision}.blocks.{{i}}.mlp.fc2.{{p}}": "vision.blocks.{i}.fc2.{p}",
        f"{vision}.blocks.{{i}}.norm1.{{p}}": "vision.blocks.{i}.norm1.{p}",
        f"{vision}.blocks.{{i}}.norm2.{{p}}": "vision.blocks.{i}.norm2.{p}",
        f"{vision}.norm.{{p}}": "vision.norm.{p}",
        f"vision_proj{mark}.{{p}}": "image_proj.{p}",
        f"text_proj{mark}.{{p}}": "text_proj.{p}",
    }
    return [
        *(Rename(published, ours + name) for published, name in renames.items()),
        *_bert_rules(bert, f"{ours}text."),
        *(_word_rules(f"{text}.cls.predictions", bert, f"{ours}word_head") if with_words else []),
    ]


def _bert_rules(bert: str, ours: str) -> list[Rule]:
    """Makes the rules for a BERT whose published names begin with `bert`. Its layers may have cross-attention."""
    words, layer, target = f"{bert}.embeddings", f"{bert}.encoder.layer.{{i}}", f"{ours}layers.{{i}}"
    attention, cross = f"{layer}.attention", f"{layer}.crossattention"
    return [
        Rename(f"{words}.word_embeddings.weight", f"{ours}embedding.words.weight"),
        Rename(f"{words}.position_embeddings.weight", f"{ours}embedding.positions.weight"),
        Rename(f"{words}.token_type_embeddings.weight", f"{ours}embedding.types.weight"),
        Rename(f"{words}.LayerNorm.{{p}}", f"{ours}embedding.norm.{{p}}"),
        Stack(tuple(f"{attention}.self.{n}.{{p}}" for n in ("query", "key", "value")), f"{target}.attention.qkv.{{p}}"),
        Rename(f"{attention}.output.dense.{{p}}", f"{target}.attention.out.{{p}}"),
        Rename(f"{attention}.output.LayerNorm.{{p}}", f"{target}.attention_norm.{{p}}"),
        Rename(f"{cross}.self.query.{{p}}", f"{target}.cross.q.{{p}}"),
        Stack(tuple(f"{cross}.self.{n}.{{p}}" for n in ("key", "value")), f"{target}.cross.kv.{{p}}"),
        Rename(f"{cross}.output.dense.{{p}}", f"{target}.cross.out.{{p}}"),
        Rename(f"{cross}.output.LayerNorm.{{p}}", f"{target}.cross_norm.{{p}}"),
        Rename(f"{layer}.intermediate.dense.{{p}}", f"{target}.fc1.{{p}}"),
        Rename(f"{layer}.output.dense.{{p}}", f"{target}.fc2.{{p}}"),
        Rename(f"{layer}.output.LayerNorm.{{p}}", f"{target}.mlp_norm.{{p}}"),
        Count(f"{words}.position_ids", of=f"{words}.position_embeddings.weight"),
    ]


def _word_rules(words: str, bert: str, ours: str) -> list[Rule]:
    """Makes the rules for a word head whose names begin with `words`. Its matrix is the word table of `bert`."""
    return [
        Rename(f"{words}.transform.dense.{{p}}", f"{ours}.dense.{{p}}"),
        Rename(f"{words}.transform.LayerNorm.{{p}}", f"{ours}.norm.{{p}}"),
        Rename(f"{words}.bias", f"{ours}.bias"),
        Alias(f"{words}.decoder.weight", of=f"{bert}.embeddings.word_embeddings.weight"),
        Alias(f"{words}.decoder.bias", of=f"{words}.bias"),
    ]


_TOWER = "visual_encoder"
TOWERS: list[Rule] = [
    Stack(tuple(f"{_TOWER}.blocks.{{i}}.attn.{n}.{{p}}" for n in ("q", "k", "v")), "model.vision.blocks.{i}.qkv.{p}"),
    Rename(f"{_TOWER}.blocks.{{i}}.ls1.gamma", "model.vision.blocks.{i}.scale1"),
    Rename(f"{_TOWER}.blocks.{{i}}.ls2.gamma", "model.vision.blocks.{i}.scale2"),
    Rename(f"{_TOWER}.norm_pre.{{p}}", "model.vision.input_norm.{p}"),
    Rename(f"{_TOWER}.class_embedding", "model.vision.embedding.cls_token", lead=2),
    Rename(f"{_TOWER}.position_table", "model.vision.embedding.positions", lead=1),
    Rename(f"{_TOWER}.pool.probe", "model.vision.pool.query"),
    Rename(f"{_TOWER}.pool.attention.in_proj_{{p}}", "model.vision.pool.qkv.{p}"),
    Rename(f"{_TOWER}.pool.attention.out_proj.{{p}}", "model.vision.pool.out.{p}"),
    Rename(f"{_TOWER}.pool.layernorm.{{p}}", "model.vision.pool.norm.{p}"),
    Rename(f"{_TOWER}.pool.mlp.fc1.{{p}}", "model.vision.pool.fc1.{p}"),
    Rename(f"{_TOWER}.pool.mlp.fc2.{{p}}", "model.vision.pool.fc2.{p}"),
    Drop(f"{_TOWER}.mask_token", "stood for masked patches in training"),
    Drop(f"{_TOWER}.position_ids", "consecutive numbers, counted when needed"),
]
"""Names of what ViTs of other origin have besides, spelled as pretrained/albef.py spells their layouts."""

_SHARED: list[Rule] = [
    Rename("temp", "model.temp"),
    Rename("itm_head.{p}", "model.match_head.{p}"),
    Rename("image_queue", "queue.image", transpose=True),
    Rename("text_queue", "queue.text", transpose=True),
    Rename("queue_ptr", "queue.pointer", squeeze=True),
]

PUBLISHED_PRETRAINING: list[Rule] = [
    *_model_rules("", "model."),
    *_model_rules("_m", "momentum_encoder."),
    *_SHARED,
]
"""Names in the released pre-training checkpoint → names in the state of tasks.albef_pretraining.AlbefPretraining."""

PUBLISHED_RETRIEVAL: list[Rule] = [
    *_model_rules("", "model.", with_words=False),
    *_model_rules("_m", "momentum_encoder.", with_words=False),
    *_SHARED,
    Rename("idx_queue", "queue.ids", squeeze=True),
]
"""Names in the released retrieval checkpoint, which has no word head → names in the state of
tasks.retrieval.Retrieval."""

PUBLISHED_ENTAILMENT: list[Rule] = [
    *_model_rules("", "model.", with_words=False),
    *_model_rules("_m", "momentum_encoder.", with_words=False),
    Rename("cls_head.{i}.{p}", "head.{i}.{p}"),
    Rename("cls_head_m.{i}.{p}", "momentum_head.{i}.{p}"),
]
"""Names in the released visual entailment checkpoint → names in the state of tasks.entailment.Entailment."""


def _repeated_rules(mark: str, ours: str, config: AlbefConfig) -> list[Rule]:
    """Makes the rules for one copy of a model with several images a text.

    Its fusion layers of one text layer share the projection of keys and values, which is published under the name of
    each of them. The released code loads them one after the other, so that the last one's values are used.
    """
    rules: list[Rule] = []
    start, times = config.text.fusion_start, config.images_per_text
    for number in range(config.text.layers - start):
        first = start + number * times
        *copies, last = (
            f"text_encoder{mark}.encoder.layer.{layer}.crossattention.self" for layer in range(first, first + times)
        )
        projection = f"{ours}text.layers.{first}.cross.kv.{{p}}"
        rules.append(Stack((f"{last}.key.{{p}}", f"{last}.value.{{p}}"), projection))
        for n in ("key", "value"):
            rules += [Alias(f"{copy}.{n}.{{p}}", of=f"{last}.{n}.{{p}}", must_agree=False) for copy in copies]
    return [*rules, *_model_rules(mark, ours, with_words=False)]


def published_nlvr2(config: AlbefConfig) -> list[Rule]:
    """Names in the released NLVR2 checkpoint → names in the state of tasks.nlvr2.Nlvr2 with a model of `config`."""
    return [
        *_repeated_rules("", "model.", config),
        *_repeated_rules("_m", "momentum_encoder.", config),
        Rename("cls_head.{i}.{p}", "head.{i}.{p}"),
        Rename("cls_head_m.{i}.{p}", "momentum_head.{i}.{p}"),
        *unused("image_proj", "text_proj", "temp", "match_head", "word_head"),
    ]


def published_text_assignment(config: AlbefConfig) -> list[Rule]:
    """Names in the released text-assignment checkpoint → names in the state of tasks.nlvr2.TextAssignment."""
    return [
        *_repeated_rules("", "model.", config),
        Rename("temp", "model.temp"),
        Rename("ta_head.{p}", "head.{p}"),
        *unused("match_head", "word_head"),
    ]


def _decoder_rules(mark: str, ours: str) -> list[Rule]:
    """Makes the rules for one copy of the answer decoder, which is a BERT with a word head."""
    bert, words = f"text_decoder{mark}.bert", f"text_decoder{mark}.cls.predictions"
    return [*_bert_rules(bert, ours), *_word_rules(words, bert, f"{ours}word_head")]


PUBLISHED_VQA: list[Rule] = [
    *_model_rules("", "model.", with_words=False),
    *_model_rules("_m", "momentum_encoder.", with_words=False),
    *_decoder_rules("", "head."),
    *_decoder_rules("_m", "momentum_head."),
    *unused("image_proj", "text_proj", "temp", "match_head", "word_head"),
]
"""Names in the released VQA checkpoint → names in the state of tasks.vqa.VqaDecoding."""
