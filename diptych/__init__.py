"""diptych: vision-language pre-training. Images and texts are first aligned, then fused.

`diptych.load("runs/demo")` gives a trained model: its `rank`, `match`, `embed_images`, `embed_texts`, `classify` and
`locate` and, as it was fine-tuned, `entail`, `answer` or `compare`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.predict import load
    from diptych.pretrained import from_pretrained

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `from_pretrained` are imported when they are asked for: `diptych --help` waits for no torch."""
    if name == "load":
        from diptych.predict import load

        return load
    if name == "from_pretrained":
        from diptych.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'diptych' has no attribute '{name}'")
