"""How a recalibration is shown: to people, on GitHub, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from bntools.cli.facts import Loading, Output
from bntools.cli.reports import code, layers, notices
from bntools.cli.text import line, norms, size, stays, table
from bntools.core.plan import Plan
from bntools.errors import listed
from bntools.printable import printable

if TYPE_CHECKING:  # it imports torch, which a screen can do without
    from bntools.core.drift import Drift
    from bntools.findings.census import Census

_HEAD = ("layer", "mean, in σ", "log σ²", "divergence", "error, in σ")


def drifted(out: Console, plan: Plan, drift: Drift, left_out: Sequence[str]) -> None:
    """How far each layer has moved, and from how much data."""
    table(out, [_HEAD, *_rows(drift)], names=1)
    line(out, "moved", summary(plan, drift))
    line(out, "data", used(drift))
    if left_out:
        line(out, "left out", listed(left_out))
    if drift.gap_before is not None and drift.gap_after is not None:
        gap = f"{drift.gap_before:.1e} of the scale before, {drift.gap_after:.1e} after"
        line(out, "gap", f"outputs off by {gap}")
    stays(out, plan.refusals)


def github(out: Console, plan: Plan, drift: Drift, left_out: Sequence[str]) -> None:
    """A notice with the result, and a warning for each BatchNorm that keeps its statistics."""
    lacking = f"; left out: {listed(left_out)}" if left_out else ""
    notices(out, "recalibrate", f"{summary(plan, drift)}; {used(drift)}{lacking}", plan)


def markdown(
    out: Console,
    loading: Loading,
    plan: Plan,
    drift: Drift,
    left_out: Sequence[str],
    written: Output | None,
) -> None:
    """A summary and a table of the layers."""
    told = f"{summary(plan, drift)}; {used(drift)}"
    told += f"\n\nLeft out: {listed([*map(code, left_out)])}" if left_out else ""
    layers(out, loading, told, written, [_HEAD, *_rows(drift)], names=1)


def looked(out: Console, census: Census) -> None:
    """How much data a look at a model has taken, and which layer is the first that is found to have drifted:
    beyond chance, as its rule has it.
    """
    passed = census.passed
    if passed is None or not passed.stops:
        return
    if passed.drift is None:
        line(out, "data", f"{passed.samples} samples, which do not get through the model")
        return
    line(out, "data", used(passed.drift))
    first = next((finding.layer for finding in census.findings if finding.rule == "BN028"), None)
    told = "none has drifted" if first is None else f"from {printable(first) or 'the model itself'} on"
    line(out, "drift", told)


def summary(plan: Plan, drift: Drift) -> str:
    """The result in one sentence."""
    text = f"{len(plan.edits)} of {norms(len(plan.sites))} recalibrated"
    if drift.first is None:
        return f"{text}; none had drifted"
    return f"{text}; drifted from {printable(drift.first) or 'the model itself'} on"


def used(drift: Drift) -> str:
    """How much data went in, and how."""
    text = f"{drift.samples} samples in {drift.batches} {'batch' if drift.batches == 1 else 'batches'}"
    text += f" of {drift.processes} processes" if drift.processes > 1 else ""
    if drift.groups == 1:
        text += ", all in lock-step: exact"
    else:
        text += f", {drift.groups} groups of at most {drift.virtual_batch}"
    text += f" (within {size(drift.memory)} of memory)" if drift.memory is not None else ""
    if drift.converged:
        text += ", stopped where more would change nothing"
    if drift.skipped:
        text += f"; left out with NaN or infinity: {', '.join(map(str, drift.skipped))}"
    return text


def _rows(drift: Drift) -> Sequence[tuple[str, ...]]:
    return [
        (
            printable(layer.path) or "the model",
            f"{layer.mean:.3f}",
            f"{layer.var:.3f}",
            f"{layer.divergence:.4f}",
            "-" if layer.error_mean is None else f"{layer.error_mean:.3f}",
        )
        for layer in drift.layers
    ]
