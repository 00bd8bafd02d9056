"""Tensors as numbers that need no torch: what stands beside running statistics in a safetensors file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bntools.core.headers import safetensors_header
from bntools.core.keys import place, stands_beside, wrapper_of
from bntools.errors import SourceError

_MOST_AXES = 64
"""Of a tensor, as in torch and numpy; the product of a million takes minutes."""
# For each type its name in torch, the bytes of a number, and how numpy reads it; None if it does not.
_TYPES: Mapping[str, tuple[str, int, str | None]] = {
    "BOOL": ("bool", 1, "|b1"),
    "U8": ("uint8", 1, "|u1"),
    "I8": ("int8", 1, "|i1"),
    "U16": ("uint16", 2, "<u2"),
    "I16": ("int16", 2, "<i2"),
    "U32": ("uint32", 4, "<u4"),
    "I32": ("int32", 4, "<i4"),
    "U64": ("uint64", 8, "<u8"),
    "I64": ("int64", 8, "<i8"),
    "F16": ("float16", 2, "<f2"),
    "BF16": ("bfloat16", 2, "<u2"),
    "F32": ("float32", 4, "<f4"),
    "F64": ("float64", 8, "<f8"),
    "F8_E4M3": ("float8_e4m3fn", 1, None),
    "F8_E5M2": ("float8_e5m2", 1, None),
}


@dataclass(frozen=True, slots=True, eq=False)
class StateTensor:
    """A tensor of a state dict.

    Args:
        dtype: as torch calls it, such as ``float32``.
        shape: its axes.
        values: all of them in float64, shape (N,); None where they are no statistic, or were not read.
        count: the whole number that it is, if it is one.
    """

    dtype: str
    shape: tuple[int, ...]
    values: np.ndarray | None = None
    count: int | None = None

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_state(path: Path) -> tuple[dict[str, StateTensor], str] | None:
    """The tensors of a safetensors file, in the order of their names, and the prefix that was stripped of
    them. Values are read of those beside running statistics only.

    None where there is anything about the file that the library would refuse, or that numpy has no type for:
    then `bntools.core.source.look` opens it, and says what is wrong.
    """
    try:
        header = safetensors_header(path)
        places = _places(header, _data(path), path.stat().st_size) if header else None
        return _read(path, places) if places else None
    except (OSError, SourceError):  # it may have changed since somebody looked
        return None


@dataclass(frozen=True, slots=True)
class _Place:
    type: str
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _data(path: Path) -> int:
    """Where the tensors begin: behind the header and its length."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _places(header: dict[str, Any], start: int, size: int) -> dict[str, _Place] | None:
    """Where each tensor stands in the file; None unless they fill it from *start* on without a gap."""
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        return None
    places, spans = {}, []
    for key, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            return None
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
        if not isinstance(kind, str) or kind not in _TYPES or len(offsets) != 2:
            return None
        if len(whole) > _MOST_AXES or not all(type(each) is int and each >= 0 for each in whole):
            return None
        if offsets[1] - offsets[0] != math.prod(shape) * _TYPES[kind][1]:
            return None
        places[key] = _Place(kind, tuple(shape), start + offsets[0])
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            return None
        end = stop
    return places if start + end == size else None


def _read(path: Path, places: Mapping[str, _Place]) -> tuple[dict[str, StateTensor], str] | None:
    found, shapes = {}, {key: each.shape for key, each in places.items()}
    with path.open("rb") as file:
        for key in sorted(places, key=place):
            at = places[key]
            name, width, read_as = _TYPES[at.type]
            values = None
            if stands_beside(key, shapes):
                if read_as is None:
                    return None
                file.seek(at.begin)
                raw = file.read(at.size * width)
                if len(raw) < at.size * width:
                    return None
                values = np.frombuffer(raw, read_as)
                if at.type == "BF16":  # the upper half of a float32
                    values = (values.astype("<u4") << 16).view("<f4")
            found[key] = state_tensor(name, at.shape, values)
    return _unwrapped(found)


def state_tensor(dtype: str, shape: tuple[int, ...], values: np.ndarray | None) -> StateTensor:
    """A tensor of *values*, of a type of numpy that holds them.

    Example:
        >>> [state_tensor(str(x.dtype), (), x).count for x in (np.array(3), np.array(3.0))]
        [3, None]
    """
    if values is None:
        return StateTensor(dtype, shape)
    count = int(values.reshape(-1)[0]) if values.size == 1 and values.dtype.kind in "biu" else None
    with np.errstate(all="ignore"):  # a signalling NaN is one
        return StateTensor(dtype, shape, values.reshape(-1).astype(np.float64), count)


def _unwrapped(found: dict[str, StateTensor]) -> tuple[dict[str, StateTensor], str]:
    taken = ""
    while (wrapper := wrapper_of(found)) is not None:
        found, taken = {key.removeprefix(wrapper): each for key, each in found.items()}, taken + wrapper
    return found, taken
