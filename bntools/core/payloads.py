"""The tensors of a ``.pt2`` file, from raw bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bntools.core.pt2 import Payload, ProgramFile
from bntools.core.states import ensure_sane

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu,
    34: torch.uint32,
    35: torch.uint64,
}
"""By the numbers of torch's schema (torch/_export/serde/schema.py)."""


def type_of(number: int) -> torch.dtype | None:
    """The type that a number of torch's schema stands for."""
    return DTYPES.get(number)


def weights_of(file: ProgramFile) -> dict[str, Tensor]:
    """The state dict of a program; tensors that share memory in the file share it here.

    Raises:
        SourceError: a tensor does not fit its bytes.
        UnsafeError: one is pickled, or they claim more memory than the file has.
    """
    return _read(file, file.weights())


def constants_of(file: ProgramFile) -> dict[str, Tensor]:
    """Its other tensors; errors as for `weights_of`."""
    return _read(file, file.constants())


def _read(file: ProgramFile, table: Mapping[str, Payload]) -> dict[str, Tensor]:
    bytes_of: dict[str, Tensor] = {}
    views = {}
    for key, payload in table.items():
        if payload.record not in bytes_of:
            data = bytearray(file.archive.read(payload.record))
            # A copy in memory of torch's own: its products round by the address.
            flat = torch.frombuffer(data or bytearray(1), dtype=torch.uint8)
            bytes_of[payload.record] = flat[: len(data)].clone()
        views[key] = _view(file, key, payload, bytes_of[payload.record])
    ensure_sane(str(file.path), views, file.path.stat().st_size)
    return {key: _as(table[key], view) for key, view in views.items()}


def _view(file: ProgramFile, key: str, payload: Payload, raw: Tensor) -> Tensor:
    dtype = type_of(payload.dtype)
    if dtype is None:
        raise file.damaged(f"{key!a}: its type is {payload.dtype}")
    empty = 0 in payload.sizes
    steps = (step * (size - 1) for size, step in zip(payload.sizes, payload.strides, strict=True))
    last = payload.offset + sum(steps)
    if raw.numel() % dtype.itemsize or (not empty and last >= raw.numel() // dtype.itemsize):
        raise file.damaged(f"{key!a} has {raw.numel()} bytes")
    try:
        if empty:
            return torch.empty(payload.sizes, dtype=dtype)
        return raw.view(dtype).as_strided(payload.sizes, payload.strides, payload.offset)
    except (RuntimeError, OverflowError, TypeError) as error:  # more elements than numbers of 64 bits count
        raise file.damaged(f"{key!a} has sizes {payload.sizes}") from error


def _as(payload: Payload, view: Tensor) -> Tensor:
    trained = payload.trained and (view.is_floating_point() or view.is_complex())
    return nn.Parameter(view, trained) if payload.parameter else view
