"""Lists the published weights that can be named: where their authors put them, what they hold, and their licence.

The addresses are those of the projects' own pages. Sizes with a "~" are estimates, because the authors state none: what
people report of a file, or four bytes for each parameter. The first fetch learns the exact one (named.py).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

HUB = "hf://"
"""What an address on the Hugging Face Hub begins with here: hf://OWNER/NAME/FILE."""
ALBEF = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/"
VLMO = (
    "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/",
    "https://conversationhub.blob.core.windows.net/beit-share-public/vlmo/",
)
"""Two addresses of every VLMo file: the newer one, and that of the README, which people report to be closed."""
BEIT = "https://github.com/addf400/files/releases/download/v1.0/"
JOIN = "+"
"""What stands between the names of start weights that make one model, as in `deit-base+bert-base`."""
STARTS = ("vit", "vit_transformers", "clip", "siglip", "bert")
"""The layouts of start weights that a repository on the Hub may have: those of ViTs, and of BERTs."""
VOCABULARY = "bert-base"
"""The name whose vocabulary every released ALBEF and VLMo was trained with."""
GIGABYTE = 10**9


@dataclass(frozen=True)
class Published:
    """A file of published weights, or of start weights, by its name here."""

    name: str
    what: str
    """What the file holds, in words."""
    places: tuple[str, ...]
    """Its addresses, in the order in which they are tried."""
    layouts: tuple[str, ...]
    """Names of the layouts that the file may have (pretrained/formats.py)."""
    telling: tuple[str, tuple[int, ...]]
    """A tensor, as the layout's rules know it, and its shape: they tell the file from others of the same layout."""
    licence: str
    bytes: int
    """Estimated size of the file in bytes."""
    sha256: str = ""
    """How the file's SHA-256 begins, where its authors say it; empty where they do not."""
    text: tuple[str, ...] = ()
    """Of a text encoder: the files beside it that make its tokenizer, the vocabulary first."""
    needs: str = ""
    """What a model of the file needs besides, in words."""

    @property
    def vocabulary(self) -> str:
        """Returns the name of the weights beside which its vocabulary is."""
        return self.name if self.text else VOCABULARY


def _albef(name: str, file: str, what: str, layout: str, side: int, size: float) -> Published:
    telling = "visual_encoder.pos_embed", (1, side**2 + 1, 768)
    return Published(name, what, (ALBEF + file,), (layout,), telling, "BSD-3-Clause", int(size * GIGABYTE))


_ANSWERS = "the list of its answers: --answers FILE of diptych convert, or answers= of diptych.from_pretrained"


def _vlmo(size: str, width: int, gigabytes: float) -> list[Published]:
    """Lists the files of one size of VLMo."""
    parts = {
        "": ("224", "vlmo", "pre-trained on pairs (third stage), 224 px"),
        "-stage2": ("224_stage2", "vlmo_language", "pre-trained on images and on texts (second stage), 224 px"),
        "-vqa": ("480_vqa", "vlmo_vqa", "fine-tuned for VQA with a closed set of answers, 480 px"),
        "-nlvr2": ("384_nlvr2", "vlmo_nlvr2", "fine-tuned for NLVR2, 384 px"),
        "-retrieval-coco": ("384_coco", "vlmo_retrieval", "fine-tuned for retrieval on COCO, 384 px"),
        "-retrieval-flickr": ("384_f30k", "vlmo_retrieval", "fine-tuned for retrieval on Flickr30k, 384 px"),
    }
    return [
        Published(
            f"vlmo-{size.replace('_', '-')}{part}",
            f"VLMo {size}, {what}",
            tuple(f"{base}vlmo_{size}_patch16_{ending}.pt" for base in VLMO),
            (layout,),
            ("transformer.cls_token", (1, 1, width)),
            "MIT",
            int(gigabytes * GIGABYTE),
            needs=_ANSWERS if part == "-vqa" else "",
        )
        for part, (ending, layout, what) in parts.items()
    ]  # fmt: skip


def _start(
    name: str, what: str, places: tuple[str, ...], layout: str, telling: tuple[str, tuple[int, ...]], licence: str,
    gigabytes: float, sha256: str = "",
) -> Published:  # fmt: skip
    text: tuple[str, ...] = ()
    if layout == "bert":
        text = ("vocab.txt",) if name == VOCABULARY else ("vocab.txt", "tokenizer_config.json")  # cased or not
    return Published(name, what, places, (layout,), telling, licence, int(gigabytes * GIGABYTE), sha256, text)


_PATCHES = "visual_encoder.pos_embed"
_WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"

PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for entry in (
        _albef("albef-4m", "ALBEF_4M.pth", "ALBEF, pre-trained on 4M images, 256 px", "pretraining", 16, 3.3),
        _albef("albef-14m", "ALBEF.pth", "ALBEF, pre-trained on 14M images, 256 px", "pretraining", 16, 3.3),
        _albef(
            "albef-retrieval-coco", "mscoco.pth", "ALBEF, fine-tuned for retrieval on COCO, 384 px",
            "retrieval", 24, 0.8,
        ),
        _albef(
            "albef-retrieval-flickr", "flickr30k.pth", "ALBEF, fine-tuned for retrieval on Flickr30k, 384 px",
            "retrieval", 24, 0.8,
        ),
        _albef("albef-vqa", "vqa.pth", "ALBEF, fine-tuned for VQA with an answer decoder, 384 px", "vqa", 24, 1.3),
        _albef(
            "albef-grounding", "refcoco.pth", "ALBEF, fine-tuned on the texts of RefCOCO+, 384 px",
            "retrieval", 24, 0.8,
        ),
        _albef(
            "albef-assignment", "pretrain_model_nlvr.pth",
            "ALBEF, pre-trained on text assignment for NLVR2, 256 px", "text_assignment", 16, 1.0,
        ),
        *_vlmo("base", 768, 0.70),
        *_vlmo("base_plus", 544, 0.67),
        *_vlmo("large", 1024, 2.25),
        _start(
            "beit-base", "BEiT base, for VLMo's second stage",
            (
                f"{BEIT}beit_base_patch16_224_pt22k_ft22kto1k.pth",
                f"{HUB}timm/beit_base_patch16_224.in22k_ft_in22k_in1k/model.safetensors",
            ),
            "beit", ("cls_token", (1, 1, 768)), "MIT", 0.35,
        ),
        _start(
            "deit-base", "DeiT base, for ALBEF's image encoder",
            (
                "https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
                f"{HUB}timm/deit_base_patch16_224.fb_in1k/model.safetensors",
            ),
            "vit", (_PATCHES, (1, 197, 768)), "Apache-2.0", 0.35, "b5f2ef4d",
        ),
        _start(
            "bert-base", "BERT base, uncased: text encoder and vocabulary",
            (f"{HUB}google-bert/bert-base-uncased/model.safetensors",),
            "bert", (_WORDS, (30522, 768)), "Apache-2.0", 0.44,
        ),
        _start(
            "bert-base-cased", "BERT base, cased: text encoder and vocabulary",
            (f"{HUB}google-bert/bert-base-cased/model.safetensors",),
            "bert", (_WORDS, (28996, 768)), "Apache-2.0", 0.44,
        ),
        _start(
            "bert-base-multilingual", "BERT base, cased, of 104 languages: text encoder and vocabulary",
            (f"{HUB}google-bert/bert-base-multilingual-cased/model.safetensors",),
            "bert", (_WORDS, (119547, 768)), "Apache-2.0", 0.71,
        ),
    )
}  # fmt: skip
"""The published weights by their names here, in the order of the list that `diptych weights` prints."""


def parts(name: str) -> tuple[Published, ...] | None:
    """Returns the weights of a name, or of several with `+` between them; None where one of them is not known.

    A part of several may be a name on the Hugging Face Hub. Alone, such a name is that of an exported run.

    >>> [part.name for part in parts("deit-base+bert-base")], parts("runs/demo")
    (['deit-base', 'bert-base'], None)
    >>> [part.name for part in parts("facebook/dinov2-base+bert-base")]
    ['facebook/dinov2-base', 'bert-base']
    """
    pieces = name.split(JOIN)
    entries = [PUBLISHED.get(name)] if len(pieces) == 1 else [part(piece) for piece in pieces]
    return None if None in entries else tuple(entry for entry in entries if entry)


def part(name: str) -> Published | None:
    """Returns the weights of one part of a joined name: published ones, or those of a repository on the Hub."""
    return PUBLISHED.get(name) or _on_the_hub(name)


def _on_the_hub(name: str) -> Published | None:
    """Describes start weights of a repository on the Hub, of which nothing but its name is known."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return None
    places = tuple(f"{HUB}{name}/{file}" for file in ("model.safetensors", "pytorch_model.bin"))
    return Published(name, "start weights on the Hugging Face Hub", places, STARTS, ("", ()), "as its page says", 0)


def nearest(name: str) -> str | None:
    """Returns the known name that a mistyped one is nearest to; None where none is near.

    >>> nearest("albef_4M"), nearest("runs/demo")
    ('albef-4m', None)
    """
    plain = name.lower().replace("_", "-")
    pieces = [difflib.get_close_matches(part, PUBLISHED, n=1, cutoff=0.85) for part in plain.split(JOIN)]
    return JOIN.join(piece[0] for piece in pieces) if all(pieces) else None
