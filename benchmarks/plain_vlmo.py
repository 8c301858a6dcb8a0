"""VLMo's published pre-training procedure, written plainly, with which the benchmark compares the library.

It pads texts and computes the padding too. Positives, negative images, negative texts and masked words are fused in a
pass each. It scores all words at all positions, and computes the last layer for all tokens. Biases of relative
positions are gathered once for all passes of a kind. Parameters have their published names, so that the golden states
load as they are. tests/parity/vlmo/test_plain.py holds this implementation to the same numbers as the library.

B pairs, L padded text length, T image tokens, D width, N = L + T tokens of a fused sequence, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain import Module, PlainLosses
from diptych.nn.relative import entry_count, relative_index
from diptych.schema import VlmoConfig

Expert = Literal["text", "imag", "vl"]


@dataclass(frozen=True)
class Positions:
    """The biases [H, N, N] that are added to the scores of each layer in a kind of pass, if any."""

    biases: tuple[Tensor | None, ...]

    def mask(self, layer: int, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Makes the mask of torch's attention. `padding` [B, 1, 1, N] holds minus infinity at padded keys."""
        bias = self.biases[layer]
        if bias is None:
            return None if padding is None else padding.to(dtype)
        return (bias[None] if padding is None else bias[None] + padding).to(dtype)


class Block(nn.Module):
    """A block with shared attention, and feed-forward experts for text, images, and both together."""

    def __init__(self, config: VlmoConfig, fusion: bool) -> None:
        super().__init__()
        width, mlp_width, eps = config.width, int(config.width * config.mlp_ratio), config.norm_eps
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Module(qkv=nn.Linear(width, 3 * width, bias=False), proj=nn.Linear(width, width))
        self.attn.q_bias, self.attn.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        if config.layer_scale is not None:
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((width,), config.layer_scale)) for _ in range(2))
        else:
            self.gamma_1 = self.gamma_2 = 1.0
        for name in ("text", "imag", "vl") if fusion else ("text", "imag"):
            self.add_module(f"norm2_{name}", nn.LayerNorm(width, eps))
            self.add_module(f"mlp_{name}", Module(fc1=nn.Linear(width, mlp_width), fc2=nn.Linear(mlp_width, width)))

    def forward(self, x: Tensor, mask: Tensor | None, experts: dict[Expert, int]) -> Tensor:
        """Computes the block. `experts`: the experts of consecutive tokens, each with the number of its tokens."""
        x = x + self.gamma_1 * self.attend(self.norm1(x), mask)
        parts = zip(experts, x.split(list(experts.values()), dim=1), strict=True)
        branch = [self.expert(name, part) for name, part in parts]
        return x + self.gamma_2 * (branch[0] if len(branch) == 1 else torch.cat(branch, dim=1))

    def expert(self, name: Expert, x: Tensor) -> Tensor:
        mlp = self.get_submodule(f"mlp_{name}")
        return mlp.fc2(F.gelu(mlp.fc1(self.get_submodule(f"norm2_{name}")(x))))

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        bias = torch.cat([self.attn.q_bias, torch.zeros_like(self.attn.q_bias), self.attn.v_bias])
        qkv = F.linear(x, self.attn.qkv.weight, bias)
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.attn.proj(mixed.transpose(1, 2).flatten(2))


