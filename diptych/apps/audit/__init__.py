"""Audits data: finds captions that do not fit their images, captions that say nothing, and images of several splits.

`diptych data audit LAYOUT PATH --model RUN --to FOLDER` writes the page, the scores, and lists to train on.
"""

from diptych.apps.audit.audit import Audit, audit
from diptych.apps.audit.output import spare_audit, write_audit
from diptych.apps.audit.scores import SCORES, PairScores, score_pairs

__all__ = ["SCORES", "Audit", "PairScores", "audit", "score_pairs", "spare_audit", "write_audit"]
