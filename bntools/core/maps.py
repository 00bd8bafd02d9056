"""What each BatchNorm of a run computes, as numbers: its scale and shift, and how large the values around
it are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bntools.core.algebra import affine_of
from bntools.core.calls import Call, Stored

Array = np.ndarray

RESHAPES = frozenset({"view", "reshape", "flatten", "unsqueeze", "squeeze", "alias", "detach"})
"""Operators behind which the same numbers stand in the same order."""

_SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class Norm:
    """``y = scale·x + shift`` for each channel, in float64.

    Args:
        scale, shift: s and t.
        mean: μ.
        before: how large x is, ``|μ| + σ``.
        behind: how large the terms of y are, ``|s|·(|μ| + σ) + |β|``.
    """

    scale: Array
    shift: Array
    mean: Array
    before: Array
    behind: Array


def norms_of(calls: Sequence[Call], tensors: Mapping[str, Tensor]) -> dict[int, Norm]:
    """By the index of its call, what each BatchNorm with statistics of its own computes.

    Args:
        calls: of a run.
        tensors: of the model, by key.
    """
    slots: dict[int, list[Stored | None]] = {}
    for call in calls:
        if call.op in ("batch_norm", "instance_norm"):
            own = [call.args.get(n) for n in ("weight", "bias", "running_mean", "running_var")]
            known = all(t is None or (isinstance(t, Stored) and t.keys[0] in tensors) for t in own)
            if known and own[2] is not None and own[3] is not None:
                slots[call.index] = own
    numbers = _numbers(
        {t.keys[0]: tensors[t.keys[0]] for own in slots.values() for t in own if t is not None}
    )
    found: dict[int, Norm] = {}
    for call in calls:
        if call.index in slots:
            own = [None if t is None else numbers[t.keys[0]] for t in slots[call.index]]
            found[call.index] = _norm(own, float(call.args["eps"]))
    return found


def factors_of(calls: Sequence[Call], tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """The numbers of small parameters that something may be multiplied by, in float64, by key."""
    keys = {
        t.keys[0]
        for call in calls
        if call.op.rstrip("_") in ("mul", "multiply", "div", "divide", "true_divide") or call.op in RESHAPES
        for t in call.reads()
        if isinstance(t, Stored) and t.floating and math.prod(t.shape) <= _SMALL and t.keys[0] in tensors
    }
    numbers = _numbers({key: tensors[key] for key in sorted(keys)})
    return {key: n.reshape(tensors[key].shape).numpy() for key, n in numbers.items()}


def _norm(slots: Sequence[Tensor | None], eps: float) -> Norm:
    gamma, beta, mean, var = slots
    assert mean is not None
    assert var is not None
    scale, shift = affine_of(gamma, beta, mean, var, eps)
    before = mean.abs() + 1 / torch.rsqrt(var + eps)
    behind = scale.abs() * before + (0 if beta is None else beta.abs())
    return Norm(*(v.numpy() for v in (scale, shift, mean, before, behind)))


def _numbers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of them in float64 on the CPU, with one look at each device."""
    by_device: dict[torch.device, list[str]] = defaultdict(list)
    for key, tensor in tensors.items():
        by_device[tensor.device].append(key)
    found: dict[str, Tensor] = {}
    for keys in by_device.values():
        row = torch.cat([tensors[key].detach().flatten() for key in keys]).to("cpu").double()
        found.update(zip(keys, row.split([tensors[key].numel() for key in keys]), strict=True))
    return found
