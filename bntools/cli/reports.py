"""The screens that other programs show: GitHub's annotations, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from bntools.cli.facts import Loading, Output
from bntools.core.plan import Plan, Site

if TYPE_CHECKING:  # it imports torch, which a screen can do without
    from bntools.core.verify import Report


def github(out: Console, verb: str, plan: Plan | None, report: Report | None = None) -> None:
    """A notice with the result, and a warning for each site that stays."""
    if plan is None:
        return
    _plain(out, f"::notice title=bntools {verb}::{_escaped(summary(plan, report))}")
    for refusal in plan.refusals:
        text = f"{refusal.site.name}: {refusal.reason.value}: {refusal.detail}; {refusal.remedy}"
        _plain(out, f"::warning title=bntools {verb}::{_escaped(text)}")


def markdown(
    out: Console,
    loading: Loading,
    sites: Sequence[Site],
    plan: Plan | None,
    report: Report | None,
    written: Output | None,
) -> None:
    """A summary and a table of all sites."""
    _plain(out, f"**{_cell(loading.name)}** ({_cell(loading.what)})\n")
    if plan is not None:
        _plain(out, f"{summary(plan, report)}\n")
    if written is not None:
        _plain(out, f"Written: `{written.path}`\n")
    into = {e.site.name: f"`{e.host.path}` ({e.host.op})" for e in plan.edits} if plan else {}
    why = {r.site.name: f"{r.reason.value}: {r.detail}" for r in plan.refusals} if plan else {}
    _plain(out, "| site | type | channels | folds into, or why not |")
    _plain(out, "|---|---|---:|---|")
    for site in sites:
        verdict = into.get(site.name) or _cell(why.get(site.name, ""))
        _plain(out, f"| `{site.name}` | {site.kind} | {site.channels} | {verdict} |")


def summary(plan: Plan, report: Report | None) -> str:
    """The result in one sentence."""
    text = f"{len(plan.edits)} of {len(plan.sites)} BatchNorms fold"
    if report is not None and report.verdict.value != "skipped":
        text += f"; {report.verdict.value}, off by {report.error:.1e} of the scale in float64"
    return text


def _plain(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escaped(text: str) -> str:
    """What GitHub's commands need escaped."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
