"""What the page tells of each site: its verdict, its findings, how its numbers are spread. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from bntools.core.plan import Edit, Op, Plan, Refusal, Side, Site
from bntools.core.reasons import Reason
from bntools.findings.census import Census
from bntools.findings.finding import SEVERITIES, Finding, Severity
from bntools.findings.layer import NormLayer
from bntools.report.distributions import QUANTITIES, Axis, Distribution

_WHERE = {
    Side.UPSTREAM: "in front of it",
    Side.DOWNSTREAM: "behind it",
    Side.BOTH: "on both sides",
    Side.SIBLING: "beside it",
}
_LEFT = {Op.SHIFT: "an addition for each channel", Op.AFFINE: "a multiply-add for each channel"}


class Verdict(StrEnum):
    """Whether a site folds."""

    FOLDS = "folds"
    STAYS = "stays"
    UNKNOWN = "unknown"
    """What stands around bare tensors nobody knows, nor around a layer of a model that does not run."""


@dataclass(frozen=True, slots=True)
class Told:
    """A verdict in words.

    Args:
        verdict: which.
        into: the layers that take it in, each with its operator.
        how: where those stand, or why it stays.
        remedy: what can be done about that.
    """

    verdict: Verdict
    into: tuple[tuple[str, str], ...] = ()
    how: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One site.

    Args:
        number: its place on the page, from 1.
        site: the call.
        told: whether it folds.
        findings: about its layer, the worst first.
        spread: by the key of the quantity; those that its layer has.
    """

    number: int
    site: Site
    told: Told
    findings: tuple[Finding, ...]
    spread: Mapping[str, Distribution]

    @property
    def name(self) -> str:
        return self.site.name or "the model"

    @property
    def anchor(self) -> str:
        """What a link leads to; a name would be no safe id."""
        return f"s{self.number}"

    @property
    def severity(self) -> Severity | None:
        """Of the worst finding."""
        return min((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    @property
    def grade(self) -> str:
        """The same as a word: ``clean`` where there is no finding."""
        return self.severity.value if self.severity else "clean"


def judged(entries: Iterable[Entry]) -> bool:
    """Whether it is known of any site if it folds."""
    return any(entry.told.verdict is not Verdict.UNKNOWN for entry in entries)


def axes_of(layers: Iterable[NormLayer]) -> dict[str, Axis]:
    """The axis of each quantity, by its key; of the drift only where there was data."""
    known = list(layers)
    found = {
        each: [values for norm in known if (values := getattr(norm, each.key)) is not None]
        for each in QUANTITIES
    }
    return {
        each.key: Axis.over(values, positive=each.positive)
        for each, values in found.items()
        if values or each.key != "divergence"
    }


def entries_of(census: Census, layers: Iterable[NormLayer], axes: Mapping[str, Axis]) -> tuple[Entry, ...]:
    """An entry for each site, in order.

    Args:
        census: of `bntools.inspect`.
        layers: with the numbers, by the paths of the modules.
        axes: that the layers share.
    """
    found: dict[str, list[Finding]] = defaultdict(list)
    for finding in census.findings:
        if finding.layer is not None:
            found[finding.layer].append(finding)
    told, spread = _verdicts(census.plan), {norm.path: _spread(norm, axes) for norm in layers}
    unknown = Told(Verdict.UNKNOWN)
    return tuple(
        Entry(
            at,
            site,
            told.get(site.name, unknown),
            tuple(found.get(site.module, ())) if site.module is not None else (),
            spread.get(site.module, {}) if site.module is not None else {},
        )
        for at, site in enumerate(census.sites, start=1)
    )


def _spread(norm: NormLayer, axes: Mapping[str, Axis]) -> dict[str, Distribution]:
    return {
        each.key: Distribution.of(values, axes[each.key], positive=each.positive)
        for each in QUANTITIES
        if (values := getattr(norm, each.key)) is not None
    }


def _verdicts(plan: Plan | None) -> dict[str, Told]:
    if plan is None:
        return {}
    ops = {host.path: host.op for host in plan.hosts}
    left = {reduction.site.name: _LEFT[reduction.op] for reduction in plan.reductions}
    told = {edit.site.name: _folds(edit, ops) for edit in plan.edits}
    return told | {each.site.name: _stays(each, left.get(each.site.name)) for each in plan.refusals}


def _folds(edit: Edit, ops: Mapping[str, str]) -> Told:
    into = tuple((path, ops.get(path, "")) for path in edit.into)
    if not into:
        return Told(Verdict.FOLDS, how="nobody sees what it returns: it goes")
    through = f", through {', '.join(edit.through)}" if edit.through else ""
    return Told(Verdict.FOLDS, into, _WHERE[edit.side] + through)


def _stays(refusal: Refusal, left: str | None) -> Told:
    why = f"{refusal.reason.value}: {refusal.detail}"
    why += f"; {refusal.behind}" if refusal.behind else ""
    why += f"; it becomes {left}" if left else ""
    verdict = Verdict.UNKNOWN if refusal.reason is Reason.NOT_CAPTURED else Verdict.STAYS
    return Told(verdict, how=why, remedy=refusal.remedy)
