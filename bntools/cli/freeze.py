"""``bntools freeze`` and ``bntools unfreeze``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import Sink, sink
from bntools.printable import printable

if TYPE_CHECKING:  # they import torch
    from bntools.core.freezing import Freezing
    from bntools.core.plan import Plan
    from bntools.core.source import Loaded
    from bntools.core.surgery import Surgery

_WHICH = "Which BatchNorms"
_HEAD = ("layer", "statistics", "γ and β")

Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Such as 'layer4.*'; '!layer1' leaves out. Repeatable.",
        rich_help_panel=_WHICH,
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Fail if a BatchNorm stays as it is.", envvar="BNTOOLS_STRICT"),
]


def freeze(
    context: typer.Context,
    model: o.Model,
    output: o.Out = None,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    only: Only = None,
    first: Annotated[
        int | None,
        typer.Option(metavar="N", help="Those that a forward comes to first.", min=1, rich_help_panel=_WHICH),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Those up to the end of that module.", rich_help_panel=_WHICH),
    ] = None,
    input: o.Input = None,
    inputs: o.Inputs = None,
    stats_only: Annotated[
        bool, typer.Option("--stats-only", help="Only the running statistics: γ and β are still trained.")
    ] = False,
    affine_only: Annotated[
        bool, typer.Option("--affine-only", help="Only γ and β: the statistics still move.")
    ] = False,
    strict: Strict = False,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Freeze BatchNorms for good: model.train() does not undo it.

    A frozen one normalises by its running statistics in either mode, and leaves them alone.
    The model's mode stays the one that it was saved in.
    """
    with sink("freeze", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        of_stats, of_affine = opening.exclusive(context, "stats_only", "affine_only")
        from bntools.verbs.freeze import freeze as freeze_model

        found, target = _opened(context, out, model, output, "frozen", force=force or dry_run)
        out.step("freezing")
        surgery = freeze_model(
            found.model,
            only or "*",
            stats=not of_affine,
            affine=not of_stats,
            first=first,
            until=until,
            inputs=None if first is None and until is None else opening.example(context, found),
            inplace=True,
        )
        _finish(context, out, found, surgery, target)


def unfreeze(
    context: typer.Context,
    model: o.Model,
    output: o.Out = None,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    only: Only = None,
    strict: Strict = False,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Make frozen BatchNorms what they were.

    Only a whole module can be frozen: weights know nothing of it.
    """
    with sink("unfreeze", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        from bntools.verbs.freeze import unfreeze as unfreeze_model

        found, target = _opened(context, out, model, output, "unfrozen", force=force or dry_run)
        out.step("unfreezing")
        surgery = unfreeze_model(found.model, only or "*", inplace=True)
        _finish(context, out, found, surgery, target)


def _opened(
    context: typer.Context, out: Sink, model: str, output: Path | None, word: str, *, force: bool
) -> tuple[Loaded, Path]:
    """The model, and where the changed one goes."""
    from bntools.cli.files import check_output

    out.step("loading")
    found = opening.load(context, model)
    return found, check_output(found, output, word, force=force, programs=False)


def _finish(
    context: typer.Context, out: Sink, found: Loaded, surgery: Surgery[Freezing], target: Path
) -> None:
    """Write the model and say what was done."""
    from bntools.cli import reports, text
    from bntools.cli.files import write

    given: dict[str, Any] = context.params
    loading = Loading(given["model"], found.what, found.unsafe)
    plan, now = surgery.plan, surgery.report
    failure = opening.left_over(plan, given["strict"], "stay as they are")
    written = None
    if failure is None and not given["dry_run"] and plan.edits:
        out.step("writing")
        written, failure = write(found, surgery, target, force=given["force"])
    rows = [_HEAD, *_rows(plan, now)]
    told = f"{text.done(plan)}; frozen now: {_frozen(now)}"

    def screen(console: Console) -> None:
        text.heading(console, loading, "")
        if plan.edits:
            text.table(console, rows, names=3)
        text.line(console, plan.verb, told)
        text.stays(console, plan.refusals)
        text.output(console, written)

    out.result(
        {"model": loading, "dry_run": given["dry_run"], "plan": plan, "frozen": now, "output": written},
        {
            o.Format.text: screen,
            o.Format.github: lambda c: reports.notices(c, plan.verb, told, plan),
            o.Format.markdown: lambda c: reports.layers(c, loading, told, written, rows, names=3),
        },
        failure,
    )


def _rows(plan: Plan, now: Freezing) -> list[tuple[str, str, str]]:
    """Of each BatchNorm that was changed, what is frozen."""
    owners = _owners(now)
    words = {True: "frozen", False: "free"}
    return [
        (printable(path) or "the model", words[path in now.statistics], words[path in owners])
        for path in (switch.path for switch in plan.switches)
    ]


def _frozen(now: Freezing) -> str:
    """What is frozen in the whole model, in words."""
    parts = [f"the statistics of {len(now.statistics)}"] if now.statistics else []
    parts += [f"γ and β of {len(_owners(now))}"] if now.parameters else []
    return ", ".join(parts) or "nothing"


def _owners(now: Freezing) -> set[str]:
    """The paths of the modules whose γ and β are frozen."""
    return {key.rpartition(".")[0] for key in now.parameters}
