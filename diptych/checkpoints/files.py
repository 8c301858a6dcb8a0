"""Files of a checkpoint: written so that they are on the disk and readable by others, and known by their sha256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diptych.reading import open_regular
from diptych.writing import WriteError, flush

PUBLISHED_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file with the weights in a folder of the Hugging Face layout."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """Writes a safetensors file, flushes it to the disk and returns its fingerprint. Raises OSError."""
    try:
        save_file(_separate(tensors), path, metadata=metadata)
    except SafetensorError as error:
        raise WriteError(path, str(error)) from error
    path.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
    flush(path)
    return fingerprint(path)


def save_torch(content: Mapping[str, Any], path: Path) -> None:
    """Writes a file with `torch.save`. Raises OSError."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer says which byte it did not expect, not what the disk said
            cause = error.__context__ or error
            raise WriteError(path, (isinstance(cause, OSError) and cause.strerror) or str(cause)) from error


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes contiguous CPU tensors of which no two share memory. A tied table is stored under each of its names."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return separate


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fingerprint(path: Path) -> dict[str, Any]:
    """Returns a file's size and sha256. Raises OSError, also for what is no regular file and might never end."""
    with open_regular(path) as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
