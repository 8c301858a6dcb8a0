"""diptych: vision-language pre-training. Images and texts are first aligned, then fused.

`diptych.load("runs/demo")` gives a trained model: its `rank`, `match`, `embed_images`, `embed_texts`, `classify` and
`locate` and, as it was fine-tuned, `entail`, `answer` or `compare`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.pretrained import from_pretrained, load

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `from_pretrained` are imported when they are asked for: `diptych --help` waits for no torch."""
    if name in ("from_pretrained", "load"):
        from diptych import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'diptych' has no attribute '{name}'")
