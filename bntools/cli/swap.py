"""``bntools swap``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console

from bntools.cli import images, opening, samples
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink
from bntools.errors import UsageError, listed
from bntools.printable import printable

if TYPE_CHECKING:  # they import torch
    from bntools.core.change import Change
    from bntools.core.plan import Plan

NORMS = ("group", "layer", "instance", "switchable", "frozen", "sync", "batch")
"""Those of the verb, which imports torch."""

_HEAD = ("layer", "norm", "groups", "difference")


def swap(
    context: typer.Context,
    model: o.Model,
    output: o.Out = None,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    input: o.Input = None,
    inputs: o.Inputs = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="NORM",
            help=f"{', '.join(NORMS[:-1])} or {NORMS[-1]}.",
            envvar="BNTOOLS_TO",
            autocompletion=lambda: list(NORMS),
        ),
    ] = "group",
    groups: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="How many; auto leaves 16 channels in each, and makes 32 at most.",
            envvar="BNTOOLS_GROUPS",
        ),
    ] = "auto",
    data: samples.MoreData = None,
    batch_size: samples.BatchSize = 32,
    max_samples: samples.MaxSamples = 8192,
    skip_bad: samples.SkipBad = False,
    tune: Annotated[
        int,
        typer.Option(
            metavar="STEPS",
            help="Also train the model for so many batches, on the outputs of the old one.",
            min=0,
            rich_help_panel="The data",
            envvar="BNTOOLS_TUNE",
        ),
    ] = 0,
    weight_standardization: Annotated[
        bool,
        typer.Option(
            "--weight-standardization",
            help="Also train the convolutions' filters apart from their mean and norm.",
            envvar="BNTOOLS_WEIGHT_STANDARDIZATION",
        ),
    ] = False,
    resize: images.Resize = None,
    crop: images.Crop = None,
    mean: images.Mean = None,
    std: images.Std = None,
    workers: images.Workers = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Which BatchNorms, such as 'layer4.*'; '!layer1' leaves out. Repeatable."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a BatchNorm stays.", envvar="BNTOOLS_STRICT")
    ] = False,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Put another norm in the place of each BatchNorm, and keep what was learned.

    Its scale and shift come from the running statistics, or from data, where there is some.
    The result is another function on purpose: how far it is from the old one is measured and printed.
    """
    with sink("swap", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        count = _groups(groups)
        asked = images.asked(context, data) if data is not None else {}
        if tune and data is None:
            raise UsageError("--tune: there is no data to train on", todo="give --data")
        from bntools.cli import reports, text
        from bntools.cli.files import check_output, write
        from bntools.verbs.swap import Target
        from bntools.verbs.swap import swap as swap_model

        out.step("loading")
        found = opening.load(context, model)
        loading = Loading(model, found.what, found.unsafe)
        target = check_output(found, output, "swapped", force=force or dry_run, programs=False)
        source = (
            samples.opened(
                out, data, found.model, batch_size, max_samples=max_samples, skip=skip_bad, **asked
            )
            if data is not None
            else None
        )
        out.step("swapping")
        surgery = swap_model(
            found.model,
            cast(Target, to),
            groups=count,
            data=source.batches if source is not None else None,
            tune=tune,
            weight_standardization=weight_standardization,
            max_samples=max_samples,
            inputs=opening.example(context, found),
            only=only or "*",
            inplace=True,
            progress=lambda step, done: out.advance(
                step, done, tune if step == "tuning" else source.samples if source is not None else None
            ),
        )
        plan, change = surgery.plan, surgery.report
        left_out = source.left_out if source is not None else []
        told, rows = _summary(plan, change), [_HEAD, *_rows(plan, change)]
        failure = opening.left_over(plan, strict, "stay")
        written = None
        if failure is None and not dry_run and plan.edits:
            out.step("writing")
            written, failure = write(found, surgery, target, force=force)

        def screen(console: Console) -> None:
            text.heading(console, loading, change.inputs)
            if plan.swaps:
                text.table(console, rows, names=2)
            text.line(console, "swapped", told)
            if left_out:
                text.line(console, "left out", listed(left_out))
            for note in plan.notes:
                text.note(console, note)
            text.stays(console, plan.refusals)
            text.output(console, written)

        out.result(
            {
                "model": loading,
                "dry_run": dry_run,
                "plan": plan,
                "change": change,
                "left_out": left_out,
                "output": written,
            },
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.notices(c, "swap", told, plan),
                o.Format.markdown: lambda c: reports.layers(c, loading, told, written, rows, names=2),
            },
            failure,
        )


def _groups(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"--groups: {text!r} is none", todo="write a number, or auto")
    return int(text)


def _rows(plan: Plan, change: Change) -> list[tuple[str, str, str, str]]:
    off = dict(change.layers)
    return [
        (
            printable(swap.paths[0]),
            swap.norm.value,
            str(swap.groups) if swap.norm.value == "group" else "-",
            f"{off[swap.paths[0]]:.2e}" if swap.paths[0] in off else "-",
        )
        for swap in plan.swaps
    ]


def _summary(plan: Plan, change: Change) -> str:
    """The result in one sentence; that of a new function is never called equal."""
    from bntools.cli.text import norms

    told = f"{len(plan.edits)} of {norms(len(plan.sites))}"
    if change.samples:
        told += f", fitted to {change.samples} samples"
    if change.tuned is not None:
        before, after = change.tuned
        why = f", which took it from {before:.2e} to {after:.2e}" if after < before else ", and taken back"
        told += f", tuned for {change.steps} steps{why}"
    if change.output is None:
        return f"{told}; nothing was measured, since no inputs were given and none could be guessed"
    return f"{told}; the outputs differ by {change.output:.2e} of their size"
