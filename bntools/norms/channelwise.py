"""What is left of a BatchNorm that stays, once its statistics are multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAffine(nn.Module):
    """A scale and a shift for each channel: ``y = weight·x + bias``, or ``y = x + bias`` without a scale.

    What a BatchNorm computes at inference, without its statistics, its ε and the square root.

    Args:
        channels: the number of channels C.
        scale: whether there is a weight.
        device, dtype: of the parameters.

    Shape:
        (N, C) or (N, C, …), and the output as the input.

    Attributes:
        weight: shape (C,), ones at first; None without a scale.
        bias: shape (C,), zeros at first.

    Example:
        >>> ChannelAffine(3)(torch.ones(1, 3)).tolist()
        [[1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.channels, *(1 for _ in range(x.ndim - 2)))
        bias = self.bias.view(shape)
        return x + bias if self.weight is None else torch.addcmul(bias, x, self.weight.view(shape))

    def extra_repr(self) -> str:
        return f"{self.channels}, scale={self.weight is not None}"
