"""``bntools export``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bntools.cli import opening
from bntools.cli import options as o
from bntools.cli.facts import INCONCLUSIVE, Failure, Loading, Output
from bntools.cli.render import sink
from bntools.errors import UsageError

if TYPE_CHECKING:  # it imports torch
    from bntools.verbs.export import Export

_FORM = "The ONNX file"
_AXIS = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<axis>\d{1,3})=(?P<label>[A-Za-z_]\w*)")


def export(
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
    no_fold: Annotated[
        bool, typer.Option("--no-fold", help="Leave the BatchNorms to the exporter.", rich_help_panel=_FORM)
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(help="The opset of the file.", min=7, rich_help_panel=_FORM, envvar="BNTOOLS_OPSET"),
    ] = None,
    fixed_batch: Annotated[
        bool,
        typer.Option(
            "--fixed-batch", help="The batch size of the input is the only one.", rich_help_panel=_FORM
        ),
    ] = False,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[INPUT:]AXIS=NAME",
            help="Another axis that stays open, such as 2=height or ids:1=length. Repeatable.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    input_names: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names for all inputs.", rich_help_panel=_FORM)
    ] = None,
    output_names: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names for all outputs.", rich_help_panel=_FORM)
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Weights of float16, each rounded once.", rich_help_panel=_FORM)
    ] = False,
    external_data: Annotated[
        bool,
        typer.Option(
            "--external-data",
            help="Weights in a file beside it, as is done from 1.5 GiB on.",
            rich_help_panel=_FORM,
        ),
    ] = False,
    keep_debug_info: Annotated[
        bool,
        typer.Option(
            "--keep-debug-info", help="Leave the names of modules on the nodes.", rich_help_panel=_FORM
        ),
    ] = False,
    no_compare: Annotated[
        bool,
        typer.Option("--no-compare", help="Do not count what the exporter alone would have left."),
    ] = False,
    no_verify: o.NoVerify = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail if a BatchNorm stays, or the file was not run and found right.",
            envvar="BNTOOLS_STRICT",
        ),
    ] = False,
    limit: o.Limit = 300.0,
    force: o.Force = False,
    format: o.OutputFormat = o.Format.text,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    traceback: o.Traceback = False,
) -> None:
    """Fold a model, export it to ONNX, run the file beside the model, and write it.

    Nothing is written unless the file computes in ONNX Runtime what the model computes.
    """
    with sink("export", opening.form(context), quiet, verbose, traceback) as out:
        opening.check_file(model)
        axes = _axes(dynamic or ())
        from bntools.cli import reports, text
        from bntools.cli.files import check_onnx
        from bntools.verbs.export import export as export_model

        out.step("loading")
        found = opening.load(context, model, graphs=opening.holds_program(model))
        loading = Loading(model, found.what, found.unsafe)
        target = check_onnx(found, output, force=force)
        opening.set_mode(found, keep_mode, out)
        done = export_model(
            found.model,
            opening.example(context, found),
            target,
            fold=not no_fold,
            opset=opset,
            dynamic_batch=not fixed_batch,
            dynamic=axes,
            input_names=_names(input_names),
            output_names=_names(output_names),
            fp16=fp16,
            external_data=external_data or None,
            keep_debug_info=keep_debug_info,
            compare=not no_compare,
            verify=not no_verify,
            strict=strict,
            force=force,
            limit=limit,
            progress=out.step,
        )
        written = None
        if done.path is not None:
            files = [path for path in (done.path, done.weights) if path is not None]
            size = sum(path.stat().st_size for path in files)
            before = found.path.stat().st_size if found.path else None
            written = Output(str(done.path), _what(done), size, before, done.check)
        example = f"{done.example} ({done.example.origin})"
        failure = None
        if written is None:
            why = f"the file's check is {done.check.verdict}: {done.check.why}"
            failure = Failure(why, "nothing was written", INCONCLUSIVE)

        def screen(console: Console) -> None:
            text.heading(console, loading, example)
            if done.plan is not None:
                text.folded(console, done.plan, dry=False)
                text.proof(console, done.proof)
            text.file_check(console, written)
            text.table(console, _table(done), names=1)
            for line in _gained(done):
                text.line(console, "on top", line)
            text.output(console, written)

        told = f"{reports.summary(done.plan.sites, done.plan, done.proof) if done.plan else 'not folded'}; "
        told += f"the file {done.check.verdict}"
        out.result(
            {
                "model": loading,
                "input": example,
                "plan": done.plan,
                "report": done.proof,
                "check": done.check,
                "graph": done.graph,
                "alone": done.alone,
                "weights": done.weights,
                "output": written,
            },
            {
                o.Format.text: screen,
                o.Format.github: lambda c: reports.notices(c, "export", told, done.plan),
                o.Format.markdown: lambda c: reports.layers(c, loading, told, written, _table(done), names=1),
            },
            failure,
        )


def _axes(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """``--dynamic``, read."""
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        match = _AXIS.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--dynamic: {text!a} is no axis", todo="write it as 2=height or ids:1=length")
        axes.setdefault(match["name"] or "", {})[int(match["axis"])] = match["label"]
    return axes


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text is not None else ()


def _what(done: Export) -> str:
    where = f", its weights in {done.weights.name}" if done.weights is not None else ""
    plan = ", with its plan" if done.plan is not None else ""
    return f"an ONNX model of opset {done.graph.opset}{plan}{where}"


def _table(done: Export) -> list[tuple[str, ...]]:
    """The graph: nodes by type and size, of what the exporter writes alone and of what was written."""
    graphs = [graph for graph in (done.alone, done.graph) if graph is not None]
    head = ("nodes", "exporter alone", "written") if done.alone is not None else ("nodes", "written")
    kinds = dict.fromkeys(kind for graph in graphs for kind in graph.nodes)
    rows = [(kind, *(str(graph.nodes.get(kind, 0)) for graph in graphs)) for kind in kinds]
    total = ("all", *(str(sum(graph.nodes.values())) for graph in graphs))
    return [head, *rows, total, ("bytes", *(str(graph.size) for graph in graphs))]


def _gained(done: Export) -> list[str]:
    """What bntools removed that the exporter would have left."""
    if done.alone is None or done.alone.norms <= done.graph.norms:
        return []
    gone = done.alone.norms - done.graph.norms
    return [f"{gone} of the {done.alone.norms} BatchNorms that torch's exporter alone would have left"]
