"""How windows of convolutions and pools hang over the edge: torch pads alike on both sides, ONNX need not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bntools.core.onnxshapes import Attributes

KERNEL = "kernel_shape"


def alike(a: Attributes, rank: int) -> list[int] | None:
    """What is padded on both sides of each of *rank* axes; None where the sides differ, or by the size."""
    auto, kernel = a.get("auto_pad", "NOTSET"), a.get(KERNEL)
    if auto == "VALID":
        return [0] * rank
    if auto != "NOTSET":
        if kernel is None or set(a.get("strides") or [1]) != {1}:
            return None
        both = [(k - 1) * d for k, d in zip(kernel, _dilations(a, rank), strict=True)]
        return [n // 2 for n in both] if not any(n % 2 for n in both) else None
    pads = list(a.get("pads") or [0] * 2 * rank)
    return pads[:rank] if pads[:rank] == pads[rank:] else None


def padded(a: Attributes, x: Tensor, value: float = 0.0) -> Tensor:
    """The value with its edges, for a window that then hangs over none."""
    rank = x.ndim - 2
    before, behind = _sides(a, x.shape[2:])
    amounts = [n for axis in reversed(range(rank)) for n in (before[axis], behind[axis])]
    return F.pad(x, amounts, value=value)


def _sides(a: Attributes, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    rank, auto = len(sizes), a.get("auto_pad", "NOTSET")
    if not auto.startswith("SAME"):
        pads = list(a.get("pads") or [0] * 2 * rank)
        return pads[:rank], pads[rank:]
    steps: Any = a.get("strides") or [1] * rank
    before, behind = [], []
    for size, k, step, d in zip(sizes, a[KERNEL], steps, _dilations(a, rank), strict=True):
        # As many windows as steps fit into the axis, rounded up.
        both = max((-(-size // step) - 1) * step + (k - 1) * d + 1 - size, 0)
        less, more = both // 2, both - both // 2
        before.append(less if auto == "SAME_UPPER" else more)
        behind.append(more if auto == "SAME_UPPER" else less)
    return before, behind


def _dilations(a: Attributes, rank: int) -> list[int]:
    return list(a.get("dilations") or [1] * rank)
