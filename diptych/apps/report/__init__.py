"""Reports: the curves, measures and examples of a run on one page, which needs no file or network beside it.

write_report(folder, collect(folder, ceiling=…, examples=Examples(query_examples(…), …)))
"""

from diptych.apps.report.collect import collect
from diptych.apps.report.data import Examples, ReportData
from diptych.apps.report.examples import negative_examples, pseudo_target_examples, query_examples
from diptych.apps.report.page import render, write_report
from diptych.apps.report.summary import summary
from diptych.apps.report.task_evaluation import describe_evaluation, named_figures, named_references, named_scores

__all__ = [
    "Examples",
    "ReportData",
    "collect",
    "describe_evaluation",
    "named_figures",
    "named_references",
    "named_scores",
    "negative_examples",
    "pseudo_target_examples",
    "query_examples",
    "render",
    "summary",
    "write_report",
]
