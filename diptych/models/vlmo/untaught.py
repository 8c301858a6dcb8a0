"""What the stages on one modality leave as it was."""

from __future__ import annotations

from diptych.schema import LanguageStageConfig, TaskConfig, VisionStageConfig

HEADS = (
    "pooler", "match_head", "image_proj", "text_proj", "vl_image_proj", "vl_text_proj", "log_scale", "vl_log_scale",
)  # fmt: skip


def untaught_by(stage: TaskConfig, depth: int) -> tuple[str, ...]:
    """Parts of a VLMo of so many layers that a stage does not train, nor one before it; none for other tasks.

    Vision: the text side. Both: the vision-language experts, and the heads on what these give.
    """
    if not isinstance(stage, VisionStageConfig | LanguageStageConfig):
        return ()
    fusion = tuple(f"blocks.{number}.experts.fusion" for number in range(depth))
    if isinstance(stage, LanguageStageConfig):
        return (*HEADS, *fusion)
    texts = tuple(f"blocks.{number}.{part}" for number in range(depth) for part in ("experts.text", "text_attention"))
    return ("text", "word_head", *texts, *HEADS, *fusion)
