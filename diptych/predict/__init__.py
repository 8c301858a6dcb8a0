"""Uses trained models: embeds, matches, ranks and labels pictures, answers questions about them, finds things in them.

model = load("runs/demo")
print(search_folder(model, "a fox left of a red car", "pictures"))
"""

from diptych.facts import Answer, Choice, as_count
from diptych.predict.folder import SearchResult, search_folder
from diptych.predict.inputs import Picture, Pictures, Strings, prepare_texts, unknown_words
from diptych.predict.loading import is_own, load, make_predictor
from diptych.predict.model_pool import ModelPool, PooledModel
from diptych.predict.predictor import Predictor
from diptych.predict.results import Hit, Located, MinMatch, Ranking

__all__ = [
    "Answer",
    "Choice",
    "Hit",
    "Located",
    "MinMatch",
    "ModelPool",
    "Picture",
    "Pictures",
    "PooledModel",
    "Predictor",
    "Ranking",
    "SearchResult",
    "Strings",
    "as_count",
    "is_own",
    "load",
    "make_predictor",
    "prepare_texts",
    "search_folder",
    "unknown_words",
]
