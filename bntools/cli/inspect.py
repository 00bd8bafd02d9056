"""``bntools inspect``."""

from __future__ import annotations

from rich.console import Console

from bntools.cli import opening, reports, text
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink


def inspect(
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
    with sink("inspect", format, as_json, quiet, verbose, traceback) as out:
        from bntools.core.source import State, look
        from bntools.verbs.inspect import inspect as census_of
        from bntools.verbs.inspect import inspect_tensors

        out.step("loading")
        found = look(
            model,
            arch=arch,
            arch_kwargs=opening.arguments(arch_kwargs),
            key=key,
            ema=ema,
            trust=trust or (),
            unsafe=unsafe,
        )
        loading = Loading(model, found.what, found.unsafe)
        if isinstance(found, State):
            census = inspect_tensors(found.tensors)
        else:
            opening.set_mode(found, keep_mode, out)
            out.step("looking")
            census = census_of(found.model, opening.example(found, input, inputs))
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
                o.Format.github: lambda c: reports.github(c, "inspect", census.plan),
                o.Format.markdown: lambda c: reports.markdown(
                    c, loading, census.sites, census.plan, None, None
                ),
            },
        )
        if census.plan is not None:
            opening.check_captured(census.plan)
