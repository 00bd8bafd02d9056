"""Weight standardisation: convolutions whose filters are trained apart from their mean and their norm."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bntools.errors import UsageError

EPS = 1e-6
"""A filter may be constant, and its variance 0."""
_NARROW = (torch.float16, torch.bfloat16)
_KEPT = "gain", "offset"
_HELD = (dict, OrderedDict, set)
_ONE_VALUE = "a filter of one value is its own mean: nothing of it would be left to train"


class _Standardized(_ConvNd):
    """What the three have in common; see `StandardizedConv2d`."""

    eps: float
    gain: nn.Parameter
    offset: Tensor

    def __init__(self, *args: Any, eps: float = EPS, **options: Any) -> None:
        if not eps > 0:
            raise ValueError(f"eps: expected a number above 0, it is {eps}")
        super().__init__(*args, **options)
        if _fan_in(self.weight) < 2:
            raise ValueError(f"weight: expected 2 values per filter or more, it has 1: {_ONE_VALUE}")
        self.eps = eps
        self.gain = nn.Parameter(self.weight.new_ones(self.out_channels))
        self.register_buffer("offset", self.weight.new_zeros(self.out_channels))

    def reset_parameters(self) -> None:
        """Make it a fresh layer, whose filters have the mean 0 and the norm 1."""
        super().reset_parameters()
        if "gain" in self._parameters:  # torch's constructor asks before there is one
            nn.init.ones_(self.gain)
            nn.init.zeros_(self.offset)

    def effective_weight(self) -> Tensor:
        """The filters that it convolves with: ``V``, shape and type of ``weight``."""
        wide = self.weight.float() if self.weight.dtype in _NARROW else self.weight
        var, mean = torch.var_mean(wide, [*range(1, wide.ndim)], correction=0, keepdim=True)
        scale = self.gain.to(wide.dtype).view_as(mean) * ((var + self.eps) * _fan_in(wide)).rsqrt()
        offset = self.offset.to(wide.dtype).view_as(mean)
        return torch.addcmul(offset, wide - mean, scale).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.effective_weight(), self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        weight, keys = state_dict.get(prefix + "weight"), {prefix + name for name in _KEPT}
        # One with neither is a plain convolution's. Of other shapes, torch says more than we could.
        if isinstance(weight, Tensor) and weight.shape == self.weight.shape and not keys & state_dict.keys():
            assign = local_metadata.get("assign_to_params_buffers", False)
            kept = standardization_of(weight if assign else weight.to(self.weight.dtype), self.eps)
            state_dict.update({prefix + name: tensor for name, tensor in kept.items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"  # type: ignore[no-untyped-call]


class StandardizedConv1d(_Standardized, nn.Conv1d):
    """As `StandardizedConv2d`, of (N, C, L)."""


class StandardizedConv2d(_Standardized, nn.Conv2d):
    """A `torch.nn.Conv2d` that standardises each of its filters before it convolves with it.

    Filter o of its ``weight`` W has N values: input channels over groups, times the size of the kernel. It
    convolves with V,

        ``Ŵ_o = (W_o − mean W_o) / √(var W_o + ε)``, ``V_o = gain_o · Ŵ_o / √N + offset_o``.

    Ŵ is weight standardisation. In front of a GroupNorm it makes training with few samples a batch steadier,
    since no step moves the mean of a filter, or the norm by way of W. Alone it computes something else than a
    trained convolution did: the norms of the filters in one group are no longer what they were to each other,
    and the mean of a filter, which multiplies the sum over a patch of the input, is lost. gain and offset
    give both back.

    The gain is trained, for filters of one group must be able to outgrow each other. It is divided by √N, so
    that a step of it is one step along the filter; without that, it would be N of them. The offset is a
    buffer: trained, it would put back what standardisation takes out of each step, and weight decay would
    move it.

    Types narrower than float32 are computed in float32.

    Args:
        args, options: as for `torch.nn.Conv2d`.
        eps: added to the variance of a filter; above 0.

    Shape:
        as for `torch.nn.Conv2d`.

    Attributes:
        weight, bias: as a convolution's. It loads the state dict of one, and computes what that did.
        gain: shape (O,), ones at first; a parameter.
        offset: shape (O,), zeros at first; a buffer.

    Raises:
        ValueError: if a filter has one value, of which nothing would be left, or *eps* is not above 0.

    Source:
        Qiao, Wang, Liu, Shen and Yuille, Micro-Batch Training with Batch-Channel Normalization and Weight
        Standardization (2019), for Ŵ; Brock, De and Smith, Characterizing signal propagation to close the
        performance gap in unnormalized ResNets (ICLR 2021), for the gain and the √N.

    Example:
        >>> conv = StandardizedConv2d(2, 1, 1, eps=1e-12)
        >>> _ = conv.load_state_dict({"weight": torch.tensor([[[[5.0]], [[2.0]]]]), "bias": torch.zeros(1)})
        >>> conv.offset.tolist(), [round(v, 4) for v in conv.effective_weight().flatten().tolist()]
        ([3.5], [5.0, 2.0])
    """


class StandardizedConv3d(_Standardized, nn.Conv3d):
    """As `StandardizedConv2d`, of (N, C, D, H, W)."""


STANDARDIZED: Mapping[type[nn.Module], type[_Standardized]] = MappingProxyType(
    {nn.Conv1d: StandardizedConv1d, nn.Conv2d: StandardizedConv2d, nn.Conv3d: StandardizedConv3d}
)
"""By the class that it is made of."""
_PLAIN: Mapping[type[nn.Module], type[nn.Module]] = {ours: torchs for torchs, ours in STANDARDIZED.items()}


@torch.no_grad()
def standardization_of(weight: Tensor, eps: float = EPS) -> dict[str, Tensor]:
    """The gain and the offset with which a standardised convolution computes what the plain one did.

    ``gain_o = √N·√(var W_o + ε)``, ``offset_o = mean W_o``, computed in float64.

    Args:
        weight: of the plain convolution, shape (O, I, *K).
        eps: of the layer that they are for.

    Returns:
        ``gain`` and ``offset`` by name, shape (O,), in the type of the weight and on its device.

    Example:
        >>> kept = standardization_of(torch.tensor([[[5.0], [2.0]]]), eps=1e-12)
        >>> {name: tensor.tolist() for name, tensor in kept.items()}
        {'gain': [2.1213202476501465], 'offset': [3.5]}
    """
    var, mean = torch.var_mean(weight.detach().double().flatten(1), 1, correction=0)
    gain = ((var + eps) * _fan_in(weight)).sqrt()
    return {"gain": gain.to(weight.dtype), "offset": mean.to(weight.dtype)}


def why_not(conv: nn.Module) -> str:
    """Why a module cannot be standardised, in words; empty if it can.

    Example:
        >>> why_not(nn.Conv2d(8, 8, 1, groups=8))
        'a filter of one value is its own mean: nothing of it would be left to train'
    """
    kind, weight = type(conv), conv._parameters.get("weight")
    if kind in _PLAIN:
        return "it is standardised already"
    if kind not in STANDARDIZED:
        return f"it is a {kind.__name__}, not torch's Conv1d, Conv2d or Conv3d"
    if reason := _altered(conv):
        return reason
    assert weight is not None
    taken = [name for name in (*_KEPT, "eps", "effective_weight") if hasattr(conv, name)]
    if taken:
        return f"it has something else by the name of {taken[0]}"
    if weight.is_meta:
        return "its weight is on the meta device and has no values"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if _fan_in(weight) < 2:
        return _ONE_VALUE
    if not all(bool(tensor.isfinite().all()) for tensor in standardization_of(weight).values()):
        return "its weight, or the norm of a filter in the type of that, is not finite"
    return ""


@torch.no_grad()
def standardize_(conv: nn.Module, kept: Mapping[str, Tensor] | None = None, *, eps: float = EPS) -> None:
    """Turn a convolution, in place, into a standardised one that computes the same, up to rounding.

    Weight, bias, mode and hooks stay the very ones that they are. The gain is trained if the weight is.

    Args:
        conv: a `torch.nn.Conv1d`, `torch.nn.Conv2d` or `torch.nn.Conv3d`.
        kept: what `standardization_of` its weight gave with the same *eps*; made anew if None.
        eps: added to the variance of a filter.

    Raises:
        UsageError: if `why_not` says so, or *kept* or *eps* does not fit; then nothing is changed.

    Example:
        >>> conv, x = nn.Conv2d(3, 8, 3), torch.randn(1, 3, 9, 9)
        >>> before = conv(x)
        >>> standardize_(conv)
        >>> type(conv).__name__, torch.allclose(conv(x), before, atol=1e-5)
        ('StandardizedConv2d', True)
    """
    kind = type(conv)
    if reason := why_not(conv):
        raise UsageError(f"{kind.__name__}: it cannot be standardised: {reason}", todo="leave it as it is")
    if not eps > 0:
        raise UsageError(f"eps: expected a number above 0, it is {eps}", todo=f"leave it out, for {EPS}")
    weight = conv._parameters["weight"]
    assert weight is not None
    kept = standardization_of(weight, eps) if kept is None else kept
    shapes = {name: [*tensor.shape] for name, tensor in kept.items()}
    if shapes != {name: [len(weight)] for name in _KEPT}:
        raise UsageError(
            f"{kind.__name__}: expected {' and '.join(_KEPT)} of shape {[len(weight)]}, they are {shapes}",
            todo="give what standardization_of its weight returns",
        )
    conv.register_parameter("gain", nn.Parameter(kept["gain"].to(weight, copy=True), weight.requires_grad))
    conv.register_buffer("offset", kept["offset"].to(weight, copy=True))
    vars(conv)["eps"] = eps
    conv.__class__ = STANDARDIZED[kind]


@torch.no_grad()
def plain_of(module: nn.Module) -> _ConvNd:
    """The plain convolution that computes exactly what a standardised one does now, to fold or to export.

    Its mode and its hooks are those of the module; its tensors are copies.

    Raises:
        UsageError: if it is no standardised convolution, or has been altered since.

    Example:
        >>> conv, x = StandardizedConv2d(3, 8, 3), torch.randn(1, 3, 9, 9)
        >>> plain = plain_of(conv)
        >>> type(plain).__name__, torch.equal(plain(x), conv(x))
        ('Conv2d', True)
    """
    kinds = " or ".join(kind.__name__ for kind in _PLAIN)
    if reason := _altered(module) if type(module) in _PLAIN else f"expected a {kinds}":
        raise UsageError(
            f"{type(module).__name__}: it cannot be made plain: {reason}",
            todo="give what standardize_ has changed, as it is",
        )
    plain: Any = copy.copy(module)
    inner = {name: held.copy() for name, held in vars(plain).items() if type(held) in _HELD}
    vars(plain).update(inner)
    for name, tensor in {"weight": plain.effective_weight(), "bias": plain.bias}.items():
        if tensor is not None:
            grad = getattr(module, name).requires_grad
            plain._parameters[name] = nn.Parameter(tensor.detach().clone(), requires_grad=grad)
    del plain._parameters["gain"], plain._buffers["offset"], plain.eps
    plain.__class__ = _PLAIN[type(module)]
    assert isinstance(plain, _ConvNd)
    return plain


def _altered(module: nn.Module) -> str:
    """What makes a convolution compute something else than its class and its own tensors say."""
    if not {"forward", "_conv_forward"}.isdisjoint(vars(module)):
        return "its forward is its own"
    # torch's older weight_norm, spectral_norm and prune leave plain tensors in the place of parameters.
    if module._parameters.get("weight") is None or "bias" not in module._parameters:
        return "its weight or its bias is computed from other tensors"
    return ""


def _fan_in(weight: Tensor) -> int:
    """How many values each filter has."""
    return weight.shape[1:].numel()
