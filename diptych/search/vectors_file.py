"""Files of vectors with a heading in JSON: those of a folder that was searched, and those of an index in the making.

N vectors, E embedding width.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from diptych.reading import open_regular, parse_json


def packed(heading: Any, vectors: Float32[np.ndarray, "N E"]) -> memoryview:
    """Makes the content of a file. NumPy's archive holds a checksum of each of its parts."""
    content = io.BytesIO()
    np.savez(content, vectors=vectors, rows=np.frombuffer(json.dumps(heading).encode(), np.uint8))
    return content.getbuffer()


def unpacked(file: Path) -> tuple[Any, Float32[np.ndarray, "N E"]]:
    """Reads the heading and the vectors. Raises FileNotFoundError, and ValueError for a file of anything else."""
    try:
        with open_regular(file) as stream:
            with zipfile.ZipFile(stream) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("its entries are compressed")  # a small file could hold any number of zeros
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as content:
                heading, vectors = parse_json(content["rows"].tobytes()), content["vectors"]
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever NumPy and zipfile raise on what was not written here
        raise ValueError(f"{file} is damaged ({str(error) or type(error).__name__})") from error
    if not isinstance(vectors, np.ndarray):  # an entry that is no array is given as its bytes
        raise ValueError(f"{file} is damaged (it does not hold vectors)")
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise ValueError(f"{file} is damaged (it does not hold vectors)")
    return heading, vectors