class PlainVlmo(nn.Module):
    """The model and the forward of pre-training."""

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        self.config = config
        width, relative = config.width, config.positions == "relative"
        side = config.image_size // config.patch_size
        self.transformer = Module(
            patch_embed=Module(proj=nn.Conv2d(3, width, config.patch_size, config.patch_size)),
            blocks=nn.ModuleList(Block(config, i >= config.fusion_start) for i in range(config.depth)),
            norm=nn.LayerNorm(width, config.norm_eps),
        )
        self.transformer.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.text_embeddings = Module(
            word_embeddings=nn.Embedding(config.vocab_size, width, padding_idx=config.pad_id),
            token_type_embeddings=nn.Embedding(2, width),
            LayerNorm=nn.LayerNorm(width, config.text_norm_eps),
        )
        if relative:
            rows = entry_count(side, config.max_positions)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, config.depth * config.heads))
        else:
            self.transformer.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, width))
            self.text_embeddings.position_embeddings = nn.Embedding(config.max_positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.pooler = Module(dense=nn.Linear(width, width))
        transform = Module(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, config.text_norm_eps))
        self.mlm_score = Module(transform=transform, decoder=nn.Linear(width, config.vocab_size, bias=False))
        self.mlm_score.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.itm_score = Module(fc=nn.Linear(width, 2))
        for name in ("itc_text_proj", "itc_image_proj", "itc_vl_text_proj", "itc_vl_image_proj"):
            self.add_module(name, Module(fc=nn.Linear(width, width, bias=False)))
        start = -torch.tensor(config.temperature).log()
        self.logit_scale, self.logit_vl_scale = nn.Parameter(start), nn.Parameter(start.clone())

    # ------------------------------------------------------------------ embeddings and positions

    def embed_image(self, pixels: Tensor) -> Tensor:
        t = self.transformer
        patches = t.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([t.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        if self.config.positions == "absolute":
            x = x + t.pos_embed
        return x + self.token_type_embeddings.weight[1]

    def embed_text(self, ids: Tensor) -> Tensor:
        e = self.text_embeddings
        x = e.word_embeddings(ids) + e.token_type_embeddings.weight[0]
        if self.config.positions == "absolute":
            x = x + e.position_embeddings.weight[: ids.shape[1]]
        return e.LayerNorm(x) + self.token_type_embeddings.weight[0]

    def positions(self, text_length: int, image: bool) -> Positions:
        config = self.config
        if config.positions == "absolute":
            return Positions((None,) * config.depth)
        side = config.image_size // config.patch_size
        index = relative_index(
            text_length,
            side if image else None,
            side,
            config.max_positions,
            str(self.token_type_embeddings.weight.device),
        )
        gathered = self.relative_position_bias_table[index].permute(2, 0, 1).contiguous()
        return Positions(gathered.split(config.heads))

    # ------------------------------------------------------------------ passes

    def run(self, x: Tensor, mask: Tensor | None, at: Positions, layers: range, experts: dict[Expert, int]) -> Tensor:
        """Runs some blocks. `mask` [B, N] is 1 at real tokens."""
        padding, kind = None, x.device.type
        if mask is not None:
            padding = torch.zeros(mask.shape, device=x.device).masked_fill(mask == 0, -torch.inf)[:, None, None]
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        for i in layers:
            x = self.transformer.blocks[i](x, at.mask(i, padding, dtype), experts)
        return x

    def encode(self, x: Tensor, mask: Tensor | None, expert: Literal["text", "imag"]) -> tuple[Tensor, Tensor]:
        """Encodes one modality. Returns the normalised class vectors of both branches.

        From the first fusion layer on, the main branch keeps the expert of the modality, and the other one takes the
        vision-language expert.
        """
        start, depth, tokens = self.config.fusion_start, self.config.depth, x.shape[1]
        at = self.positions(tokens, False) if expert == "text" else self.positions(0, True)
        lower = self.run(x, mask, at, range(start), {expert: tokens})
        main = self.run(lower, mask, at, range(start, depth), {expert: tokens})
        fused = self.run(lower, mask, at, range(start, depth), {"vl": tokens})
        kind = "text" if expert == "text" else "image"
        heads = (self.get_submodule(f"itc_{kind}_proj.fc"), self.get_submodule(f"itc_vl_{kind}_proj.fc"))
        vectors = [head(self.transformer.norm(y)[:, 0]) for head, y in zip(heads, (main, fused), strict=True)]
        return F.normalize(vectors[0].float(), dim=-1), F.normalize(vectors[1].float(), dim=-1)

    def fuse(self, text: Tensor, mask: Tensor, image: Tensor, at: Positions) -> Tensor:
        """Fuses each text with its image. Returns all tokens [B, N, D] after the final norm."""
        start, length, tokens = self.config.fusion_start, text.shape[1], image.shape[1]
        x, joint_mask = torch.cat([text, image], dim=1), torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)
        x = self.run(x, joint_mask, at, range(start), {"text": length, "imag": tokens})
        x = self.run(x, joint_mask, at, range(start, self.config.depth), {"vl": length + tokens})
        return self.transformer.norm(x)

    def words(self, x: Tensor) -> Tensor:
        head = self.mlm_score
        return head.decoder(head.transform.LayerNorm(F.gelu(head.transform.dense(x)))) + head.bias

    # ------------------------------------------------------------------ a step

    def forward(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, masked_ids: Tensor, labels: Tensor,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> PlainLosses:  # fmt: skip
        text, image = self.embed_text(ids), self.embed_image(pixels)
        images, texts = self.encode(image, None, "imag"), self.encode(text, mask, "text")
        scales = self.logit_scale.exp(), self.logit_vl_scale.exp()
        logits = [scale * i @ t.T for scale, i, t in zip(scales, images, texts, strict=True)]
        here = torch.arange(len(pixels), device=pixels.device)
        itc = sum(F.cross_entropy(x, here) + F.cross_entropy(x.T, here) for x in logits) / 4
        negative_image, negative_text = negatives or self.draw(logits[0].detach())
        at = self.positions(text.shape[1], True)
        fused = [
            self.fuse(text, mask, image, at)[:, 0],
            self.fuse(text, mask, image[negative_image], at)[:, 0],
            self.fuse(text[negative_text], mask[negative_text], image, at)[:, 0],
        ]
        scores = self.itm_score.fc(torch.tanh(self.pooler.dense(torch.cat(fused)))).float()
        labels_of_pairs = torch.cat([torch.ones(len(ids)), torch.zeros(2 * len(ids))]).long()
        itm = F.cross_entropy(scores, labels_of_pairs.to(scores.device))
        hidden = self.fuse(self.embed_text(masked_ids), mask, image, at)[:, : ids.shape[1]]
        mlm = F.cross_entropy(self.words(hidden).flatten(0, 1).float(), labels.flatten())
        return PlainLosses(0.25 * mlm, itc, itm)

    @torch.no_grad()
    def draw(self, i2t: Tensor) -> tuple[Tensor, Tensor]:
        image_weights, text_weights = (x.softmax(1).fill_diagonal_(0) for x in (i2t.T, i2t))
        drawn = [[int(torch.multinomial(row, 1)) for row in weights] for weights in (image_weights, text_weights)]
        return torch.tensor(drawn[0], device=i2t.device), torch.tensor(drawn[1], device=i2t.device)
