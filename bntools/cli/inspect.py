"""``bntools inspect``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink

_FINDINGS = "Findings"


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
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """List every BatchNorm of a model, which of them fold, and what is wrong with them.

    A state dict without --arch is looked at by its names and values.
    """
    with sink("inspect", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        from bntools.cli import findings, reports, text

        fatal, limits = findings.rules_of(fail_on), findings.thresholds(thresholds)
        from bntools.core.source import State
        from bntools.verbs.inspect import inspect as census_of
        from bntools.verbs.inspect import inspect_tensors

        out.step("loading")
        found = opening.look(context, model)
        loading = Loading(model, found.what, found.unsafe)
        if isinstance(found, State):
            census = inspect_tensors(found.tensors, thresholds=limits, batch_size=batch_size)
        else:
            opening.set_mode(found, keep_mode, out)
            out.step("looking")
            census = census_of(
                found.model, opening.example(context, found), thresholds=limits, batch_size=batch_size
            )
        example = f"{census.example} ({census.example.origin})" if census.example else ""

        def screen(console: Console) -> None:
            text.heading(console, loading, example)
            text.census(console, census.sites, census.plan)
            for note in census.plan.notes if census.plan else ():
                text.note(console, note)
            if census.mixtures:
                text.table(console, findings.mixtures(census.mixtures), names=1)
            findings.screen(console, census.findings, every=every)

        def github(console: Console) -> None:
            findings.github(console, census.findings)
            reports.github(console, "inspect", census.sites, census.plan)

        def markdown(console: Console) -> None:
            reports.markdown(console, loading, census.sites, census.plan, None, None)
            findings.mixed(console, census.mixtures)
            findings.markdown(console, census.findings)

        unread = opening.not_captured(census.plan) if census.plan else None
        out.result(
            {
                "model": loading,
                "input": example or None,
                "sites": census.sites,
                "plan": census.plan,
                "mixtures": census.mixtures,
                **findings.data(census.findings),
            },
            {o.Format.text: screen, o.Format.github: github, o.Format.markdown: markdown},
            unread or findings.failure(census.findings, fatal),
        )
