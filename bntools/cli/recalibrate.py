"""``bntools recalibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from bntools.cli import images, opening, processes, samples
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink
from bntools.errors import UsageError

_STATISTICS, _RUN = "The statistics", "The run"


def recalibrate(
    context: typer.Context,
    model: o.Model,
    data: samples.Data,
    output: o.Out = None,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    batch_size: samples.BatchSize = 32,
    max_samples: samples.MaxSamples = 8192,
    skip_bad: samples.SkipBad = False,
    resize: images.Resize = None,
    crop: images.Crop = None,
    mean: images.Mean = None,
    std: images.Std = None,
    workers: images.Workers = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Which BatchNorms, such as 'layer4.*'; '!layer1' leaves out. Repeatable.",
            rich_help_panel=_STATISTICS,
        ),
    ] = None,
    include_frozen: Annotated[
        bool,
        typer.Option("--include-frozen", help="Also those that are frozen.", rich_help_panel=_STATISTICS),
    ] = False,
    virtual_batch: Annotated[
        str,
        typer.Option(
            metavar="N|auto|all",
            help="How many samples are in lock-step: all is exact, auto fits the memory.",
            rich_help_panel=_STATISTICS,
            envvar="BNTOOLS_VIRTUAL_BATCH",
        ),
    ] = "auto",
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="MB", help="For auto; else half of what is free.", min=1, rich_help_panel=_STATISTICS
        ),
    ] = None,
    no_stop: Annotated[
        bool,
        typer.Option(
            "--no-stop", help="Go on where more data would change nothing.", rich_help_panel=_STATISTICS
        ),
    ] = False,
    prior: Annotated[
        float,
        typer.Option(
            help="As how many samples the old statistics count.", min=0, rich_help_panel=_STATISTICS
        ),
    ] = 0.0,
    moving_average: Annotated[
        bool,
        typer.Option(
            "--moving-average",
            help="Move the statistics batch by batch, as training does.",
            rich_help_panel=_STATISTICS,
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option(help="Where to run, such as cuda.", rich_help_panel=_RUN, envvar="BNTOOLS_DEVICE"),
    ] = "cpu",
    autocast: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Run in this type, such as bfloat16.",
            rich_help_panel=_RUN,
            envvar="BNTOOLS_AUTOCAST",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw the drift, into a .png, .svg or .pdf.",
            rich_help_panel="Output",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail if a BatchNorm keeps its statistics.", envvar="BNTOOLS_STRICT"),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the drift, write no model.")] = False,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Give every BatchNorm the statistics that one batch of all the data would give.

    They depend neither on the size of the batches nor on their order.
    Afterwards the drift of each layer is printed, in units of its own spread.
    """
    own = processes.share()
    with (
        sink("recalibrate", opening.form(context), quiet, verbose, traceback, silent=own.rank > 0) as out,
        processes.together(own),
    ):
        opening.check_file(model)
        size = _size(virtual_batch)
        asked = images.asked(context, data)
        if plot is not None:
            from bntools.report.plot import check_plot, plot_drift

            check_plot(plot, force=force)
        from bntools.cli import drift as show
        from bntools.cli import text
        from bntools.cli.files import check_output, write
        from bntools.cli.placing import autocast_of, placed
        from bntools.verbs.recalibrate import recalibrate as recalibrate_model

        out.step("loading")
        kind = autocast_of(autocast)
        found = opening.load(context, model)
        loading = Loading(model, found.what, found.unsafe)
        target = check_output(found, output, "recalibrated", force=force or dry_run, programs=False)
        rows = min(batch_size, size) if isinstance(size, int) else batch_size
        source = samples.opened(
            out, data, found.model, rows, max_samples=max_samples, skip=skip_bad, share=own, **asked
        )
        mine = source.samples
        total = None if mine is None else mine * own.size
        with placed(found.model, device):
            surgery = recalibrate_model(
                found.model,
                source,
                virtual_batch=size,
                only=only or "*",
                max_samples=None if source.samples is not None else max_samples,
                prior=prior,
                method="ema" if moving_average else "exact",
                stop=not no_stop,
                skip=skip_bad,
                include_frozen=include_frozen,
                memory=None if memory is None else memory * 10**6,
                autocast=kind,
                inplace=True,
                progress=lambda step, done: out.advance(
                    step, done, total if step == "recalibrating" else mine
                ),
            )
        plan, drift = surgery.plan, surgery.report
        failure = opening.left_over(plan, strict, "keep their statistics")
        written = None
        if failure is None and not dry_run and plan.edits and own.rank == 0:
            out.step("writing")
            written, failure = write(found, surgery, target, force=force)
        drawn = plot if failure is None and own.rank == 0 else None
        if drawn is not None:
            plot_drift(drift, drawn, force=force)

        def screen(console: Console) -> None:
            text.heading(console, loading, "")
            show.drifted(console, plan, drift, source.left_out)
            text.output(console, written)
            if drawn is not None:
                text.line(console, "plot", str(drawn))

        out.result(
            {
                "model": loading,
                "dry_run": dry_run,
                "plan": plan,
                "drift": drift,
                "left_out": source.left_out,
                "output": written,
                "plot": drawn,
            },
            {
                o.Format.text: screen,
                o.Format.github: lambda c: show.github(c, plan, drift, source.left_out),
                o.Format.markdown: lambda c: show.markdown(c, loading, plan, drift, source.left_out, written),
            },
            failure,
        )


def _size(text: str) -> int | Literal["auto", "all"]:
    if text == "auto":
        return "auto"
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"--virtual-batch: {text!r} is none", todo="write a number of samples, auto or all")
    return int(text)
