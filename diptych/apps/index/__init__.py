"""Keeps pictures and texts in an index on disk or in a database server, and searches it.

model = load("runs/demo")
build_index("photos.index", "photos", model)
print(open_index("photos.index", model).search("a fox left of a red car"))
"""

from diptych.apps.index.build import add_to_index, build_index, remove_from_index
from diptych.apps.index.index import Index, IndexQuery, index_info, open_index
from diptych.apps.index.items import Item, Kind
from diptych.apps.index.results import BuildReport, IndexHit, IndexInfo, SearchResults
from diptych.apps.index.vectors import EmbeddingReport, embed_source

__all__ = [
    "BuildReport",
    "EmbeddingReport",
    "Index",
    "IndexHit",
    "IndexInfo",
    "IndexQuery",
    "Item",
    "Kind",
    "SearchResults",
    "add_to_index",
    "build_index",
    "embed_source",
    "index_info",
    "open_index",
    "remove_from_index",
]
