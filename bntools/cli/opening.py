"""Opening what a command works on: the file, its mode, its input."""

from __future__ import annotations

import json
import os.path
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bntools.cli.facts import Failure
from bntools.cli.options import Format
from bntools.cli.render import Sink, failure_of
from bntools.errors import CaptureError, PromiseError, UnsafeError, UsageError

if TYPE_CHECKING:  # they import torch
    from bntools.core.example import Example
    from bntools.core.plan import Plan
    from bntools.core.source import Loaded, State

_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


def check_file(name: str | Path) -> None:
    """Tell a file that is missing or no model, before seconds go into importing torch."""
    from bntools.core.sniff import sniff

    if not str(name):  # as an unset variable of a script leaves it; a Path of it is the working folder
        raise UsageError("no file was named", todo="give a file or the name of an architecture")
    # Else it is the name of an architecture, which may be too long for a path.
    if os.path.exists(name) or isinstance(name, Path) or ":" not in name:
        sniff(name)


def load(context: typer.Context, model: str, *, graphs: bool = False) -> Loaded:
    """Open the model with the options of the command; a program only where *graphs* are asked for."""
    from bntools.core.source import load as open_source

    return open_source(model, **_how(context, model, graphs=graphs), graphs=graphs)


def holds_program(model: str) -> bool:
    """Whether it is a ``.pt2`` file of torch.export."""
    from bntools.core.sniff import Kind, sniff

    return os.path.exists(model) and sniff(model).kind is Kind.PROGRAM


def look(context: typer.Context, model: str) -> Loaded | State:
    """Open the model with the options of the command, or the bare weights if they name no architecture."""
    from bntools.core.source import look as open_source
    from bntools.core.source import state_of

    try:
        return open_source(model, **_how(context, model, graphs=True), graphs=True)
    except UnsafeError as error:
        if not holds_program(model):
            raise
        state = state_of(model)  # names and numbers are plain bytes
        return replace(state, what=f"{state.what} only: {error.message}")


def _how(context: typer.Context, model: str, *, graphs: bool = False) -> dict[str, Any]:
    from bntools.core.sniff import Kind, sniff

    given = context.params
    key, ema = one_of(context, "key", "ema")
    arch, keywords = given["arch"], given["arch_kwargs"]
    models = (Kind.MODULE, Kind.PROGRAM, Kind.ONNX) if graphs else (Kind.MODULE,)
    whole = not os.path.exists(model) or sniff(model).kind in models
    if whole and arch is not None and _source(context, "arch") > 0:
        # A default for weights says nothing about what needs none.
        arch, keywords = None, keywords if _source(context, "arch_kwargs") == 0 else None
    return {
        "arch": arch,
        "arch_kwargs": _arguments(keywords),
        "key": key,
        "ema": bool(ema),
        "trust": given["trust"] or (),
        "unsafe": given["unsafe"],
    }


def one_of(context: typer.Context, *names: str) -> tuple[Any, ...]:
    """Of options that exclude each other, only those that come from the strongest source."""
    given = {name: context.params[name] for name in names}
    first = min((_source(context, name) for name in names if given[name]), default=0)
    return tuple(v if v and _source(context, name) == first else None for name, v in given.items())


def exclusive(context: typer.Context, *names: str) -> tuple[Any, ...]:
    """The same, where two of one source are a mistake.

    Raises:
        UsageError: if there are two.
    """
    given = one_of(context, *names)
    if sum(map(bool, given)) > 1:
        *first, last = (f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{', '.join(first)} and {last} exclude each other", todo="give one of them")
    return given


def _source(context: typer.Context, name: str) -> int:
    """Where a value comes from: 0 is the command line, then the environment, then a file."""
    source = context.get_parameter_source(name)
    return _SOURCES.index(source.name) if source is not None else len(_SOURCES)


def form(context: typer.Context) -> Format:
    """How the result is written: ``--json`` is short for a format, and no stronger than one."""
    as_json, _ = one_of(context, "as_json", "format")
    return Format.json if as_json else Format(context.params["format"])


def _arguments(text: str | None) -> dict[str, Any] | None:
    """``--arch-kwargs``, read."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--arch-kwargs: no JSON: {error}", todo="""write it as '{"num_classes": 10}'"""
        ) from None
    if not isinstance(value, dict):
        raise UsageError("--arch-kwargs: no JSON object", todo="""write it as '{"num_classes": 10}'""")
    return value


def set_mode(found: Loaded, keep: bool, out: Sink) -> None:
    """A file says nothing of what it will be used for; a fold is for inference."""
    if found.model.training and not keep:
        found.model.eval()
        out.note("the model was in training mode and was put in eval mode (--keep-mode leaves it)")


def example(context: typer.Context, found: Loaded) -> Example | None:
    """The input that was asked for, else none, and it will be guessed."""
    from bntools.core.inputs import parse_inputs, read_inputs

    shapes, file = exclusive(context, "input", "inputs")
    if file is not None:
        return read_inputs(file, found.model)
    return parse_inputs(shapes, found.model) if shapes else None


def left_over(plan: Plan, strict: bool, what: str) -> Failure | None:
    """With ``--strict`` a BatchNorm that is left is a failure; *what* says what becomes of it."""
    if not strict or not plan.refusals:
        return None
    why = f"{len(plan.refusals)} of {len(plan.sites)} BatchNorms {what}"
    return Failure(why, "nothing was written", PromiseError.exit_code)


def not_captured(plan: Plan) -> Failure | None:
    """A model that does not run has its plan printed, and is an error all the same."""
    for refusal in plan.refusals:
        if refusal.reason.value == "not-captured":
            return failure_of(CaptureError(refusal.detail, todo=refusal.remedy))
    return None
