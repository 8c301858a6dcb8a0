"""Caption and question clean-up against the released code: every case of `text_cleanup.json`."""

from __future__ import annotations

import json
from pathlib import Path

from diptych.data.cleanup import clean_caption, clean_question


def test_every_caption_and_question_is_cleaned_as_released(golden_albef: Path) -> None:
    cases = json.loads((golden_albef / "text_cleanup.json").read_text())
    assert cases
    for case in cases:
        text, words = case["in"], case["max_words"]
        assert clean_caption(text, words) == case["pre_caption"], case
        assert clean_question(text, words) == case["pre_question"], case
