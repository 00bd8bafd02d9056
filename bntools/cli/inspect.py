"""``bntools inspect``."""

from __future__ import annotations

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink


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
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """List every BatchNorm of a model, and which of them fold.

    A state dict without --arch is listed by its names and shapes.
    """
    with sink("inspect", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        from bntools.cli import reports, text
        from bntools.core.source import State
        from bntools.verbs.inspect import inspect as census_of
        from bntools.verbs.inspect import inspect_tensors

        out.step("loading")
        found = opening.look(context, model)
        loading = Loading(model, found.what, found.unsafe)
        if isinstance(found, State):
            census = inspect_tensors(found.tensors)
        else:
            opening.set_mode(found, keep_mode, out)
            out.step("looking")
            census = census_of(found.model, opening.example(context, found))
        example = f"{census.example} ({census.example.origin})" if census.example else ""

        def screen(console: Console) -> None:
            text.heading(console, loading, example)
            text.census(console, census.sites, census.plan)
            for note in census.plan.notes if census.plan else ():
                text.note(console, note)

        out.result(
            {"model": loading, "input": example or None, "sites": census.sites, "plan": census.plan},
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.github(c, "inspect", census.sites, census.plan),
                o.Format.markdown: lambda c: reports.markdown(
                    c, loading, census.sites, census.plan, None, None
                ),
            },
            opening.not_captured(census.plan) if census.plan else None,
        )
