"""diptych: vision-language pre-training. Images and texts are first aligned, then fused."""

__version__ = "0.1.0"
