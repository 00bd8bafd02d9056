"""SwitchableNorm: a layer that learns how much to normalise by the sample, by the layer and by the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_NARROW = (torch.float16, torch.bfloat16)
_FIRST = {"weight": 1.0, "bias": 0.0, "mean_weight": 1.0, "var_weight": 1.0}
_OTHERS = 1e-6
"""What instance and layer each get in the place of a BatchNorm. Ten times as much moves the outputs of a
MobileNetV2 by more than 1e-3 of their scale.
"""


class _Switchable(_NormBase):
    """What the three have in common; see `SwitchableNorm2d`.

    No subclass of torch's ``_BatchNorm``, since it computes something else by the same buffers: whoever looks
    for BatchNorms to fold, to convert or to update would be wrong about it.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("instance", "layer", "batch")
    ndims: ClassVar[tuple[int, ...]]
    mean_weight: nn.Parameter
    var_weight: nn.Parameter

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        if not bias:  # not every torch that we run on has the argument
            self.register_parameter("bias", None)
        self.mean_weight = nn.Parameter(torch.ones(3, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(3, device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make it a fresh layer, which takes a third of each."""
        self.reset_running_stats()
        for name, value in _FIRST.items():
            if (parameter := self._parameters.get(name)) is not None:
                parameter.fill_(value)

    @torch.no_grad()
    def bn_dominant_(self, others: float = _OTHERS) -> None:
        """Start as a BatchNorm, of which the statistics of instance and layer take *others* each.

        Where the variance of the layer is R times that of a channel, the output of this channel is off by
        about ``others·R/2`` of its scale. The gradients of the two weights are of the size of *others*: the
        more of them, the sooner the layer learns to switch.
        """
        logits = dominant(others)
        self.mean_weight.copy_(logits)
        self.var_weight.copy_(logits)

    def weights(self) -> dict[str, dict[str, float]]:
        """How much each kind of statistics counts: of ``mean`` and of ``var``, by kind; each adds up to 1."""
        both = {"mean": self.mean_weight, "var": self.var_weight}
        return {
            name: dict(zip(self.KINDS, logits.detach().float().softmax(0).tolist(), strict=True))
            for name, logits in both.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        space = x.shape[2:].numel()
        count = x.shape[0] * space
        if count == 0:  # it has no statistics, and nothing to normalise by them
            return x.clone()
        if self.training and count == 1:
            raise ValueError(f"expected more than 1 value per channel when training (got {[*x.shape]})")
        wide = x.float() if x.dtype in _NARROW else x
        dims = tuple(range(2, max(x.ndim, 3)))
        var, mean = torch.var_mean(wide if x.ndim > 2 else wide.unsqueeze(2), dims, correction=0)  # (N, C)
        layer = _pooled(mean, var, 1)
        if self.training:
            batch = _pooled(mean, var, 0)
            self._follow(*batch, count)
        else:
            batch = self._buffer("running_mean").to(mean), self._buffer("running_var").to(mean)
        # One value is its own mean: what is normalised by it is 0, whatever it was.
        of_one = (space == 1) + (space == 1 and self.num_features == 1)
        shift = _mixed(self.mean_weight, (mean, layer[0], batch[0]), of_one)
        scale = (_mixed(self.var_weight, (var, layer[1], batch[1]), of_one) + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.to(scale)
        shape = (*mean.shape, *(1 for _ in x.shape[2:]))
        # The shift comes first: it takes a mean far from 0 away before anything is rounded to its size.
        y = (wide - shift.expand_as(mean).reshape(shape)) * scale.expand_as(mean).reshape(shape)
        if self.bias is not None:
            y = y + self.bias.to(y).reshape(shape[1:])
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics by those of a batch, ``(1 − m)·old + m·batch``."""
        seen = self._buffer("num_batches_tracked").add_(1)
        m = seen.to(mean).reciprocal() if self.momentum is None else self.momentum
        for name, new in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
            old, new = self._buffer(name), new.detach().reshape(-1)
            old.copy_(torch.lerp(old.to(new), new, m))

    def _buffer(self, name: str) -> Tensor:
        buffer = self._buffers[name]
        assert buffer is not None
        return buffer

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in self.ndims:
            expected = " or ".join(f"{n}D" for n in self.ndims)
            raise ValueError(f"expected {expected} input (got {input.ndim}D input)")
        if input.shape[1] != self.num_features:  # one channel would be broadcast
            raise ValueError(f"expected {self.num_features} channels along axis 1 (got {input.shape[1]})")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        keys = [prefix + "mean_weight", prefix + "var_weight"]
        mean = state_dict.get(prefix + "running_mean")
        if mean is not None and not any(key in state_dict for key in keys):  # it is a BatchNorm's
            state_dict.update({key: dominant().to(mean) for key in keys})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class SwitchableNorm2d(_Switchable):
    """Normalises by a mixture of the statistics of the sample's channel, of the sample and of the batch.

    ``y = (x − Σ w_k·μ_k) / √(Σ w'_k·σ²_k + ε) · γ + β``, with k over instance, layer and batch,
    ``w = softmax(mean_weight)`` and ``w' = softmax(var_weight)``. From the μ and σ² of each channel of each
    sample, those of the layer are ``mean_c μ`` and ``mean_c σ² + var_c μ``, and those of the batch are the
    same over n. In eval the running statistics stand for the batch's, as in a BatchNorm.

    A statistic of a single value (of an instance, where a map is 1×1) is left out, and the weights of the
    others add up to 1. Types narrower than float32 are computed in float32.

    Args:
        num_features: the number of channels C.
        eps: added to the variance.
        momentum: of the running statistics, ``(1 − m)·old + m·batch``; None for the average of all batches.
        affine: whether there are γ and β.
        bias: whether there is a β, if there is a γ.
        device, dtype: of parameters and buffers.

    Shape:
        (N, C, H, W), and the output as the input.

    Attributes:
        weight, bias, running_mean, running_var, num_batches_tracked: as a BatchNorm's. It loads the state
            dict of one, and computes almost what that did: see `bn_dominant_`.
        mean_weight, var_weight: shape (3,), before the softmax; ones at first.

    Source:
        Luo, Ren, Peng, Zhang and Li, Differentiable Learning-to-Normalize via Switchable Normalization
        (ICLR 2019).

    Example:
        >>> norm = SwitchableNorm2d(3)
        >>> norm.load_state_dict(nn.BatchNorm2d(3).state_dict())
        <All keys matched successfully>
        >>> round(norm.weights()["var"]["batch"], 4)
        1.0
    """

    ndims = (4,)


class SwitchableNorm1d(_Switchable):
    """As `SwitchableNorm2d`, of (N, C), where nothing is left of the instance, or (N, C, L)."""

    ndims = (2, 3)


class SwitchableNorm3d(_Switchable):
    """As `SwitchableNorm2d`, of (N, C, D, H, W)."""

    ndims = (5,)


SWITCHABLE: Mapping[int, type[_Switchable]] = MappingProxyType(
    {1: SwitchableNorm1d, 2: SwitchableNorm2d, 3: SwitchableNorm3d}
)
"""By how many axes inputs have behind the channels."""


def _pooled(mean: Tensor, var: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The mean and the variance of parts of equal size, taken together along an axis, which stays.

    The variance of the means is taken around their mean: ``E[μ²] − E[μ]²`` is the same in exact arithmetic,
    and has no digits left where the mean is far from 0.
    """
    between, whole = torch.var_mean(mean, axis, correction=0, keepdim=True)
    return whole, var.mean(axis, keepdim=True) + between


def _mixed(logits: Tensor, parts: Sequence[Tensor], skip: int) -> Tensor:
    """The parts by their weights, without the first *skip*, whose weights go to the others."""
    weights = logits.to(parts[0])[skip:].softmax(0)
    return torch.stack(torch.broadcast_tensors(*parts[skip:]), -1).mul(weights).sum(-1)


def dominant(others: float = _OTHERS) -> Tensor:
    """What the softmax makes *others*, *others* and the rest."""
    if not 0 < others < 1 / 3:
        raise ValueError(f"others: expected a number between 0 and 1/3, it is {others}")
    return torch.tensor([0.0, 0.0, math.log(1 / others - 2)])
