"""ALBEF's published procedure, written plainly, with which the benchmarks compare the library.

It pads texts, computes keys and values for each pair, scores all words at all positions, writes attention out, and
allocates the momentum encoder's parameters anew at each step. Tests go one query or one phrase at a time. Parameters
have their published names, so that the golden states load as they are. tests/parity/test_plain.py holds this
implementation to the same numbers as the library.

B pairs, L padded text length, T image tokens, D width, K contrastive candidates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.schema import AlbefConfig, TextConfig


class Module(nn.Module):
    """A module that is made of its children by name."""

    def __init__(self, /, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, softmax: nn.Module, mask: Tensor | None = None
) -> Tensor:
    """Computes softmax attention. `mask` [B, 1, 1, K] is added to the scores."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    probabilities = softmax(scores if mask is None else scores + mask)
    return (probabilities @ value).transpose(1, 2).flatten(2)


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Module(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width), softmax=nn.Softmax(-1))
        self.mlp = Module(fc1=nn.Linear(width, mlp_width), fc2=nn.Linear(mlp_width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.attn.proj(attention(query, key, value, self.heads, self.attn.softmax))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        v = config.vision
        self.cls_token = nn.Parameter(torch.zeros(1, 1, v.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (v.image_size // v.patch_size) ** 2 + 1, v.width))
        self.patch_embed = Module(proj=nn.Conv2d(3, v.width, v.patch_size, v.patch_size))
        mlp_width = int(v.width * v.mlp_ratio)
        self.blocks = nn.ModuleList(VisionBlock(v.width, v.heads, mlp_width, v.norm_eps) for _ in range(v.depth))
        self.norm = nn.LayerNorm(v.width, v.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def bert_attention(width: int, key_width: int, eps: float) -> Module:
    projections = {
        name: nn.Linear(size, width) for name, size in (("query", width), ("key", key_width), ("value", key_width))
    }
    output = Module(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps))
    # `self` is the published name of the projections
    parts: dict[str, nn.Module] = {"self": Module(**projections), "output": output, "softmax": nn.Softmax(-1)}
    return Module(**parts)


class BertLayer(nn.Module):
    def __init__(self, t: TextConfig, image_width: int | None) -> None:
        super().__init__()
        self.heads = t.heads
        self.attention = bert_attention(t.width, t.width, t.norm_eps)
        if image_width is not None:
            self.crossattention = bert_attention(t.width, image_width, t.norm_eps)
        self.intermediate = Module(dense=nn.Linear(t.width, t.intermediate))
        self.output = Module(dense=nn.Linear(t.intermediate, t.width), LayerNorm=nn.LayerNorm(t.width, t.norm_eps))

    def attend(self, part: nn.Module, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        inner = part.get_submodule("self")
        mixed = attention(inner.query(x), inner.key(keys), inner.value(keys), self.heads, part.softmax, mask)
        return part.output.LayerNorm(x + part.output.dense(mixed))

    def forward(self, x: Tensor, mask: Tensor, image: Tensor | None) -> Tensor:
        x = self.attend(self.attention, x, x, mask)
        if image is not None:
            x = self.attend(self.crossattention, x, image, None)
        return self.output.LayerNorm(x + self.output.dense(F.gelu(self.intermediate.dense(x))))


class Bert(nn.Module):
    def __init__(self, t: TextConfig, image_width: int) -> None:
        super().__init__()
        self.start = t.fusion_start
        self.embeddings = Module(
            word_embeddings=nn.Embedding(t.vocab_size, t.width, padding_idx=t.pad_id),
            position_embeddings=nn.Embedding(t.max_positions, t.width),
            token_type_embeddings=nn.Embedding(2, t.width),
            LayerNorm=nn.LayerNorm(t.width, t.norm_eps),
        )
        widths = [image_width if i >= t.fusion_start else None for i in range(t.layers)]
        self.encoder = Module(layer=nn.ModuleList(BertLayer(t, width) for width in widths))

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        e = self.embeddings
        x = e.word_embeddings(ids) + e.position_embeddings.weight[: ids.shape[1]] + e.token_type_embeddings.weight[0]
        return self.run(e.LayerNorm(x), mask, None, range(self.start))

    def fuse(self, x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        return self.run(x, mask, image, range(self.start, len(self.encoder.layer)))

    def run(self, x: Tensor, mask: Tensor, image: Tensor | None, layers: range) -> Tensor:
        padding = (1 - mask[:, None, None].float()) * -10000
        for i in layers:
            x = self.encoder.layer[i](x, padding, image)
        return x


class TextModel(nn.Module):
    """A BERT with a word head, whose matrix is tied to the word table."""

    def __init__(self, t: TextConfig, image_width: int) -> None:
        super().__init__()
        self.bert = Bert(t, image_width)
        transform = Module(dense=nn.Linear(t.width, t.width), LayerNorm=nn.LayerNorm(t.width, t.norm_eps))
        self.cls = Module(predictions=Module(transform=transform))
        self.cls.predictions.bias = nn.Parameter(torch.zeros(t.vocab_size))

    def words(self, x: Tensor) -> Tensor:
        head = self.cls.predictions
        x = head.transform.LayerNorm(F.gelu(head.transform.dense(x)))
        return F.linear(x, self.bert.embeddings.word_embeddings.weight, head.bias)


@dataclass(frozen=True)
class PlainLosses:
    mlm: Tensor
    itc: Tensor
    itm: Tensor

    @property
    def total(self) -> Tensor:
        return self.mlm + self.itc + self.itm


class PlainAlbef(nn.Module):
    """The model, its momentum copies and queue, and the forward of pre-training."""

    def __init__(self, config: AlbefConfig, queue_size: int, momentum: float) -> None:
        super().__init__()
        self.momentum, self.queue_size = momentum, queue_size
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextModel(config.text, config.vision.width)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.itm_head = nn.Linear(config.text.width, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.copied = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
        for name in self.copied:
            self.add_module(f"{name}_m", copy.deepcopy(getattr(self, name)).requires_grad_(False))
        self.register_buffer("image_queue", F.normalize(torch.randn(config.embed_dim, queue_size), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(config.embed_dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def move_momentum_copies(self) -> None:
        for name in self.copied:
            pairs = zip(getattr(self, f"{name}_m").parameters(), getattr(self, name).parameters(), strict=True)
            for average, current in pairs:
                average.data = average.data * self.momentum + current.data * (1 - self.momentum)

    def forward(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, masked_ids: Tensor, labels: Tensor, alpha: float,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> PlainLosses:  # fmt: skip
        size, text = len(pixels), self.text_encoder
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        image_hidden, text_hidden = self.visual_encoder(pixels), text.bert.text(ids, mask)
        image = F.normalize(self.vision_proj(image_hidden[:, 0]), dim=-1)
        words = F.normalize(self.text_proj(text_hidden[:, 0]), dim=-1)
        with torch.no_grad():
            self.move_momentum_copies()
            image_hidden_m = self.visual_encoder_m(pixels)
            image_m = F.normalize(self.vision_proj_m(image_hidden_m[:, 0]), dim=-1)
            words_m = F.normalize(self.text_proj_m(self.text_encoder_m.bert.text(ids, mask)[:, 0]), dim=-1)
            image_keys = torch.cat([image_m.T, self.image_queue], dim=1)
            text_keys = torch.cat([words_m.T, self.text_queue], dim=1)
            one_hot = torch.eye(size, text_keys.shape[1], device=pixels.device)
            i2t_targets = alpha * (image_m @ text_keys / self.temp).softmax(1) + (1 - alpha) * one_hot
            t2i_targets = alpha * (words_m @ image_keys / self.temp).softmax(1) + (1 - alpha) * one_hot
        i2t, t2i = image @ text_keys / self.temp, words @ image_keys / self.temp
        itc = (
            -(i2t.log_softmax(1) * i2t_targets).sum(1).mean() / 2 - (t2i.log_softmax(1) * t2i_targets).sum(1).mean() / 2
        )
        self.enqueue(image_m, words_m)
        negative_image, negative_text = negatives or self.draw(i2t[:, :size], t2i[:, :size])
        itm = self.match(image_hidden, text_hidden, mask, negative_image, negative_text)
        mlm = self.predict(image_hidden, image_hidden_m, masked_ids, mask, labels, alpha)
        return PlainLosses(mlm, itc, itm)

    @torch.no_grad()
    def enqueue(self, image: Tensor, words: Tensor) -> None:
        start = int(self.queue_ptr)
        self.image_queue[:, start : start + len(image)] = image.T
        self.text_queue[:, start : start + len(words)] = words.T
        self.queue_ptr[0] = (start + len(image)) % self.queue_size

    @torch.no_grad()
    def draw(self, i2t: Tensor, t2i: Tensor) -> tuple[Tensor, Tensor]:
        image_weights, text_weights = t2i.softmax(1).fill_diagonal_(0), i2t.softmax(1).fill_diagonal_(0)
        drawn = [[int(torch.multinomial(row, 1)) for row in weights] for weights in (image_weights, text_weights)]
        return torch.tensor(drawn[0], device=i2t.device), torch.tensor(drawn[1], device=i2t.device)

    def match(self, image: Tensor, text: Tensor, mask: Tensor, negative_image: Tensor, negative_text: Tensor) -> Tensor:
        bert = self.text_encoder.bert
        positive = bert.fuse(text, mask, image)
        texts = torch.cat([text, text[negative_text]])
        masks = torch.cat([mask, mask[negative_text]])
        negative = bert.fuse(texts, masks, torch.cat([image[negative_image], image]))
        logits = self.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        labels = torch.cat([torch.ones(len(text)), torch.zeros(2 * len(text))]).long()
        return F.cross_entropy(logits, labels.to(logits.device))

    def predict(
        self, image: Tensor, image_m: Tensor, masked_ids: Tensor, mask: Tensor, labels: Tensor, alpha: float
    ) -> Tensor:
        logits = self.words_of(self.text_encoder, masked_ids, mask, image)
        with torch.no_grad():
            target = self.words_of(self.text_encoder_m, masked_ids, mask, image_m).softmax(-1)
        hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        soft = -(logits.log_softmax(-1) * target).sum(-1)[labels != -100].mean()
        return (1 - alpha) * hard + alpha * soft

    @staticmethod
    def words_of(text: nn.Module, ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        return text.words(text.bert.fuse(text.bert.text(ids, mask), mask, image))

    @torch.no_grad()
    def rerank(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Returns the logits of a match of one encoded image [T, D] with each of B encoded texts [B, L, D]."""
        fused = self.text_encoder.bert.fuse(text, mask, image.repeat(len(text), 1, 1))
        return self.itm_head(fused[:, 0])[:, 1]

    @torch.no_grad()
    def rerank_images(self, images: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Returns the logits of a match of one encoded text [L, D] with each of B encoded images [B, T, D]."""
        fused = self.text_encoder.bert.fuse(text.repeat(len(images), 1, 1), mask.repeat(len(images), 1), images)
        return self.itm_head(fused[:, 0])[:, 1]

    def ground_by_match(self, pixels: Tensor, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
        """Makes maps [B, L, T - 1] of B texts' words on an image each.

        They are Grad-CAMs of the match by the cross-attention of `layer`.
        """
        bert = self.text_encoder.bert
        with outputs(bert.encoder.layer[layer].crossattention.softmax) as probabilities:
            fused = bert.fuse(bert.text(ids, mask), mask, self.visual_encoder(pixels))
        return grad_cam(probabilities[0], self.itm_head(fused[:, 0])[:, 1].sum())

    def ground_by_similarity(self, pixels: Tensor, ids: Tensor, mask: Tensor, block: int) -> Tensor:
        """Makes maps [B, T - 1] of B texts on an image each: Grad-CAMs of similarity by the class token's attention."""
        with outputs(self.visual_encoder.blocks[block].attn.softmax) as probabilities:
            image = F.normalize(self.vision_proj(self.visual_encoder(pixels)[:, 0]), dim=-1)
        text = F.normalize(self.text_proj(self.text_encoder.bert.text(ids, mask)[:, 0]), dim=-1)
        return grad_cam(probabilities[0], (image * text).sum() / self.temp)[:, 0]


@contextmanager
def outputs(part: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the part returns at each of its calls."""
    returned: list[Tensor] = []
    handle = part.register_forward_hook(lambda module, args, output: returned.append(output))
    yield returned
    handle.remove()


def grad_cam(probabilities: Tensor, score: Tensor) -> Tensor:
    """Multiplies probabilities [B, H, Q, T] by the positive part of their gradient, and averages over heads.

    Returns [B, Q, T - 1], without the column of the class token.
    """
    (gradient,) = torch.autograd.grad(score, probabilities)
    return (probabilities * gradient.clamp(min=0)).mean(1)[..., 1:].detach()
