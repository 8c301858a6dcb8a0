"""Reads safetensors files that somebody else may have made. Their header is checked before any number is read.

The header is JSON: each tensor's dtype, shape and place in the file. A small file can state anything there, so that
what it states is compared with the length of the file, and a reader knows all shapes before it needs memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.printable import brief
from diptych.reading import disguise, open_regular

LARGEST_HEADER = 1 << 23
"""Bytes of a header. ALBEF's with its momentum encoder has a tenth of a megabyte."""
MOST_TENSORS = 20_000
"""Tensors of a file. ALBEF's with its momentum encoder has about a thousand."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
"""Types of numbers by their names in a header."""


@dataclass(frozen=True)
class Stated:
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, Stated]:
    """Reads the names, types and shapes of a file's tensors. Raises ValueError, in one sentence, for a wrong one."""
    try:
        with open_regular(file) as stream:
            head = stream.read(512)
            size = stream.seek(0, 2)
            length = int.from_bytes(head[:8], "little")
            if len(head) < 10 or length > size - 8 or head[8:9] != b"{":
                raise ValueError(f"it is {kind}" if (kind := disguise(head)) else "it does not begin as such a file")
            if length > LARGEST_HEADER:
                raise ValueError(f"its header has {length:,} bytes, more than {LARGEST_HEADER:,}")
            stream.seek(8)
            return _checked(_parsed(stream.read(length)), size - 8 - length)
    except ValueError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file ({error})") from None


def _parsed(header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("its header names something twice")
        return content

    try:
        content = json.loads(header, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    content.pop("__metadata__", None)
    if len(content) > MOST_TENSORS:
        raise ValueError(f"its header names {len(content):,} tensors, more than {MOST_TENSORS:,}")
    return content


def _checked(content: Mapping[str, Any], size: int) -> dict[str, Stated]:
    """Compares a header with the number of bytes behind it. Raises ValueError."""
    tensors: dict[str, Stated] = {}
    for name, entry in content.items():
        try:
            kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
                raise ValueError
            dtype = DTYPES[kind]
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"its header does not describe {brief(name)} as one of the tensors it knows") from None
        # Dimensions of an empty tensor count as well: nothing else says how large the others may be.
        least = math.prod(max(number, 1) for number in shape[:64]) * dtype.itemsize
        if len(shape) > 64 or least > size or end > size or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{brief(name)} of shape {brief(shape)} does not fit its place in the file")
        tensors[name] = Stated(dtype, tuple(shape))
    return tensors


class TensorFile:
    """The tensors of a safetensors file, which are read one by one."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError, in one sentence, for what is no such file."""
        self.file = file
        self.stated = read_header(file)
        with self._in_one_sentence():
            self._content = safe_open(file, "pt")

    def tensor(self, name: str) -> Tensor:
        with self._in_one_sentence():
            tensor: Tensor = self._content.get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads rows of a tensor's first dimension."""
        with self._in_one_sentence():
            rows: Tensor = self._content.get_slice(name)[start:stop]
        return rows

    @contextmanager
    def _in_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError) as error:
            raise ValueError(f"{self.file} is damaged, or no safetensors file ({error})") from error


def is_finite(tensor: Tensor) -> bool:
    """Tells whether all numbers of a tensor are finite. It takes no memory."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta or not tensor.numel():
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype.itemsize < 2:
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN, where there is one
    return bool(low.isfinite() and high.isfinite())
