"""Convolutions that pad each input channel with a value of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn


class _Padded(nn.modules.conv._ConvNd):
    """What the three have in common: the padding is done first, and the convolution does none.

    Zeros that pad the input of a convolution stand for zeros of the value that was there. If a shift has
    been taken out of that value, they stand for ``pad_value`` instead.
    """

    pad_value: Tensor

    def _pad(self, x: Tensor) -> Tensor:
        around = self._reversed_padding_repeated_twice
        padded = F.pad(x, around)
        value = self.pad_value.view(-1, *(1,) * len(self.kernel_size))
        for at in range(len(self.kernel_size)):
            axis = padded.ndim - 1 - at
            for start, width in (
                (0, around[2 * at]),
                (padded.shape[axis] - around[2 * at + 1], around[2 * at + 1]),
            ):
                if width:
                    edge = padded.narrow(axis, start, width)
                    edge.copy_(value.expand_as(edge))
        return padded


class PaddedConv1d(_Padded, nn.Conv1d):
    """A `torch.nn.Conv1d` that pads input channel c with ``pad_value[c]``, shape (I,)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv1d(self._pad(input), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class PaddedConv2d(_Padded, nn.Conv2d):
    """A `torch.nn.Conv2d` that pads input channel c with ``pad_value[c]``, shape (I,)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(self._pad(input), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class PaddedConv3d(_Padded, nn.Conv3d):
    """A `torch.nn.Conv3d` that pads input channel c with ``pad_value[c]``, shape (I,)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv3d(self._pad(input), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


PADDED: Mapping[type[nn.Module], type[_Padded]] = MappingProxyType(
    {nn.Conv1d: PaddedConv1d, nn.Conv2d: PaddedConv2d, nn.Conv3d: PaddedConv3d}
)
"""By the class that it is made of."""


def pad_with_(conv: nn.Module, value: Tensor) -> None:
    """Turn a convolution, in place, into one that pads with *value*, shape (I,).

    Example:
        >>> import torch
        >>> conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(conv.weight)
        >>> pad_with_(conv, torch.tensor([5.0]))
        >>> conv(torch.ones(1, 1, 2)).tolist()
        [[[7.0, 7.0]]]
    """
    conv.__class__ = PADDED[type(conv)]
    conv.register_buffer("pad_value", value)
