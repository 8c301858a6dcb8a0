"""Hands a trained model to tools that expect an object of their own: encoders, cross-encoders, benchmarks, pipelines.

from diptych.apps import adapters

encoder = adapters.sentence_transformer("runs/demo")
encoder.encode(["a red fox", Image.open("fox.jpg")])

Each takes a run's folder, a checkpoint, a name on the Hub or an opened `Predictor`. The tool's package is imported when
the adapter is made; a missing one is a ValueError with the line that installs it.
"""

from diptych.apps.adapters.clip_benchmark import ClipModel, clip_benchmark_model, register_clip_benchmark
from diptych.apps.adapters.mteb import MtebCrossEncoder, MtebEncoder, mteb_cross_encoder, mteb_encoder
from diptych.apps.adapters.scikit_learn import vectorizer
from diptych.apps.adapters.sentence_transformers import cross_encoder, sentence_transformer

__all__ = [
    "ClipModel",
    "MtebCrossEncoder",
    "MtebEncoder",
    "clip_benchmark_model",
    "cross_encoder",
    "mteb_cross_encoder",
    "mteb_encoder",
    "register_clip_benchmark",
    "sentence_transformer",
    "vectorizer",
]
