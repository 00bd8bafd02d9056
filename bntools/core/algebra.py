r"""The equations. Pure functions of tensors, in whatever dtype they are given.

At inference a BatchNorm computes, for each channel c,

    y_c = s_c·x_c + t_c,   s = γ/√(σ² + ε),   t = β − s·μ,

and a layer in front of it that computes x = W∗z + b takes that in as W' = s·W and b' = s·b + t, whatever
the layer is: only where its weight keeps the output channels differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 16


def affine_of(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The scale s = γ/√(σ² + ε) and the shift t = β − s·μ of a BatchNorm in eval.

    Args:
        gamma, beta: shape (C,); None for 1 and 0.
        mean, var: running statistics μ and σ², shape (C,).
        eps: ε.

    Returns:
        s and t, shape (C,).

    Example:
        >>> s, t = affine_of(None, None, torch.tensor([3.0]), torch.tensor([4.0]), eps=0.0)
        >>> s.item(), t.item()
        (0.5, -1.5)
    """
    scale = torch.rsqrt(var + eps)
    if gamma is not None:
        scale = gamma * scale
    shift = -scale * mean
    return scale, shift if beta is None else beta + shift


def compose(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One map for two in a row: ``s₂(s₁x + t₁) + t₂ = (s₂s₁)x + (s₂t₁ + t₂)``.

    Args:
        first, second: scale and shift, shape (C,) each.

    Example:
        >>> one, two = torch.tensor([2.0]), torch.tensor([3.0])
        >>> [t.item() for t in compose((one, one), (two, two))]
        [6.0, 9.0]
    """
    return second[0] * first[0], second[0] * first[1] + second[1]


def fold_weight(weight: Tensor, scale: Tensor, shift: Tensor, layout: str, groups: int = 1) -> Tensor:
    """W' of a layer that takes in y = s·x + t behind it, in the dtype of s, rounded once to that of W.

    Args:
        weight: W, by *layout*:

            - ``rows``: convolution (O, I/g, K…) or linear (O, I): W'[o] = s_o·W[o]
            - ``transposed``: transposed convolution (I, O/g, K…), output channel (j, o) of group j:
              W'[i, o] = s_(j,o)·W[i, o] for the inputs i of group j
            - ``vector``: the γ of a norm, (C,): γ' = s·γ
            - ``table``: embedding (V, C), which has no bias: E' = E·s + t
        scale, shift: s and t, shape (O,).
        groups: g, of a transposed convolution.

    Returns:
        W', of the shape, dtype and memory format of W.

    Example:
        >>> fold_weight(torch.ones(2, 3), torch.tensor([2.0, -1.0]), torch.zeros(2), "rows").tolist()
        [[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]]
    """
    if layout == "table":
        return (weight * scale + shift).to(weight.dtype)
    folded = torch.empty_like(weight)
    if layout == "transposed":
        inputs, outputs, *kernel = weight.shape
        split = (groups, inputs // groups, outputs, *kernel)
        scale = scale.reshape(groups, 1, outputs, *(1,) * len(kernel))
        folded.copy_((weight.reshape(split) * scale).reshape(weight.shape))
        return folded
    scale = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    # On a CPU the product is taken in blocks whose float64 fits the cache: twice to fifty times as fast.
    step = max(1, _BLOCK // max(1, weight[0].numel())) if weight.device.type == "cpu" else len(weight)
    for at in range(0, len(weight), step):
        rows = slice(at, at + step)
        torch.mul(weight[rows], scale[rows], out=folded[rows])
    return folded


def fold_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """b' = s·b + t, all of shape (O,), in the dtype of s; no bias is a bias of zeros.

    Example:
        >>> fold_bias(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([0.5])).item()
        2.5
    """
    return shift if bias is None else bias * scale + shift
