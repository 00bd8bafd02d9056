"""``bntools fold``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import INCONCLUSIVE, Failure, Loading
from bntools.cli.render import sink
from bntools.errors import PromiseError

if TYPE_CHECKING:  # they import torch
    from bntools.core.plan import Plan
    from bntools.core.verify import Report


def fold(
    context: typer.Context,
    model: o.Model,
    output: o.Out = None,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    keep_mode: o.KeepMode = False,
    input: o.Input = None,
    inputs: o.Inputs = None,
    bake_parametrizations: Annotated[
        bool,
        typer.Option(
            "--bake-parametrizations",
            help="Make weight_norm and spectral_norm plain where that lets a BatchNorm fold.",
            envvar="BNTOOLS_BAKE_PARAMETRIZATIONS",
        ),
    ] = False,
    simplify: Annotated[
        bool,
        typer.Option(
            "--simplify",
            help="Let a BatchNorm that stays become an addition or a multiply-add where that is faster here.",
            envvar="BNTOOLS_SIMPLIFY",
        ),
    ] = False,
    pad_exact: Annotated[
        bool,
        typer.Option(
            "--pad-exact",
            help="Let convolutions pad with -t/s in each channel where a BatchNorm goes by that, and faster.",
            envvar="BNTOOLS_PAD_EXACT",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, change and write nothing.")
    ] = False,
    no_verify: o.NoVerify = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail if a BatchNorm stays or the proof is inconclusive.",
            envvar="BNTOOLS_STRICT",
        ),
    ] = False,
    max_remaining: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Fail if more than N BatchNorms stay.", min=0, envvar="BNTOOLS_MAX_REMAINING"
        ),
    ] = None,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Measure the latency before and after.")
    ] = False,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Fold BatchNorm into the layers around it, prove it, and write the model.

    Every BatchNorm is either folded or listed with the reason why not.
    The result is compared with the original before anything is written.
    With --output model.pt2 or model.onnx the captured program is folded, where more can go.
    """
    with sink("fold", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        from bntools.cli import reports, text
        from bntools.cli.files import check_output, write
        from bntools.core.exact import copied
        from bntools.core.latency import measure
        from bntools.core.programfile import PROGRAMS
        from bntools.verbs.fold import fold as fold_model

        out.step("loading")
        found = opening.load(context, model, graphs=True)
        loading = Loading(model, found.what, found.unsafe)
        target = check_output(found, output, "folded", force=force or dry_run)
        program = target.suffix in PROGRAMS
        opening.set_mode(found, keep_mode, out)
        original = copied(found.model) if benchmark and not dry_run else None
        surgery = fold_model(
            found.model,
            opening.example(context, found),
            level="program" if program else "module",
            inplace=not program,
            bake=bake_parametrizations,
            simplify=simplify,
            pad_exact=pad_exact,
            verify=not (no_verify or dry_run),
            progress=out.step,
        )
        plan, report = surgery.plan, surgery.report
        failure = opening.not_captured(plan) or _failure(plan, report, strict, max_remaining)
        measured = None
        if original is not None and surgery.example is not None and failure is None:
            out.step("measuring the latency")
            measured = measure(original, surgery.model, surgery.example)
        written = None
        if failure is None and not dry_run and (plan.changes or output is not None):
            out.step("writing")
            written, failure = write(found, surgery, target, force=force, certain=strict)
        example = f"{surgery.example} ({surgery.example.origin})" if surgery.example else ""

        def screen(console: Console) -> None:
            text.heading(console, loading, example)
            text.folded(console, plan, dry=dry_run)
            if not dry_run:
                text.proof(console, report)
                text.file_check(console, written)
                text.latency(console, measured)
                text.output(console, written)

        out.result(
            {
                "model": loading,
                "input": example or None,
                "dry_run": dry_run,
                "plan": plan,
                "report": report,
                "latency": measured,
                "output": written,
            },
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.github(c, "fold", plan.sites, plan, report),
                o.Format.markdown: lambda c: reports.markdown(c, loading, plan.sites, plan, report, written),
            },
            failure,
        )


def _failure(plan: Plan, report: Report, strict: bool, most: int | None) -> Failure | None:
    """What the caller asked for and does not hold."""
    remaining = len(plan.refusals)
    limit = 0 if strict and most is None else most
    if limit is not None and remaining > limit:
        why = f"{remaining} of {len(plan.sites)} BatchNorms stay, at most {limit} may"
        return Failure(why, "nothing was written", PromiseError.exit_code)
    if strict and plan.changes and report.verdict.value == "inconclusive":
        return Failure(f"the proof is inconclusive: {report.why}", "nothing was written", INCONCLUSIVE)
    return None
