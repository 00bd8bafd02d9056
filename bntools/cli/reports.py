"""The screens that other programs show: GitHub's annotations, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from bntools.cli.facts import Loading, Output
from bntools.cli.render import annotation
from bntools.cli.text import done, left_of, norms, taken_by, why_not
from bntools.core.plan import Plan, Refusal, Site
from bntools.printable import printable

if TYPE_CHECKING:  # it imports torch, which a screen can do without
    from bntools.core.verify import Report


def github(
    out: Console, verb: str, sites: Sequence[Site], plan: Plan | None, report: Report | None = None
) -> None:
    """A notice with the result, and a warning for each site that stays."""
    notices(out, verb, summary(sites, plan, report), plan)


def notices(out: Console, verb: str, told: str, plan: Plan | None) -> None:
    """A notice with what is *told*, and a warning for each site that stays."""
    plain(out, annotation("notice", verb, told))
    left = left_of(plan) if plan else {}
    for refusal in plan.refusals if plan else ():
        text = f"{refusal.site.name}: {_why(refusal, left)}; {refusal.remedy}"
        plain(out, annotation("warning", verb, text))


def markdown(
    out: Console,
    loading: Loading,
    sites: Sequence[Site],
    plan: Plan | None,
    report: Report | None,
    written: Output | None,
) -> None:
    """A summary and a table of all sites."""
    _heading(out, loading, summary(sites, plan, report), written)
    into = {e.site.name: taken_by(plan, e, code) for e in plan.edits} if plan else {}
    left = left_of(plan) if plan else {}
    why = {r.site.name: _why(r, left) for r in plan.refusals} if plan else {}
    if not sites:
        return
    head = "folds into" if plan is None or plan.verb == "fold" else "result"
    plain(out, f"| site | type | channels | {head}, or why not |")
    plain(out, "|---|---|---:|---|")
    for site in sites:
        verdict = into.get(site.name) or cell(why.get(site.name, ""))
        name = code(site.name or "the model")
        plain(out, f"| {name} | {cell(site.kind)} | {site.channels} | {verdict} |")


def layers(
    out: Console,
    loading: Loading,
    told: str,
    written: Output | None,
    rows: Sequence[Sequence[str]],
    *,
    names: int,
) -> None:
    """What is *told*, and a table of the layers, whose names stand first.

    Args:
        out: the stream.
        loading, written: the file that was read, and the one that was written, if any.
        told: the result.
        rows: the first is the head.
        names: how many columns hold names; the others hold numbers.
    """
    _heading(out, loading, told, written)
    head, *others = rows
    plain(out, f"| {' | '.join(head)} |")
    plain(out, f"|{'---|' * names}{'---:|' * (len(head) - names)}")
    for row in others:
        plain(out, f"| {code(row[0])} | {' | '.join(row[1:])} |")


def _heading(out: Console, loading: Loading, told: str, written: Output | None) -> None:
    plain(out, f"**{cell(loading.name)}** ({cell(loading.what)})\n")
    plain(out, f"{told}\n")
    if written is not None:
        plain(out, f"Written: {code(written.path)}\n")


def summary(sites: Sequence[Site], plan: Plan | None, report: Report | None) -> str:
    """The result in one sentence."""
    if plan is None:
        return norms(len(sites))
    text = done(plan)
    if report is not None and report.verdict.value != "skipped":
        text += f"; {report.verdict.value}, off by {report.error:.1e} of the scale in float64"
    return text


def _why(refusal: Refusal, left: Mapping[str, str]) -> str:
    """Why a site stays, and what it becomes."""
    name = refusal.site.name
    return why_not(refusal) + (f"; it becomes {left[name]}" if name in left else "")


def plain(out: Console, text: str) -> None:
    """A line as it is."""
    out.print(text, markup=False, soft_wrap=True)


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return printable(text).replace("|", "\\|")


def code(text: str) -> str:
    """A name as code, which a cell can hold too; a backtick in it would end it."""
    return f"`{cell(text).replace('`', chr(39))}`"
