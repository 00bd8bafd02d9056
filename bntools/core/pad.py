"""Convolutions whose zeros keep a BatchNorm from going into them, and that could pad with other values."""

from __future__ import annotations

import torch
from torch import nn

from bntools.core.affine import HOSTS
from bntools.core.calls import Call, Capture, Value
from bntools.core.compute import get_tensor
from bntools.core.faster import GAIN, pad_costs
from bntools.core.graph import Graph
from bntools.core.plan import Plan
from bntools.core.sites import find_staying
from bntools.norms.padded import PADDED


def find_pads(model: nn.Module, capture: Capture, plan: Plan) -> frozenset[int]:
    """The calls of convolutions that may pad with a value for each channel, so that a BatchNorm goes.

    Those that read what a BatchNorm returns that stays, if all of them together lose less by it than the
    BatchNorm takes.

    Args:
        model: that was captured.
        capture: one run of it.
        plan: made for it.
    """
    graph, found = Graph(capture), set[int]()
    for bn in find_staying(capture, plan):
        value, mean = bn.returned, get_tensor(model, f"{bn.paths[0]}.running_mean")
        convs = {
            call.index: conv
            for call in graph.readers_of(value)
            if (conv := _padding(model, call)) is not None and len(graph.hosts[call.owner]) == 1
        }
        if not convs or mean is None or getattr(torch, value.dtype) != mean.dtype:
            continue
        norm, extra = pad_costs(value.shape, value.strides, mean, list(convs.values()))
        if extra < GAIN * norm:
            found |= convs.keys()
    return frozenset(found)


def _padding(model: nn.Module, call: Call) -> nn.Module | None:
    """The convolution that a call is of, if it pads with zeros and is nothing but torch's own."""
    if call.op not in HOSTS or "padding" not in call.args or not isinstance(call.args["input"], Value):
        return None
    host, conv = HOSTS[call.op](call), model.get_submodule(call.owner)
    if host is None or host.shifts or type(conv) not in PADDED or hasattr(conv, "pad_value"):
        return None
    return conv
