"""The screens that people read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape as markup_escape

from bntools.cli.facts import Loading, Output
from bntools.core.plan import Edit, Op, Plan, Refusal, Side, Site
from bntools.core.reasons import REMEDIES, Reason
from bntools.errors import listed
from bntools.printable import printable

if TYPE_CHECKING:  # both import torch, which a screen can do without
    from bntools.core.latency import Latency
    from bntools.core.verify import Report


_NAMED = 3
_WHERE = {
    Side.UPSTREAM: "",
    Side.DOWNSTREAM: ", behind it",
    Side.BOTH: ", on both sides",
    Side.SIBLING: ", beside it",
}

_DONE = {
    "fold": "fold",
    "recalibrate": "recalibrated",
    "freeze": "frozen",
    "unfreeze": "unfrozen",
    "swap": "swapped",
}
_LEFT = {Op.SHIFT: "an addition for each channel", Op.AFFINE: "a multiply-add for each channel"}


def escape(text: str) -> str:
    """What came from a file, as it can be shown: neither markup nor control characters work in it."""
    return markup_escape(printable(text))


def heading(out: Console, loading: Loading, example: str) -> None:
    """What was loaded and from what kind of file, and what it is run on."""
    line(out, "model", f"{loading.name}: {loading.what}")
    if example:
        line(out, "input", example)


def census(out: Console, sites: Sequence[Site], plan: Plan | None) -> None:
    """A row for each site."""
    if not sites:
        line(out, "sites", "no BatchNorm")
        return
    into = {e.site.name: f"[green]{escape(taken_by(plan, e))}[/green]" for e in plan.edits} if plan else {}
    why = {r.site.name: f"[yellow]{escape(why_not(r))}[/yellow]" for r in plan.refusals} if plan else {}
    rows = [
        ("site", "type", "channels", "eps", "momentum", "batches", "folds into, or why not" if plan else "")
    ]
    rows += [
        (
            printable(s.name) or "the model",
            printable(s.kind),
            str(s.channels),
            _number(s.eps),
            _number(s.momentum),
            _number(s.batches),
            into.get(s.name) or why.get(s.name, ""),
        )
        for s in sites
    ]
    table(out, [row[:6] for row in rows], names=2, last=[row[6] for row in rows])
    if plan is not None:
        line(out, "folds", _count(plan))
        remedies(out, plan.refusals)


def table(
    out: Console, rows: Sequence[Sequence[str]], *, names: int, last: Sequence[str] | None = None
) -> None:
    """Rows under their head, padded by hand: a table that fits the screen would cut the paths.

    Args:
        out: the screen.
        rows: the first is the head.
        names: how many columns hold names; the others hold numbers.
        last: a long column behind them, with its markup.
    """
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for at, (row, tail) in enumerate(zip(rows, last or [""] * len(rows), strict=True)):
        left = [escape(cell.ljust(n)) for cell, n in zip(row[:names], wide, strict=False)]
        right = [cell.rjust(n) for cell, n in zip(row[names:], wide[names:], strict=True)]
        out.print("  ".join([*left, *right, tail]).rstrip(), style="bold" if at == 0 else None)


def folded(out: Console, plan: Plan, *, dry: bool) -> None:
    """How many sites fold into what, and each one that stays."""
    line(out, "would fold" if dry else "folded", _count(plan))
    reduced(out, plan)
    stays(out, plan.refusals)
    for text in plan.notes:
        note(out, text)


def reduced(out: Console, plan: Plan) -> None:
    """Convolutions that pad in another way, and of what stays the ones that become something faster."""
    padded = [host.path for host in plan.hosts if host.pad]
    if padded:
        line(out, "padded", f"{len(padded)} with a value for each channel: {', '.join(padded)}")
    for op, what in _LEFT.items():
        names = [reduction.site.name for reduction in plan.reductions if reduction.op is op]
        if names:
            line(out, "reduced", f"{len(names)} to {what}: {', '.join(names)}")


def stays(out: Console, refusals: Sequence[Refusal]) -> None:
    """Each site that stays, under its reason, with the remedy; those of which the same is to say together."""
    for reason, found in _by_reason(refusals):
        line(out, "stays", f"[yellow]{reason.value}[/yellow]: {escape(REMEDIES[reason])}", markup=True)
        alike: dict[str, list[str]] = {}
        for refusal in found:
            alike.setdefault(in_its_way(refusal), []).append(refusal.site.name or "the model")
        for detail, names in alike.items():
            line(out, "", f"{', '.join(names)}: {detail}")


def remedies(out: Console, refusals: Sequence[Refusal]) -> None:
    """What can be done about each reason that occurs."""
    for reason, found in _by_reason(refusals):
        line(out, "stays", f"{len(found)} {reason.value}: {REMEDIES[reason]}")


def proof(out: Console, report: Report) -> None:
    """The verdict, and the numbers that it stands on."""
    verdict(out, "proof", report)
    if report.verdict.value == "skipped":
        return
    line(
        out,
        "",
        f"float64: off by {report.error:.1e} of the scale, at most {report.tolerance:.0e} can be rounding",
    )
    line(out, "", f"power: without these BatchNorms it would be off by {report.power:.1e}")
    if report.shipped_error is not None:
        shipped = f"as shipped: off by {report.shipped_error:.1e}"
        line(out, "", f"{shipped}, where the original's own rounding is {report.noise:.1e}")
    if report.agreement is not None:
        line(out, "", f"argmax: the same in {report.agreement:.1%} of the rows")
    for inputs in report.inputs:
        line(out, "", f"on {inputs}")


def verdict(out: Console, label: str, report: Report, by: str = "") -> None:
    """In its colour, with what stands behind it and the reason for it."""
    colour = {"passed": "green", "failed": "red"}.get(report.verdict.value, "yellow")
    why = f": {escape(report.why)}" if report.why else ""
    line(out, label, f"[{colour}]{report.verdict.value}[/{colour}]{by}{why}", markup=True)


def file_check(out: Console, written: Output | None) -> None:
    """What the runtime computed from the file that was written."""
    if written is None or written.check is None:
        return
    check = written.check
    verdict(out, "file", check, f", by {check.runtime}" if check.runtime else "")
    if check.noise is not None:
        own = f"where the original's own rounding is {check.noise:.1e}"
        line(out, "", f"off by {check.error:.1e} of the scale, {own}")


def replayed(out: Console, plan: Plan, name: str) -> None:
    """What was done again, and from which file."""
    line(out, "replayed", f"{_count(plan)}, from {name}")
    reduced(out, plan)
    line(out, "", "every tensor is that of the file, bit for bit")


def note(out: Console, text: str) -> None:
    """Something that the reader should know."""
    line(out, "note", text)


def output(out: Console, written: Output | None) -> None:
    """Which file was written, and how its size changed."""
    if written is None:
        line(out, "written", "nothing")
        return
    was = f", was {size(written.before)}" if written.before else ""
    line(out, "written", f"{written.path} ({written.what}, {size(written.after)}{was})")


def latency(out: Console, measured: Latency | None) -> None:
    """The time of a forward before and after."""
    if measured is not None:
        times = f"{measured.before:.2f} ms before, {measured.after:.2f} ms after"
        line(out, "latency", f"{times}: {measured.before / measured.after:.2f} times as fast")
        spread = f"quartiles {measured.spread_before:.2f} and {measured.spread_after:.2f} ms apart"
        line(out, "", f"medians of {measured.runs} interleaved runs, {spread}, {measured.threads} threads")


def line(out: Console, label: str, text: str, *, markup: bool = False) -> None:
    """A label and what there is to say."""
    out.print(f"[bold]{label:<10}[/bold]  {text if markup else escape(text)}")


def _count(plan: Plan) -> str:
    if plan.verb != "fold":
        return done(plan)
    ops = _ops(plan)
    into = Counter(f"into {ops[e.into[0]]}{_WHERE[e.side]}" if e.into else "into nothing" for e in plan.edits)
    kinds = ", ".join(f"{n} {where.replace(',', '')}" for where, n in into.most_common())
    return f"{len(plan.edits)} of {norms(len(plan.sites))}{': ' + kinds if kinds else ''}"


def done(plan: Plan) -> str:
    """Of how many BatchNorms the plan makes something, and what."""
    return f"{len(plan.edits)} of {norms(len(plan.sites))} {_DONE.get(plan.verb, 'changed')}"


def norms(count: int) -> str:
    """So many BatchNorms, in words."""
    return f"{count} BatchNorm{'' if count == 1 else 's'}"


def taken_by(plan: Plan, edit: Edit, name: Callable[[str], str] = str) -> str:
    """The layers that take a BatchNorm in: the first few, each by its *name*."""
    if plan.verb != "fold":
        return _DONE.get(plan.verb, "changed")
    ops = _ops(plan)
    names = [f"{name(path or 'the model')} ({ops[path]})" for path in edit.into]
    return f"{listed(names, _NAMED)}{_WHERE[edit.side]}" if names else "nothing: nobody sees it"


def _ops(plan: Plan) -> dict[str, str]:
    """What each layer is that takes something in, by its path."""
    reduced = {reduction.removes[0]: reduction.op.value for reduction in plan.reductions if reduction.removes}
    return reduced | {host.path: host.op for host in plan.hosts}


def left_of(plan: Plan) -> dict[str, str]:
    """By the name of a site that is reduced, what it becomes."""
    return {reduction.site.name: _LEFT[reduction.op] for reduction in plan.reductions}


def in_its_way(refusal: Refusal) -> str:
    """What stands in the way of a BatchNorm that stays, on both sides."""
    return f"{refusal.detail}; {refusal.behind}" if refusal.behind else refusal.detail


def why_not(refusal: Refusal) -> str:
    """The reason with what stands in the way."""
    return f"{refusal.reason.value}: {in_its_way(refusal)}"


def _by_reason(refusals: Sequence[Refusal]) -> list[tuple[Reason, list[Refusal]]]:
    found: dict[Reason, list[Refusal]] = {}
    for refusal in refusals:
        found.setdefault(refusal.reason, []).append(refusal)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def size(count: int) -> str:
    """Bytes, to be read."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
