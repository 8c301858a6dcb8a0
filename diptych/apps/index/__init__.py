"""An index of pictures and texts that stays on disk, or in a server, and answers at once.

model = load("runs/demo")
build_index("photos.index", "photos", model)
print(open_index("photos.index", model).search("a fox left of a red car"))
"""

from diptych.apps.index.build import add_to_index, build_index, remove_from_index
from diptych.apps.index.index import Index, index_info, open_index
from diptych.apps.index.items import Item, Kind
from diptych.apps.index.results import Built, Found, IndexHit, Info
from diptych.apps.index.vectors import Embedded, embed_source

__all__ = [
    "Built",
    "Embedded",
    "Found",
    "Index",
    "IndexHit",
    "Info",
    "Item",
    "Kind",
    "add_to_index",
    "build_index",
    "embed_source",
    "index_info",
    "open_index",
    "remove_from_index",
]
