"""``bntools replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bntools.cli import opening, reports, text
from bntools.cli import options as o
from bntools.cli.facts import Loading
from bntools.cli.render import sink


def replay(
    artefact: Annotated[
        Path, typer.Argument(help="A file from `bntools fold` that carries a plan.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Argument(
            help="A fresh model of the class that was folded: a file, or timm:NAME, torchvision:NAME, "
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
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Turn a fresh model into the folded one that a file holds, and write it."""
    with sink("replay", format, as_json, quiet, verbose, traceback) as out:
        from bntools.cli.files import write_module
        from bntools.core.source import load
        from bntools.core.store import apply, read

        out.step("reading the plan")
        stored = read(artefact)
        out.step("loading")
        found = load(
            model,
            arch=arch,
            arch_kwargs=opening.arguments(arch_kwargs),
            key=key,
            ema=ema,
            trust=trust or (),
            unsafe=unsafe,
        )
        loading = Loading(model, found.what, found.unsafe)
        out.step("folding")
        changed = apply(stored, found.model, inplace=True)
        target = output or artefact.with_name(f"{artefact.name.split('.')[0]}.replayed.pt")
        written = write_module(changed, target, force=force, before=artefact)

        def screen(console: Console) -> None:
            text.heading(console, loading, "")
            text.replayed(console, stored.plan, str(artefact))
            text.output(console, written)

        out.result(
            {"model": loading, "plan": stored.plan, "output": written},
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.github(c, "replay", stored.plan),
                o.Format.markdown: lambda c: reports.markdown(
                    c, loading, stored.plan.sites, stored.plan, None, written
                ),
            },
        )
