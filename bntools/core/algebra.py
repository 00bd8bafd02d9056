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


def group_affine(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float, groups: int
) -> tuple[Tensor, Tensor]:
    """The γ' and β' of a GroupNorm that stands for a BatchNorm, from the running statistics alone.

    If the values of each channel are as the statistics say, then in a group g they have the mean
    ``M = mean_g μ_c`` and the variance ``S² = mean_g(σ_c² + μ_c²) − M²``, and

        ``γ' = γ·√(S² + ε)/√(σ² + ε)``, ``β' = β + γ·(M − μ)/√(σ² + ε)``

    make of ``(x − M)/√(S² + ε)`` what the BatchNorm makes of x. What it leaves out is how samples differ.

    Args:
        gamma, beta: shape (C,); None for 1 and 0.
        mean, var: running statistics μ and σ², shape (C,).
        eps: ε, of both norms.
        groups: how many groups of C/groups channels.

    Returns:
        γ' and β', shape (C,).

    Example:
        >>> mean, var = torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0])
        >>> [each.tolist() for each in group_affine(None, None, mean, var, eps=0.0, groups=1)]
        [[2.2360680103302, 2.2360680103302], [2.0, -2.0]]
    """
    scale, shift = affine_of(gamma, beta, mean, var, eps)
    inside = mean.reshape(groups, -1)
    # As mean(σ²) + var(μ): the difference of two large squares would have no digits left.
    spread = var.reshape(groups, -1).mean(1) + inside.var(1, correction=0)
    each = mean.numel() // groups
    centre = inside.mean(1).repeat_interleave(each)
    return scale * (spread + eps).sqrt().repeat_interleave(each), scale * centre + shift


def fold_weight(
    weight: Tensor, s: Tensor, t: Tensor, layout: str, groups: int = 1, r: Tensor | None = None
) -> Tensor:
    """W' of a layer that has ``s·y + t`` to return where it returned y, and reads x where it read
    ``r·x + v``.

    Args:
        weight: W, by *layout*:

            - ``rows``: convolution (O, I/g, K…) or linear (O, I): W'[o, i] = s_o·W[o, i]·r_i
            - ``transposed``: transposed convolution (I, O/g, K…): W'[i, o] = s_o·W[i, o]·r_i, where output
              channel o of group j is number j·O/g + o
            - ``vector``: the γ of a norm, (C,): γ' = s·γ·r
            - ``table``: embedding (V, C), which has no bias: E' = E·s + t
        s, t: shape (O,).
        groups: g, of a convolution.
        r: shape (I,); None for ones.

    Returns:
        W', computed in the dtype of s and rounded once to that of W, of its shape and memory format.

    Example:
        >>> W, ones, zeros = torch.ones(2, 3), torch.ones(2), torch.zeros(2)
        >>> fold_weight(W, torch.tensor([2.0, -1.0]), zeros, "rows").tolist()
        [[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]]
        >>> fold_weight(W, ones, zeros, "rows", r=torch.tensor([1.0, 2.0, 3.0])).tolist()
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    if layout == "table":
        return (weight * s + t).to(weight.dtype)
    folded = torch.empty_like(weight)
    if layout == "transposed":
        inputs, outputs, *kernel = weight.shape
        split = (groups, inputs // groups, outputs, *kernel)
        ones = (1,) * len(kernel)
        product = weight.reshape(split) * s.reshape(groups, 1, outputs, *ones)
        if r is not None:
            product = product * r.reshape(groups, inputs // groups, 1, *ones)
        folded.copy_(product.reshape(weight.shape))
        return folded
    s = s.reshape(-1, *(1,) * (weight.ndim - 1))
    by_row = None if r is None or weight.ndim < 2 else _by_row(r, weight, groups)
    if r is not None and by_row is None:
        s = s * r
    # On a CPU the product is taken in blocks whose float64 fits the cache: twice to fifty times as fast.
    step = max(1, _BLOCK // max(1, weight[0].numel())) if weight.device.type == "cpu" else len(weight)
    for at in range(0, len(weight), step):
        rows = slice(at, at + step)
        if by_row is None:
            torch.mul(weight[rows], s[rows], out=folded[rows])
        else:
            torch.mul(weight[rows] * by_row[rows], s[rows], out=folded[rows])
    return folded


def _by_row(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """What belongs to the input channels of each row of (O, I/g, K…), shape (O, I/g, 1…)."""
    rows = values.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
    return rows.reshape(len(weight), -1, *(1,) * (weight.ndim - 2))


def fold_bias(bias: Tensor | None, s: Tensor, t: Tensor, added: Tensor | None = None) -> Tensor:
    """``b' = s·(b + a) + t``, all of shape (O,), in the dtype of s; no bias is a bias of zeros.

    Args:
        bias: b.
        s, t: of the map behind the layer.
        added: a, what the shift of its input adds to its output, see `shift_of`; None for zeros.

    Example:
        >>> fold_bias(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([0.5])).item()
        2.5
    """
    if bias is None and added is None:
        return t
    both = added if bias is None else bias if added is None else bias + added
    return both * s + t  # type: ignore[operator]


def shift_of(weight: Tensor, v: Tensor, layout: str, groups: int = 1) -> Tensor:
    """What a layer returns for an input that is v in each channel: W·v summed over inputs and kernel, (O,).

    Args:
        weight: W, of ``rows`` or ``transposed``, see `fold_weight`; in float64.
        v: shape (I,).
        groups: g.

    Example:
        >>> shift_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 10.0]), "rows").tolist()
        [21.0, 43.0]
    """
    if layout == "transposed":
        inputs = len(weight)
        split = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        split = split.reshape(groups, inputs // groups, -1)
        return (split * v.reshape(groups, -1, 1)).sum(1).flatten()
    summed = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    return (summed * _by_row(v, summed, groups)).sum(1)
