"""Measure whether two things compute the same: modules, exported programs, ONNX files."""

from __future__ import annotations

import math
import os.path
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bntools.core import proof
from bntools.core.batches import Batches
from bntools.core.bisect import Divergence
from bntools.core.child import LIMIT, Runtime
from bntools.core.example import Example, argument_names
from bntools.core.guess import guess
from bntools.core.inputs import draw
from bntools.core.places import in_file, in_files, in_module, in_program
from bntools.core.revive import Revived, program_of, revive, revived
from bntools.core.runtime import check
from bntools.core.sides import FileSide, ModuleSide, Side, StandIn
from bntools.core.sniff import ARTEFACT_KEY, Kind, sniff
from bntools.core.source import load
from bntools.core.traced import traced_for_file, traced_for_program
from bntools.core.trials import trials
from bntools.core.verify import Report, Verdict
from bntools.errors import UsageError, in_a_line

_MOST = 1 << 28
BATCHES = 8
"""As many batches of data are run."""


def verify(
    a: Any,
    b: Any,
    inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    exact: bool | None = None,
    bisect: bool = True,
    unsafe: bool = False,
    limit: float = LIMIT,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Measure whether two things compute the same, and if not, where they begin to differ.

    Two modules: ``max|b(x) − a(x)| ≤ 1e-8 · max|a(x)|`` in float64, for every output. Anything else has been
    rounded on its way into a file, and is held against that: with r the reference in float64, t in its own
    type and z the other, ``max|z − r| ≤ max(10·max|t − r|, floor)`` as shares of ``max|r|``, the floor 1e-6
    for float32. ONNX files run in a process of their own, with the runtime's optimisations off and on.

    Args:
        a, b: each a module, a ``torch.export`` program, or a file: ONNX, ``.pt2``, or what `bntools.load`
            opens. The first that is no ONNX file is the reference.
        inputs: a tensor, a tuple of arguments, a dict of keyword arguments; guessed if None. Redraws of them
            at other batch sizes are run as well.
        data: batches to run instead.
        exact: compare in float64, two modules only and the default for them.
        bisect: look for the first value that differs, if the outputs do.
        unsafe: open a ``.pt2`` that holds more than computation and tensors, which runs code of the file.
        limit: seconds that ONNX Runtime may take for one request; then the verdict is ``unverified``.
        progress: told the name of each step.

    Returns:
        ``passed`` or ``failed``, with error and noise, and in ``place`` where they begin to differ;
        ``inconclusive`` where the reference's own rounding hides everything, or it returns the same for every
        input; ``unverified`` where the runtime cannot tell. There is no power to report, since nothing says
        what a fault would look like.

    Raises:
        CaptureError: if one of them cannot be copied or run.
        SourceError, UnsafeError: if a file cannot be opened.
        UsageError: if the inputs do not fit, or *exact* is asked for and one is an ONNX file.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> verify(net, net, torch.ones(1, 2)).verdict.value
        'passed'
    """
    if exact is None:
        exact = isinstance(a, nn.Module) and isinstance(b, nn.Module)
    with torch.inference_mode(False), Runtime(limit) as runtime:
        progress("opening both")
        opened = [_opened(each, runtime, unsafe) for each in (a, b)]
        (one, folded, known), (two, folded_too, other) = opened
        if inputs is None and data is None:
            inputs = known or other
        if exact and (isinstance(one, FileSide) or isinstance(two, FileSide)):
            raise UsageError(
                "exact: an ONNX file does not compute in float64", todo="compare by rounding: exact=False"
            )
        taker = next((s.model for s in (one, two) if isinstance(s, ModuleSide)), None)
        examples = _examples(taker, one, inputs, data)
        progress("comparing")
        report = _exactly(one, two, examples) if exact else check(one, two, examples)
        if report.verdict is not Verdict.FAILED or not bisect:
            return report
        progress("looking for where they begin to differ")
        return _placed(report, one, two, examples, folded=folded or folded_too, exact=exact)


def taker_of(source: Any) -> nn.Module:
    """What reads names and types of inputs off: the module, or a stand-in for an ONNX file."""
    if isinstance(source, nn.Module):
        return source
    path = Path(source)
    return FileSide(path, Runtime()).stand_in() if sniff(path).kind is Kind.ONNX else StandIn(torch.float32)


def _opened(source: Any, runtime: Runtime, unsafe: bool) -> tuple[Side, bool, Example | None]:
    """A side, whether it has the plan of a fold inside, and the inputs that come with it."""
    if (program := program_of(source)) is not None:
        return _program(revived(program))
    if isinstance(source, nn.Module):
        return ModuleSide(source), False, None
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise UsageError(f"expected a module, a program or a file, got a {kind}", todo="give one of those")
    path = Path(source)
    kind_of = sniff(path).kind if os.path.exists(path) or isinstance(source, Path) else Kind.SPEC
    if kind_of is Kind.ONNX:
        file = FileSide(path, runtime)
        return file, any(entry.key == ARTEFACT_KEY for entry in file.proto.metadata_props), None
    if kind_of is Kind.PROGRAM:
        return _program(revive(path, unsafe=unsafe))
    return ModuleSide(load(source, unsafe=unsafe).model), False, None


def _program(held: Revived) -> tuple[ModuleSide, bool, Example | None]:
    return ModuleSide(held.module, held.program), bool(held.plan), held.example


def _examples(model: nn.Module | None, side: Side, inputs: Any, data: Iterable[Any] | None) -> list[Example]:
    if model is None:
        assert isinstance(side, FileSide)
        model = side.stand_in()
        example = _guessed(side) if inputs is None and data is None else None
    else:
        example = guess(model) if inputs is None and data is None else None
    if data is not None:
        found = [_call(batch.content, model) for batch in islice(iter(Batches(data, model)), BATCHES)]
        if not found:
            raise UsageError("data: it gives no batch", todo="give one at least")
        return [replace(each, origin=f"batch {n} of the data") for n, each in enumerate(found)]
    return list(trials(example or Example.of(inputs, model)))


def _call(content: Any, model: nn.Module) -> Example:
    """A batch as the common loaders make it, as a call: of a tuple the first is the input."""
    if isinstance(content, Mapping) and (names := argument_names(model)):
        known = {key: value for key, value in content.items() if key in names}
        return Example((), known) if known else Example((content,))
    if isinstance(content, tuple | list):
        return Example((content[0],))
    return Example.of(content, model)


def _guessed(file: FileSide) -> Example:
    """Inputs of the shapes that a file declares, two rows where it leaves that open."""
    generator = torch.Generator().manual_seed(0)
    drawn, total = {}, 0
    for value, shape, dtype in zip(file.inputs, file.shapes, file.input_types, strict=True):
        sizes = [2 if at == 0 and not size else size for at, size in enumerate(shape)]
        total += math.prod(sizes)
        if 0 in sizes or not value.type.tensor_type.HasField("shape") or total > _MOST:
            raise UsageError(
                f"{file.path}: {value.name} has open or very large axes",
                todo="give its shape with --input, as 2x3x224x224",
            )
        drawn[value.name] = draw(sizes, dtype, torch.device("cpu"), generator)
    return Example(tuple(drawn.values()), origin="guessed")


def _exactly(one: Side, two: Side, examples: list[Example]) -> Report:
    """In float64; the worst of all examples."""
    assert isinstance(one, ModuleSide)
    assert isinstance(two, ModuleSide)
    given = examples if examples[0].origin.startswith("batch") else examples[:1]  # it redraws by itself
    reports = [proof.verify(one.model, two.model, example) for example in given]
    order = [Verdict.FAILED, Verdict.INCONCLUSIVE, Verdict.PASSED]
    return min(reports, key=lambda report: (order.index(report.verdict), -report.error))


def _placed(
    report: Report, one: Side, two: Side, examples: list[Example], *, folded: bool, exact: bool
) -> Report:
    """The report with the place; that it cannot be found is no reason to lose the verdict."""
    try:
        place = _place(one, two, examples, folded=folded, exact=exact)
    except Exception as error:
        note = f"the place was not found: {in_a_line(error)}"
        return replace(report, notes=(*report.notes, note))
    if place is None:
        note = "the place was not found: the values on the way agree, or have other names"
        return replace(report, notes=(*report.notes, note))
    return replace(report, place=place, broken=place.module or place.value)


def _place(one: Side, two: Side, examples: list[Example], *, folded: bool, exact: bool) -> Divergence | None:
    if isinstance(one, FileSide) and isinstance(two, FileSide):
        return in_files(one, two, examples)
    if isinstance(one, FileSide) or isinstance(two, FileSide):
        side, file = (two, one) if isinstance(one, FileSide) else (one, two)
        assert isinstance(side, ModuleSide)
        assert isinstance(file, FileSide)
        traced = traced_for_file(side, file, examples[0], folded=folded)
        return in_file(traced, file, examples) if traced is not None else None
    if one.program is None and two.program is None:
        return in_module(one, two, examples, exactly=exact)
    # Names are matched to those of a program that was read, whichever of the two that is.
    known, other = (one, two) if two.program is not None else (two, one)
    module = other.model
    assert isinstance(module, fx.GraphModule)
    traced = traced_for_program(known, module.graph, examples[0], folded=folded)
    return in_program(traced, module, examples) if traced is not None else None
