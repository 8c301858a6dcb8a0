"""diptych: vision-language pre-training. Images and texts are first aligned, then fused.

`diptych.load("runs/demo")` gives a trained model: its `rank`, `match`, `embed_images` and `embed_texts`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.predict import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`diptych.load` is `diptych.predict.load`, imported when it is asked for: `diptych --help` waits for no torch."""
    if name == "load":
        from diptych.predict import load

        return load
    raise AttributeError(f"module 'diptych' has no attribute '{name}'")
