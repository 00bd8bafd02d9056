"""Numbers for the memory that tensors live in, so that a view is known for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Memories:
    """Gives each allocation a number, the same to all its views.

    Parameters are often slices of one flat vector, where ``vector_to_parameters`` or an optimiser has put
    them. With *sliced*, those that do not overlap have a number each, and `straddled` says whether some
    other view spans several of them: then the numbers are worth nothing.

    Args:
        stored: the parameters and buffers.
        sliced: whether they may have numbers of their own within one allocation.
    """

    def __init__(self, stored: Iterable[Tensor], *, sliced: bool) -> None:
        # The weak references keep the addresses of storages from being used again, so that they are names.
        self._storages: dict[int, tuple[int, StorageWeakRef]] = {}
        self._slices: dict[int, list[tuple[int, int, int]]] = {}
        self._count = 0
        self.straddled = False
        if sliced:
            self._slice(stored)

    def of(self, tensor: Tensor) -> int:
        """The number of the memory that *tensor* lives in."""
        try:
            storage = StorageWeakRef(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # sparse and the like have none
            return self._new()
        if storage.cdata not in self._storages:
            self._storages[storage.cdata] = (self._new(), storage)
        if storage.cdata in self._slices:
            start, end = _span(tensor)
            touched = [number for a, b, number in self._slices[storage.cdata] if a < end and start < b]
            self.straddled |= len(touched) > 1
            if touched:
                return touched[0]
        return self._storages[storage.cdata][0]

    def alive(self) -> Iterator[int]:
        """The numbers of allocations that somebody still holds."""
        return (
            number
            for cdata, (number, storage) in self._storages.items()
            if cdata not in self._slices and not storage.expired()
        )

    def _new(self) -> int:
        self._count += 1
        return self._count

    def _slice(self, stored: Iterable[Tensor]) -> None:
        spans: dict[int, set[tuple[int, int]]] = {}
        for tensor in stored:
            if tensor.layout is torch.strided and tensor.numel():
                self.of(tensor)
                spans.setdefault(StorageWeakRef(tensor.untyped_storage()).cdata, set()).add(_span(tensor))
        for cdata, found in spans.items():
            slices: list[tuple[int, int, int]] = []
            for start, end in sorted(found):
                if slices and start < slices[-1][1]:
                    before, reach, number = slices.pop()
                    slices.append((before, max(reach, end), number))
                else:
                    slices.append((start, end, self._new()))
            if len(slices) > 1:
                self._slices[cdata] = slices


def _span(tensor: Tensor) -> tuple[int, int]:
    """From where to where in its allocation, in bytes; the end is not in it."""
    start = int(tensor.storage_offset()) * tensor.itemsize
    if not tensor.numel():
        return start, start
    last: int = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize
