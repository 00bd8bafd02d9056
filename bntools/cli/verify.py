"""``bntools verify``."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import INCONCLUSIVE, Failure, Loading
from bntools.cli.render import Sink, sink
from bntools.errors import PlanError, PromiseError, UsageError

if TYPE_CHECKING:  # they import torch
    from torch import nn

    from bntools.core.verify import Report


def verify(
    context: typer.Context,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="The reference: a model as for the other commands, a .pt2, an ONNX file, an artefact.",
            show_default=False,
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)],
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    keep_mode: o.KeepMode = False,
    input: o.Input = None,
    inputs: o.Inputs = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Run batches of this instead: a folder of images, a file of arrays, package.module:factory.",
            rich_help_panel="The example input",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Of the data.", min=1, rich_help_panel="The example input")
    ] = 8,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Compare two torch models in float64: nothing may have been rounded."),
    ] = False,
    no_bisect: Annotated[
        bool, typer.Option("--no-bisect", help="Do not look for the place of a difference.")
    ] = False,
    limit: o.Limit = 300.0,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail also if nothing can be told.",
            envvar="BNTOOLS_STRICT",
        ),
    ] = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Measure whether two models or files compute the same; if not, name the layer where it begins.

    ONNX files run in a process of their own, with ONNX Runtime's optimisations off and on.
    """
    with sink("verify", opening.form(context), quiet, verbose, traceback) as out:
        for name in (a, b):
            opening.check_file(name)
        from bntools.cli import reports, text
        from bntools.verbs.verify import verify as verify_both

        out.step("loading")
        (one, what), (two, other) = _both(context, a, b, keep_mode, out)
        taker = two if isinstance(one, Path) and not isinstance(two, Path) else one
        given, batches = _given(context, taker, batch_size)
        report = verify_both(
            one,
            two,
            given,
            data=batches,
            exact=exact,
            bisect=not no_bisect,
            unsafe=unsafe,
            limit=limit,
            progress=out.step,
        )

        def screen(console: Console) -> None:
            text.line(console, "reference", f"{a}: {what}")
            text.line(console, "other", f"{b}: {other}")
            text.verdict(console, "verdict", report)
            for line in _measured(report):
                text.line(console, "", line)
            for number, line in enumerate(_place(report)):
                text.line(console, "" if number else "place", line)
            for note in report.notes:
                text.note(console, note)

        told = ", ".join(filter(None, [f"{a} and {b}: {report.verdict}", report.why, *_place(report)[:1]]))
        out.result(
            {
                "a": Loading(a, what, unsafe),
                "b": Loading(b, other, unsafe),
                "report": report,
            },
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.notices(c, "verify", told, None),
                o.Format.markdown: lambda c: reports.plain(c, f"**{report.verdict}** {reports.cell(told)}"),
            },
            _failure(report, strict),
        )


def _both(
    context: typer.Context, a: str, b: str, keep_mode: bool, out: Sink
) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """What each name stands for: a module, or the path of a file that the verb opens; and that in words."""
    opened = [_opened(context, name, keep_mode, out) for name in (a, b)]
    modules = [source for source, _ in opened if not isinstance(source, Path | _Plan)]
    other = modules[0] if modules else None
    one, two = (
        (source.applied(context, other) if isinstance(source, _Plan) else source, what)
        for source, what in opened
    )
    return one, two


class _Plan:
    """A file with a plan, which turns the model that it was made of into another."""

    def __init__(self, name: str, artefact: Any) -> None:
        self._name, self._artefact = name, artefact

    def applied(self, context: typer.Context, other: nn.Module | None) -> nn.Module:
        """The changed model, from ``--arch`` or from the module on the other side."""
        from bntools.core.store import apply

        arch = context.params["arch"]
        if arch is None and other is None:
            raise UsageError(
                f"{self._name}: holds weights and a plan, and no model that they are for",
                todo="name its architecture with --arch, or give the model that was changed as the other one",
            )
        if arch is not None:
            with _without(context, "arch"):
                other = opening.load(context, arch).model
        assert other is not None
        return apply(self._artefact, other).eval()


def _opened(context: typer.Context, name: str, keep_mode: bool, out: Sink) -> tuple[Any, str]:
    from bntools.core.sniff import Kind, sniff
    from bntools.core.store import read

    path = Path(name)
    kind = sniff(path).kind if ":" not in name or os.path.exists(name) else Kind.SPEC
    if kind in (Kind.ONNX, Kind.PROGRAM):
        return path, sniff(path).detail
    if kind in (Kind.ARTEFACT, Kind.STATE_DICT):
        try:
            given = context.params
            artefact = read(path, trust=given["trust"] or (), unsafe=given["unsafe"])
            return _Plan(name, artefact), "weights with their plan"
        except PlanError:
            if kind is Kind.ARTEFACT:
                raise
    # --arch is about the one of the two that needs it, its arguments too; but a name takes them as well.
    others = {Kind.MODULE: ("arch", "arch_kwargs"), Kind.SPEC: ("arch",)}.get(kind, ())
    with _without(context, *(others if context.params["arch"] is not None else ())):
        found = opening.load(context, name)
    opening.set_mode(found, keep_mode, out)
    return found.model, found.what


@contextmanager
def _without(context: typer.Context, *names: str) -> Iterator[None]:
    """Inside this, these options are as if nobody had given them."""
    given = {name: context.params[name] for name in names}
    context.params.update(dict.fromkeys(names))
    try:
        yield
    finally:
        context.params.update(given)


def _given(context: typer.Context, taker: Any, batch_size: int) -> tuple[Any, Any]:
    """The input that was asked for, or the data; neither, and an input will be guessed."""
    from bntools.core.data import open_data
    from bntools.core.inputs import parse_inputs, read_inputs
    from bntools.verbs.verify import BATCHES, taker_of

    shapes, file, data = opening.exclusive(context, "input", "inputs", "data")
    if data:
        batches = open_data(data, taker_of(taker), batch_size, max_samples=BATCHES * batch_size)
        return None, batches
    if file:
        return read_inputs(file, taker_of(taker)), None
    return (parse_inputs(shapes, taker_of(taker)) if shapes else None), None


def _measured(report: Report) -> list[str]:
    lines = []
    if report.verdict.value != "unverified":
        rounding = f", at most {report.tolerance:.1e} can be rounding"
        lines.append(f"off by {report.error:.1e} of the scale{rounding}")
    if report.noise is not None:
        lines.append(f"the reference's own rounding is {report.noise:.1e}")
    if report.agreement is not None:
        lines.append(f"argmax: the same in {report.agreement:.1%} of the rows")
    if report.runtime:
        lines.append(f"by {report.runtime}, optimisations off and on")
    return lines + [f"on {inputs}" for inputs in report.inputs]


def _place(report: Report) -> list[str]:
    """Where they begin to differ."""
    place = report.place
    if place is None:
        return []
    known = place.error != float("inf")
    off = "of another shape, not finite, or not computed at all"
    if known:
        off = f"off by {place.error:.1e} of its scale, its own rounding is {place.noise:.1e}"
    value = "" if place.value == place.op else f" {place.value}"
    lines = [f"{place.module or 'the model itself'}: {place.op}{value} is {off}"]
    if len(place.between) > 1:
        names = ", ".join(name or "the model itself" for name in place.between)
        lines.append(f"what it is computed from agrees; between lie {names}")
    if place.node:
        lines.append(f"in the file: {place.node}")
    return [*lines, f"{place.compared} of {place.values} values could be compared"]


def _failure(report: Report, strict: bool) -> Failure | None:
    verdict = report.verdict.value
    if verdict == "failed":
        at = f", from {report.broken} on" if report.broken else ""
        return Failure(f"they do not compute the same: {report.why}{at}", "", PromiseError.exit_code)
    if strict and verdict != "passed":
        return Failure(f"the check is {verdict}: {report.why}", "give other inputs", INCONCLUSIVE)
    return None
