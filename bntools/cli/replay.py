"""``bntools replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink


def replay(
    context: typer.Context,
    artefact: Annotated[
        Path,
        typer.Argument(metavar="ARTEFACT", help="A file of bntools that carries a plan.", show_default=False),
    ],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A fresh model of the class that was changed: a file, or timm:NAME, torchvision:NAME, "
            "package.module:factory.",
            show_default=False,
        ),
    ],
    output: o.Out = None,
    arch: o.Arch = None,
    arch_kwargs: o.ArchKwargs = None,
    key: o.Key = None,
    ema: o.Ema = False,
    trust: o.Trust = None,
    unsafe: o.Unsafe = False,
    keep_mode: o.KeepMode = False,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Turn a fresh model into the changed one that a file holds, and write it."""
    with sink("replay", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(artefact)
        opening.check_file(model)
        from bntools.cli import reports, text
        from bntools.cli.files import check_module, write_module
        from bntools.core.store import apply, read

        target = check_module(artefact, output, force=force)
        out.step("reading the plan")
        stored = read(artefact, trust=trust or (), unsafe=unsafe)
        out.step("loading")
        found = opening.load(context, model)
        loading = Loading(model, found.what, found.unsafe)
        opening.set_mode(found, keep_mode, out)
        out.step("folding")
        changed = apply(stored, found.model, inplace=True)
        written = write_module(changed, target, force=force, before=artefact)

        def screen(console: Console) -> None:
            text.heading(console, loading, "")
            text.replayed(console, stored.plan, str(artefact))
            text.output(console, written)

        out.result(
            {"model": loading, "plan": stored.plan, "output": written},
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.github(c, "replay", stored.plan.sites, stored.plan),
                o.Format.markdown: lambda c: reports.markdown(
                    c, loading, stored.plan.sites, stored.plan, None, written
                ),
            },
        )
