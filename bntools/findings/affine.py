"""Rules about what a layer multiplies by and adds, and who reads it or takes it in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from bntools.core.calls import Capture, Value
from bntools.core.graph import Graph
from bntools.core.reasons import Reason
from bntools.findings.layer import NormLayer
from bntools.findings.remark import Remark, of_channels
from bntools.findings.subject import Subject

_RELU = ("relu", "relu_", "relu6", "relu6_")
_CLAMPS = {"hardtanh": "min_val", "clamp": "min", "clamp_min": "min"}


def dead_channels(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in before_relu(subject):
        if norm.beta is None:
            continue
        gamma = np.ones_like(norm.beta) if norm.gamma is None else norm.gamma
        dead = norm.beta + threshold * np.abs(gamma) < 0
        if bool(dead.any()):
            told = f"{of_channels(dead)}: β + {threshold:g}|γ| < 0"
            yield Remark(norm.path, told, {"channels": float(dead.sum()), "of": dead.size})


def before_relu(subject: Subject) -> Iterator[NormLayer]:
    """The layers of which nobody sees more than a ReLU leaves, in any call."""
    if subject.seen is None or subject.graph is None:
        return
    behind: dict[str, list[bool]] = {}
    for site in subject.sites:
        if site.site.module is not None:
            cut = _only_relu_reads(subject.seen.capture, subject.graph, site.call.outputs[0], site.call.index)
            behind.setdefault(site.site.module, []).append(cut)
    for path, cuts in behind.items():
        if all(cuts) and path in subject.by_path:
            yield subject.by_path[path]


def _only_relu_reads(capture: Capture, graph: Graph, value: Value, since: int) -> bool:
    """Whether everybody who sees a value sees what a ReLU left of it."""
    found = False
    for call in graph.readers[value.memory]:
        if call.index <= since:
            continue
        op = call.op.removesuffix("_")
        low = call.args.get(_CLAMPS.get(op, ""))
        cuts = call.op in _RELU or (op in _CLAMPS and low == 0)
        if not cuts or call.args.get("self") != value:
            return False
        found = True
        if value.memory in call.writes:  # who reads it from here on reads what is left
            return True
    return found and value.memory not in capture.outside


def float16_overflow(subject: Subject, threshold: float) -> Iterator[Remark]:
    """What a fold makes of the layers that take it in; and of a BatchNorm that stays, its scale and shift."""
    if subject.seen is None:
        return
    plan, folded = subject.seen.plan, subject.seen.folded
    for host in plan.hosts:
        size = max((_largest(folded[key]) for key in host.keys if key in folded), default=0.0)
        if size > threshold:
            count = len({*host.rows, *host.columns})
            told = f"with {count} BatchNorms folded in, its largest number is {size:.3g}"
            yield Remark(host.path, told, {"largest": size})
    for refusal in plan.refusals:
        path = refusal.site.module
        norm = subject.by_path.get(path) if path is not None else None
        if norm is None or norm.scale is None or norm.shift is None:
            continue
        size = float(np.abs(np.concatenate([norm.scale, norm.shift])).max())
        if size > threshold or refusal.reason is Reason.OVERFLOW:
            told = f"as a multiply-add its largest number is {size:.3g}"
            yield Remark(norm.path, told, {"largest": size})


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
