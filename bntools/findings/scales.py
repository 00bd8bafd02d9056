"""Rules about what a layer multiplies by and adds, as its own numbers tell. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bntools.findings.layer import median
from bntools.findings.remark import Remark, of_channels
from bntools.findings.subject import Subject


def scale_outlier(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.scale is None:
            continue
        size = np.abs(norm.scale)
        middle = median(size)
        if middle > 0 and float(size.max()) > threshold * middle:
            at, ratio = int(size.argmax()), float(size.max()) / middle
            told = f"channel {at}: {float(size.max()):.3g}, {ratio:.0f} times the median"
            yield Remark(norm.path, told, {"channel": at, "scale": float(size.max()), "ratio": ratio})


def zero_channels(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.gamma is None or not bool(np.isfinite(norm.gamma).all()):
            continue
        size = np.abs(norm.gamma)
        weak = size < threshold * size.max()
        if bool(weak.any()):
            told = f"{of_channels(weak)}: |γ| is below {threshold:g} of the largest, {float(size.max()):.3g}"
            yield Remark(norm.path, told, {"channels": float(weak.sum())})


def zero_branch(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        if norm.gamma is None or not bool(np.isfinite(norm.gamma).all()):
            continue
        largest = float(np.abs(norm.gamma).max())
        if largest <= threshold:
            still = norm.beta is None or bool((norm.beta == 0).all())
            told = f"the largest |γ| is {largest:.2g}" + (", and β = 0" if still else ", β is not 0")
            yield Remark(norm.path, told, {"largest": largest})
