"""``bntools inspect``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bntools.cli import images, opening, samples
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import Sink, sink
from bntools.errors import UsageError

if TYPE_CHECKING:
    from bntools.core.arrays import StateTensor
    from bntools.findings import Finding
    from bntools.findings.census import Census

_FINDINGS = "Findings"
_BATCH = 32
"""How many rows of a file or images are run at a time; what is found does not hang on it."""


def inspect(
    context: typer.Context,
    model: o.Model,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    keep_mode: o.KeepMode = False,
    input: o.Input = None,
    inputs: o.Inputs = None,
    data: samples.MoreData = None,
    max_samples: samples.MaxSamples = 8192,
    resize: images.Resize = None,
    crop: images.Crop = None,
    mean: images.Mean = None,
    std: images.Std = None,
    workers: images.Workers = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="How many samples a device gets in training: are they enough?",
            min=1,
            rich_help_panel=_FINDINGS,
            envvar="BNTOOLS_BATCH_SIZE",
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="SEVERITY|RULE,…",
            help="Fail on findings: error, warning, note, or such as BN007,BN013.",
            rich_help_panel=_FINDINGS,
            envvar="BNTOOLS_FAIL_ON",
        ),
    ] = None,
    thresholds: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="RULE=NUMBER",
            help="The threshold of a rule, such as BN007=0.05. Repeatable.",
            rich_help_panel=_FINDINGS,
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Name every layer of a finding.", rich_help_panel=_FINDINGS),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Findings that are known: they are not told, and no failure.",
            rich_help_panel=_FINDINGS,
            envvar="BNTOOLS_BASELINE",
        ),
    ] = None,
    write_baseline: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Write such a file of what is found.", rich_help_panel=_FINDINGS),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a page to look at, a .html of its own.", rich_help_panel="Output"
        ),
    ] = None,
    force: o.Force = False,
    format: o.FindingsFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """List every BatchNorm of a model, which of them fold, and what is wrong with them.

    A state dict without --arch is looked at by its names and values, and so is a .pt2 that would run code.
    With --data it also says whether the statistics are those of the data, and where that begins.
    """
    with sink("inspect", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        from bntools.cli import drift, findings, reports, rules, text

        asked = images.asked(context, data) if data is not None else {}
        fatal, limits = rules.that_fail(fail_on), rules.thresholds(thresholds)
        chosen = rules.baseline(context)
        if html is not None:
            from bntools.report.html import check_page

            check_page(html, force=force)
        from bntools import __version__
        from bntools.findings.census import census_of_tensors

        out.step("loading")
        bare = _without_torch(context, model)
        if bare is not None:
            tensors, what = bare
            loading = Loading(model, what, unsafe)
            census, seen = census_of_tensors(tensors, thresholds=limits, batch_size=batch_size), tensors
        else:
            loading, census, seen = _with_torch(context, model, out, limits, asked)
        example = f"{census.example} ({census.example.origin})" if census.example else ""
        unread = opening.not_captured(census.plan) if census.plan else None
        held = rules.held_against(chosen, census.findings, census.asked, whole=unread is None)
        told = held.new if held else census.findings
        if html is not None:  # whatever --fail-on says: it is for who wants to see why
            out.note(_page(html, census, told, seen, loading, force=force))

        def screen(console: Console) -> None:
            text.heading(console, loading, example)
            text.census(console, census.sites, census.plan)
            for note in census.plan.notes if census.plan else ():
                text.note(console, note)
            if census.mixtures:
                text.table(console, findings.mixtures(census.mixtures), names=1)
            drift.looked(console, census)
            findings.screen(console, told, held, every=every)

        def github(console: Console) -> None:
            findings.github(console, told, held)
            reports.github(console, "inspect", census.sites, census.plan)

        def markdown(console: Console) -> None:
            reports.markdown(console, loading, census.sites, census.plan, None, None)
            findings.mixed(console, census.mixtures)
            findings.markdown(console, told, held)

        def junit(console: Console) -> None:
            from bntools.report.junit import junit as suite

            about = {"model": model, "kind": loading.what, "version": __version__}
            error = f"{unread.message}; {unread.todo}" if unread else ""
            document = suite(census.asked, told, fatal=fatal, about=about, error=error)
            reports.plain(console, document)

        out.result(
            {
                "model": loading,
                "input": example or None,
                "sites": census.sites,
                "plan": census.plan,
                "mixtures": census.mixtures,
                "drift": census.passed.drift if census.passed else None,
                "left_out": census.passed.left_out if census.passed else (),
                **findings.data(told, held),
            },
            {
                o.Format.text: screen,
                o.Format.github: github,
                o.Format.markdown: markdown,
                o.Format.junit: junit,
            },
            unread or (findings.failure(told, fatal) if not (held and held.written) else None),
        )


def _without_torch(context: typer.Context, model: str) -> tuple[dict[str, StateTensor], str] | None:
    """The weights of a safetensors file and what it is, if nothing asks for more: torch takes seconds."""
    wants = ("data", "arch", "arch_kwargs", "key", "ema")
    if any(context.params[name] for name in wants) or not os.path.isfile(model):
        return None
    from bntools.core.sniff import Kind, sniff

    if sniff(model).kind is not Kind.SAFETENSORS:
        return None
    from bntools.core.arrays import read_state

    read = read_state(Path(model))
    if read is None:
        return None
    tensors, prefix = read
    return tensors, "a safetensors file" + (f", prefix {prefix!r} stripped" if prefix else "")


def _with_torch(
    context: typer.Context, model: str, out: Sink, limits: dict[str, float], asked: dict[str, Any]
) -> tuple[Loading, Census, Any]:
    from bntools.core.decays import states_in
    from bntools.core.source import State
    from bntools.verbs.inspect import inspect as census_of
    from bntools.verbs.inspect import inspect_tensors

    size, data = context.params["batch_size"], context.params["data"]
    found = opening.look(context, model)
    loading = Loading(model, found.what, found.unsafe)
    states = states_in(found.checkpoint)
    how: dict[str, Any] = {"thresholds": limits, "batch_size": size}
    how["optimizer"] = states[0] if len(states) == 1 else None
    if isinstance(found, State):
        if data is not None:
            raise UsageError(
                f"--data: {model} holds weights, which run on nothing",
                todo="name its architecture with --arch, or leave out --data",
            )
        return loading, inspect_tensors(found.tensors, **how), found.tensors
    opening.set_mode(found, context.params["keep_mode"], out)
    out.step("looking")
    given = opening.example(context, found)
    if data is not None:
        most = context.params["max_samples"]
        source = samples.opened(out, data, found.model, _BATCH, max_samples=most, skip=True, **asked)
        how |= {
            "data": source,
            "max_samples": None if source.samples is not None else most,
            "progress": lambda step, done: out.advance(step, done, source.samples),
        }
    return loading, census_of(found.model, given, **how), found.model


def _page(
    path: Path, census: Census, told: tuple[Finding, ...], seen: Any, loading: Loading, *, force: bool
) -> str:
    """Write the page of these findings: what was written."""
    from bntools.cli.text import size
    from bntools.report.html import page, write_page
    from bntools.report.layers import layers_of

    document = page(
        replace(census, findings=told),
        layers_of(seen, census.sites),
        model=loading.name,
        what=loading.what,
        known=len(census.findings) - len(told),
    )
    return f"{path}: the page, {size(write_page(document, path, force=force))}"
