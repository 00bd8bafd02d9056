"""Rules about what a pass over data showed. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bntools.errors import listed
from bntools.findings.affine import before_relu
from bntools.findings.layer import NormLayer
from bntools.findings.passed import Reached
from bntools.findings.remark import Remark, of_channels
from bntools.findings.subject import Subject

_NAMED = 5
_MOST = 1.0
"""What a channel counts for at most: one that has died says little of the others."""
_TIMES = 4
"""How much of what chance makes is left out: the stored statistics may be of as few samples as the data, and
two halves of it tell the order of that only; of 176 architectures the worst layer had three times as much."""
_OFF = 0.01
"""From which divergence on, beyond chance, a layer may open a gap: a shift of 0.1 σ."""
_MANY = 256
"""So many values of a channel below 0 are no chance: half of all would be above."""


def drifted(subject: Subject, threshold: float) -> Iterator[Remark]:
    drift = subject.passed.drift if subject.passed is not None else None
    layers = {layer.path: layer for layer in drift.layers} if drift is not None else {}
    for norm, found in _reached(subject):
        if norm.path not in layers or not _beyond_chance(found) > threshold:
            continue
        moved, divergence = layers[norm.path], _divergence(found)
        told = (
            f"divergence {divergence:.2g}: μ is off by up to {moved.mean:.2g} σ, "
            f"σ² by a factor of up to {math.exp(moved.var):.2g}"
        )
        numbers = {"divergence": divergence, "mean": moved.mean, "log_var": moved.var}
        yield Remark(norm.path, told, numbers)


def _divergence(found: Reached) -> float:
    """The mean over channels; 0 where it is not known."""
    if found.divergence is None:
        return 0.0
    return float(np.minimum(np.nan_to_num(found.divergence, nan=_MOST), _MOST).mean())


def _beyond_chance(found: Reached) -> float:
    return _divergence(found) - _TIMES * found.chance if found.chance is not None else 0.0


def train_eval_gap(subject: Subject, threshold: float) -> Iterator[Remark]:
    """Where no statistics are off beyond chance, no gap is either: a deep network makes much of little."""
    drift = subject.passed.drift if subject.passed is not None else None
    if drift is None or drift.gap_before is None:
        return
    off = max((_beyond_chance(found) for _, found in _reached(subject)), default=0.0)
    if drift.gap_before > threshold and off > _OFF:
        told = f"outputs in eval are off by {drift.gap_before:.2g} of the largest that training would see"
        numbers = {"gap": drift.gap_before}
        if drift.gap_after is not None:
            told += f", by {drift.gap_after:.2g} with the statistics of this data"
            numbers["recalibrated"] = drift.gap_after
        yield Remark(None, told, numbers)


def nan_batches(subject: Subject, threshold: float) -> Iterator[Remark]:
    passed = subject.passed
    if passed is None:
        return
    lost = [f"batch {number}" for number in passed.skipped] + list(passed.left_out)
    if lost:
        yield Remark(None, f"in {listed(lost, _NAMED)}", {"count": float(len(lost))})
    if passed.poisoned is not None:
        path, number = passed.poisoned
        told = f"NaN or infinity reaches it from batch {number}, which has none"
        yield Remark(path, told, {"batch": float(number)})


def grouped_batches(subject: Subject, threshold: float) -> Iterator[Remark]:
    told = [(found.grouping, norm.path) for norm, found in _reached(subject) if found.grouping is not None]
    if told and max(told)[0] > threshold:
        most, path = max(told)
        words = f"at {path or 'the model'} their means vary {most:.3g} times as much as chance would have it"
        yield Remark(None, words, {"ratio": most})


def few_samples(subject: Subject, threshold: float) -> Iterator[Remark]:
    chance, path = _chance(subject)
    if subject.passed is None or not threshold < chance < math.inf:
        return
    samples = subject.passed.samples
    needed = samples * chance / threshold  # it falls with the number
    digits = max(int(math.log10(needed)) - 1, 0)  # of which two are as many as are true
    needed = math.ceil(needed / 10**digits) * 10**digits
    told = f"from {samples} samples a divergence of {chance:.2g} at {path} is chance; about {needed} would do"
    yield Remark(None, told, {"samples": float(samples), "chance": chance, "needed": float(needed)})


def _chance(subject: Subject) -> tuple[float, str]:
    """The largest divergence that chance makes, and where; infinite if nobody knows."""
    known = [(found.chance, norm.path) for norm, found in _reached(subject) if found.chance is not None]
    return max(known, default=(math.inf, ""))


def silent_channels(subject: Subject, threshold: float) -> Iterator[Remark]:
    """Of what a BatchNorm makes of the least and the largest value the larger one is below 0."""
    if subject.passed is None:
        return
    for norm in before_relu(subject):
        found = subject.passed.reached.get(norm.path)
        if found is None or found.values < _MANY or norm.scale is None or norm.shift is None:
            continue
        top = np.maximum(norm.scale * found.low, norm.scale * found.high) + norm.shift
        if bool((top <= 0).any()):
            told = f"{of_channels(top <= 0)} for all of {found.values} values"
            yield Remark(norm.path, told, {"channels": float((top <= 0).sum()), "of": float(top.size)})


def unreached(subject: Subject, threshold: float) -> Iterator[Remark]:
    if subject.passed is None or subject.passed.poisoned is not None:
        return
    for norm in subject.norms:
        if norm.path in subject.passed.stops and norm.path not in subject.passed.reached:
            yield Remark(norm.path, f"none of {subject.passed.samples} samples has reached it", {})


def uneven_calls(subject: Subject, threshold: float) -> Iterator[Remark]:
    """Where every batch calls it as often as the example did, `bntools.findings.structure` tells."""
    for norm, found in _reached(subject):
        if found.least != found.most:
            told = f"one batch calls it {_times(found.least)}, another {_times(found.most)}"
        elif subject.seen is None and found.most > 1:
            told = f"each batch calls it {_times(found.most)}"
        else:
            continue
        yield Remark(norm.path, told, {"least": float(found.least), "most": float(found.most)})


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def _reached(subject: Subject) -> Iterator[tuple[NormLayer, Reached]]:
    """In order of execution."""
    passed = subject.passed
    if passed is None:
        return
    order = [layer.path for layer in passed.drift.layers] if passed.drift is not None else []
    for path in dict.fromkeys((*order, *passed.reached)):
        if path in passed.reached and path in subject.by_path:
            yield subject.by_path[path], passed.reached[path]
