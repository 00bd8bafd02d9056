"""The headers of safetensors and ONNX files, read without their libraries. Standard library only."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import IO, Any

from bntools.errors import SourceError

_MAX_HEADER = 100 * 2**20
_VARINT, _BYTES = 0, 2
# onnx.proto, ModelProto: the number of each field and how it is stored.
_MODEL_FIELDS = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES}
_MODEL_FIELDS |= {14: _BYTES, 20: _BYTES, 25: _BYTES, 26: _BYTES}
_IR_VERSION, _GRAPH = 1, 7
_MOST_FIELDS = 1 << 16
"""Far more than a model has; a file of nothing but small fields would be walked for hours."""


def safetensors_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a safetensors file, or None if it is none.

    Raises:
        SourceError: it is one, but its header is damaged or its tensors are cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        if len(start) < 10 or start[8:9] != b"{":
            return None
        (length,) = struct.unpack("<Q", start[:8])
        if length > _MAX_HEADER or start[9:10] not in b'"} \n':
            return None
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise _cut(path, f"its header has {length} bytes and the file {size}")
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if not all(type(end) is int for end in ends):
            raise TypeError("an offset is no number")
        end = max(ends, default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{path}: a safetensors file with a damaged header", todo="download or save it again"
        ) from error
    if 8 + length + end > size:
        raise _cut(path, f"its tensors end at byte {8 + length + end} and the file at {size}")
    return dict(header)


def _cut(path: Path, why: str) -> SourceError:
    return SourceError(f"{path}: a truncated safetensors file ({why})", todo="download or copy it again")


def is_onnx(path: Path) -> bool:
    """Whether the file is an ONNX model: its fields are walked, their contents are skipped.

    Raises:
        SourceError: it begins as one and is cut off.
    """
    size = path.stat().st_size
    seen: set[int] = set()
    with path.open("rb") as file:
        for _ in range(_MOST_FIELDS):
            if (tag := _varint(file)) is None:
                break
            number, storage = tag >> 3, tag & 7
            if _MODEL_FIELDS.get(number) != storage:
                return False
            value = _varint(file)
            if not seen and (number, value is not None and 0 < value < 1000) != (_IR_VERSION, True):
                return False  # every exporter writes the version first; text and noise do not
            if storage == _BYTES and (value is None or file.tell() + value > size):
                if number == _GRAPH or _GRAPH in seen:
                    raise SourceError(f"{path}: a truncated ONNX file", todo="download or export it again")
                return False
            seen.add(number)
            if storage == _BYTES:
                file.seek(value or 0, 1)
    return seen >= {_IR_VERSION, _GRAPH}


def _varint(file: IO[bytes]) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
