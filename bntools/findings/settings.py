"""Rules about how a layer is set: momentum, ε, its class. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from bntools.findings.layer import NormLayer
from bntools.findings.remark import Remark
from bntools.findings.subject import Subject

BATCHES = (2, 4, 8, 16, 32)
"""Samples per device at which the two below were measured."""
BATCH_NORM = (34.7, 27.3, 24.8, 23.7, 23.6)
GROUP_NORM = (24.1, 24.2, 24.0, 24.2, 24.1)
"""The validation error of a ResNet-50 on ImageNet, in %: Wu, He, ECCV 2018, arXiv:1803.08494."""


def momentum_convention(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in _tracking(subject):
        m = norm.momentum
        if m is not None and threshold < m < 1:
            told = f"momentum {m:g}; in the other convention that is {1 - m:.3g}"
            yield Remark(norm.path, told, {"momentum": m})


def momentum_left_behind(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in _tracking(subject):
        if norm.momentum is None or norm.momentum == 1:
            numbers = {} if norm.momentum is None else {"momentum": norm.momentum}
            yield Remark(norm.path, f"momentum {'None' if norm.momentum is None else '1'}", numbers)


def mixed_eps(subject: Subject, threshold: float) -> Iterator[Remark]:
    yield from _mixed(subject, "eps", lambda norm: norm.eps)


def mixed_momentum(subject: Subject, threshold: float) -> Iterator[Remark]:
    """What `momentum_left_behind` and `bntools.findings.modes.no_freeze` speak of is no choice of a value."""
    yield from _mixed(
        subject, "momentum", lambda norm: norm.momentum if 0 < (norm.momentum or 0) < 1 else None
    )


def _mixed(subject: Subject, name: str, value: Callable[[NormLayer], float | None]) -> Iterator[Remark]:
    """The layers that differ from most; a float32 that came from a file is the number that it rounds."""
    found = [(norm, value(norm)) for norm in subject.norms if norm.configured]
    values = [(norm, f"{v:.5g}") for norm, v in found if v is not None]
    counts = Counter(text for _, text in values)
    if len(counts) < 2:
        return
    usual, most = counts.most_common(1)[0]
    for norm, text in values:
        if text != usual:
            told = f"{name} {text}, where {most} of {len(values)} layers have {usual}"
            yield Remark(norm.path, told, {name: float(text), "usual": float(usual)})


def no_statistics(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.batchnorm and norm.mean is None:
            yield Remark(norm.path, "it has no running_mean and running_var", {})


def sync(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.sync:
            yield Remark(norm.path, norm.kind, {})


def small_batch(subject: Subject, threshold: float) -> Iterator[Remark]:
    """Asked only where somebody says how large the batch is: no file tells."""
    size = subject.batch_size
    if size is None or size >= threshold:
        return
    live = [norm for norm in subject.norms if _by_batch(norm)]
    if not live:
        return
    at = max((i for i, n in enumerate(BATCHES) if n <= size), default=0)
    here, there = (f"{BATCH_NORM[i]}% with BatchNorm and {GROUP_NORM[i]}% with GroupNorm" for i in (at, -1))
    told = (
        f"{len(live)} would see {size} at a time; the error of a ResNet-50 is {here} at {BATCHES[at]}, "
        f"{there} at {BATCHES[-1]}"
    )
    numbers = {"batch_size": float(size), "layers": float(len(live))}
    yield Remark(None, told, numbers | {"batchnorm_error": BATCH_NORM[at], "groupnorm_error": GROUP_NORM[at]})


def _by_batch(norm: NormLayer) -> bool:
    """Whether training would go by the samples of one device; bare tensors do not tell, and mostly do."""
    live = norm.batchnorm and not norm.held and not norm.sync
    return live or norm.module is None


def _tracking(subject: Subject) -> Iterator[NormLayer]:
    """Those whose momentum says something: they have statistics, and training would move them."""
    for norm in subject.norms:
        if norm.configured and norm.mean is not None and not norm.held:
            yield norm
