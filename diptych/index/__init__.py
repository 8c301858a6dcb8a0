"""An index of pictures and texts that stays on disk, or in a server, and answers at once.

build_index("photos.index", "photos", load("runs/demo"))
print(open_index("photos.index", load("runs/demo")).search("a fox left of a red car"))
"""

from diptych.index.index import Index, open_index
from diptych.index.items import Item, Kind
from diptych.index.results import Built, Found, IndexHit, Info

__all__ = ["Built", "Found", "Index", "IndexHit", "Info", "Item", "Kind", "open_index"]
