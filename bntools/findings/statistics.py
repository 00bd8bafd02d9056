"""Rules about the running statistics of a layer. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from bntools.findings.layer import NormLayer, median
from bntools.findings.remark import Remark, of_channels
from bntools.findings.subject import Subject

_NARROW = ("float16", "bfloat16")


def not_finite(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        bad = {name: ~np.isfinite(tensor) for name, tensor in norm.tensors.items()}
        bad = {name: mask for name, mask in bad.items() if bool(mask.any())}
        if bad:
            told = ", ".join(f"{name} in {of_channels(mask)}" for name, mask in bad.items())
            numbers = {name: float(mask.sum()) for name, mask in bad.items()}
            yield Remark(norm.path, f"NaN or infinite: {told}", numbers)


def negative_variance(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.var is not None and bool((norm.var < 0).any()):
            below = norm.var < 0
            least = float(norm.var[below].min())
            told = f"σ² is below 0 in {of_channels(below)}, the least is {least:.3g}"
            yield Remark(norm.path, told, {"channels": float(below.sum()), "least": least})


def never_trained(subject: Subject, threshold: float) -> Iterator[Remark]:
    """A count of 0 alone says nothing: weights of before the count was kept, or of another framework, have
    one, and statistics all the same.
    """
    for norm in subject.norms:
        if norm.mean is None or norm.var is None:
            continue
        if bool((norm.mean == 0).all()) and bool((norm.var == 1).all()):
            told = "μ = 0 and σ² = 1 exactly"
            fresh = (norm.gamma is None or bool((norm.gamma == 1).all())) and (
                norm.beta is None or bool((norm.beta == 0).all())
            )
            told += ", γ = 1 and β = 0 too" if fresh else ", though γ and β have moved"
            told += f"; {norm.batches} batches counted" if norm.batches else ""
            yield Remark(norm.path, told, {"batches": float(norm.batches or 0)})


def under_warmed(subject: Subject, threshold: float) -> Iterator[Remark]:
    """The start leaves its share w of 1 in every variance. If that of any layer with the same count is below
    w, the count does not tell how the statistics came about: they were recalibrated, or brought along.
    """
    alike: dict[tuple[int, float], list[NormLayer]] = defaultdict(list)
    for norm in subject.norms:
        if norm.configured and norm.var is not None and norm.batches and norm.momentum:
            alike[norm.batches, norm.momentum].append(norm)
    for (batches, momentum), norms in alike.items():
        start = (1 - momentum) ** batches if momentum < 1 else 0.0
        least = min(float(norm.var.min()) for norm in norms if norm.var is not None)
        if start <= threshold or least < start * (1 - 1e-3):
            continue
        for norm in norms:
            told = f"{start:.1%} of its statistics are the start: {batches} batches at momentum {momentum:g}"
            yield Remark(norm.path, told, {"share": start, "batches": batches, "momentum": momentum})


def eps_dominates(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.var is None or not norm.eps or not bool(np.isfinite(norm.var).all()):
            continue
        var = norm.var.clip(min=0)
        share = median(norm.eps / (var + norm.eps))
        if share > threshold:
            middle = median(var)
            told = f"ε = {norm.eps:g} is {share:.0%} of σ² + ε in the median channel, where σ² = {middle:.2g}"
            yield Remark(norm.path, told, {"share": share, "median_variance": middle, "eps": norm.eps})


def half_precision(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.dtype in _NARROW:
            yield Remark(norm.path, f"running_mean and running_var are {norm.dtype}", {})
