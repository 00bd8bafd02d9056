"""Whether something is faster than a BatchNorm on values of a certain kind: measured, turn by turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence

import torch
from torch import nn

from bntools.core.latency import wait
from bntools.core.plan import Op
from bntools.norms.channelwise import ChannelAffine
from bntools.norms.padded import pad_with_

GAIN = 0.9
"""It is faster if it takes less than this share of the time."""
_TURNS = 15
_LEAST = 2e-4


@torch.no_grad()
def faster(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Collection[Op]:
    """What computes a scale and a shift, or a shift, for each channel faster than a BatchNorm in eval.

    Args:
        shape, strides, dtype, device: of the value that it reads.
    """
    x = _values(shape, strides, dtype, device)
    ops = Op.SHIFT, Op.AFFINE
    layers = [ChannelAffine(shape[1], scale=op is Op.AFFINE, device=device, dtype=dtype) for op in ops]
    norm, *others = _medians([_norm(x), *layers], x)
    return frozenset(op for op, taken in zip(ops, others, strict=True) if taken < GAIN * norm)


def _values(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Some, without a draw from the generators that the caller uses."""
    own = torch.Generator(device).manual_seed(0)
    x = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=device)
    return x.normal_(generator=own)


def _norm(x: torch.Tensor) -> nn.Module:
    """A BatchNorm for values like these."""
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[max(x.ndim - 3, 0)]
    return kind(x.shape[1], device=x.device, dtype=x.dtype).eval()


def _bare(module: nn.Module) -> nn.Module:
    """One with the same tensors, and with no hook that would notice."""
    twin = copy.copy(module)
    twin._buffers, twin._forward_hooks, twin._forward_pre_hooks = {}, OrderedDict(), OrderedDict()
    return twin


def _medians(layers: Sequence[nn.Module], x: torch.Tensor) -> list[float]:
    """The seconds of a call of each, turn by turn; the first one says how many calls make a turn."""
    calls = max(1, int(_LEAST / max(_time(layers[0], x, 1), 1e-7)))
    turns = [[_time(layer, x, calls) for layer in layers] for _ in range(_TURNS)]
    return [statistics.median(each) / calls for each in zip(*turns, strict=True)]


def _time(layer: nn.Module, x: torch.Tensor, calls: int) -> float:
    wait([x])
    start = time.perf_counter()
    for _ in range(calls):
        layer(x)
    wait([x])
    return time.perf_counter() - start


@torch.no_grad()
def pad_costs(
    shape: Sequence[int], strides: Sequence[int], mean: torch.Tensor, convs: Sequence[nn.Module]
) -> tuple[float, float]:
    """The seconds of a BatchNorm, and how many more all convolutions need if they pad with values.

    Args:
        shape, strides: of what the BatchNorm returns.
        mean: its statistics; their dtype and device count.
        convs: that read it.
    """
    x = _values(shape, strides, mean.dtype, mean.device)
    layers = [_norm(x), *map(_bare, convs)]
    for conv in convs:
        padded = _bare(conv)
        pad_with_(padded, torch.zeros_like(mean))
        layers.append(padded)
    norm, *others = _medians(layers, x)
    return norm, sum(others[len(convs) :]) - sum(others[: len(convs)])
