"""What a BatchNorm that stays can become: a shift, or a scale and a shift, where that is faster.

Its layers may take its scale in where nothing lets its shift pass, an activation behind it say; then a
shift is left. Else what is left is ``w·x + b``, without statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bntools.core.calls import Capture, Value
from bntools.core.compute import get_tensor
from bntools.core.faster import faster
from bntools.core.flow import Flow
from bntools.core.forest import Array
from bntools.core.graph import Graph
from bntools.core.plan import REDUCED, Op, Plan, Reduction
from bntools.core.settle import Solution
from bntools.core.sites import BatchNorm, find_staying

_CLOSE = 1e-9

Reducible = Mapping[int, tuple[BatchNorm, Collection[Op]]]
"""BatchNorms by the index of their call, and what would be faster than each."""


def find_reducible(model: nn.Module, capture: Capture, plan: Plan) -> dict[str, Collection[Op]]:
    """What is faster than each BatchNorm that a plan lets stay, by the name of its site.

    Args:
        model: that was captured.
        capture: one run of it.
        plan: made for it.
    """
    graph = Graph(capture)
    found: dict[str, Collection[Op]] = {}
    known: dict[Any, Collection[Op]] = {}
    for bn in find_staying(capture, plan):
        # A module that is called again may have other neighbours, an instance norm no batch another time.
        if bn.call.op != "batch_norm" or len(graph.hosts[bn.call.owner]) > 1:
            continue
        x, mean = bn.call.args["input"], get_tensor(model, f"{bn.paths[0]}.running_mean")
        if mean is None or not isinstance(x, Value):
            continue
        dtype = getattr(torch, x.dtype)
        if mean.dtype != dtype or any(part.name == REDUCED for part in bn.keeps):
            continue
        key = x.shape, x.strides, dtype, mean.device
        if key not in known:
            known[key] = faster(*key)
        if known[key]:
            found[bn.site.name] = known[key]
    return found


def draw_reductions(
    flow: Flow, reduce: Reducible, solution: Solution
) -> tuple[tuple[Reduction, ...], dict[str, tuple[Array, Array]]]:
    """What each BatchNorm becomes, and its scale and shift by the name of its site.

    With S and T its own, ``x = r·x' + v`` for the x' that it will read and ``s·y + t`` for what it is to
    return, that is ``s·S·r`` and ``s·(S·v + T) + t``.
    """
    reductions, numbers = [], {}
    for index, (bn, ops) in sorted(reduce.items()):
        norm, taker = flow.graph.capture.norms[index], flow.takers.get(index)
        scale, shift = norm.scale, norm.shift
        if taker is not None and taker.columns is not None:
            s, t = solution.s[taker.rows], solution.t[taker.rows]
            r, v = solution.r[taker.columns], solution.v[taker.columns]
            scale, shift = s * scale * r, s * (scale * v + shift) + t
        is_shift = bool((np.abs(scale - 1) <= _CLOSE).all())
        op = Op.SHIFT if is_shift and Op.SHIFT in ops else Op.AFFINE
        if op in ops:
            reductions.append(Reduction(bn.site, op, bn.paths, bn.keeps))
            numbers[bn.site.name] = scale, shift
    return tuple(reductions), numbers
