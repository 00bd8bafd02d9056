"""Programs whose nodes have the names of the values in a file: that is how the two are matched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from bntools.core.axes import Axes, arguments_of, two_rows
from bntools.core.bisect import Step
from bntools.core.capture import capture
from bntools.core.example import Example
from bntools.core.onnxfile import Form, translate
from bntools.core.program import atomised, exported
from bntools.core.programs import fold_program
from bntools.core.sides import FileSide, ModuleSide
from bntools.core.spelt import written_plainly
from bntools.core.values import Values, program_steps, program_values
from bntools.errors import BntoolsError

_ENOUGH = 0.9


@dataclass(frozen=True, slots=True)
class Traced:
    """A program of the reference whose nodes have the names of the values in a file.

    Args:
        program: from ``torch.export``, as it was translated.
        side: the model that it was made of; its modules give the places their names.
    """

    program: torch.export.ExportedProgram
    side: ModuleSide

    def steps(self) -> tuple[list[Step], list[str]]:
        """Its steps, and the names of what it returns."""
        return program_steps(self.program.graph, self.side.model)

    def values(self, example: Example) -> tuple[Values, Values]:
        """In float64, and in its own type."""
        module = self.program.module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        exact, own = (program_values(module, example, double=double) for double in (True, False))
        return exact, own

    @property
    def names(self) -> set[str]:
        """Of its values."""
        return {step.name for step in self.steps()[0]}


def traced_for_file(side: ModuleSide, file: FileSide, example: Example, *, folded: bool) -> Traced | None:
    """A program of the model as it was translated into a file, found by doing that again.

    Torch names the values of a file after the nodes of the program. It may have been folded before, and the
    file may have been made of the module itself or of its captured program: the way whose names fit best is
    taken.

    Args:
        side: the model.
        file: said to be made of it.
        example: an input.
        folded: whether the file has the plan of a fold inside.
    """
    named = {
        name: {axis: f"axis{axis}" for axis, size in enumerate(shape) if axis and not size}
        for name, shape in zip(arguments_of(side.model, example), file.shapes, strict=False)
    }
    batch = all(shape and not shape[0] for shape in file.shapes)
    axes = Axes(batch, {name: open_axes for name, open_axes in named.items() if open_axes})
    there = {name for node in file.proto.graph.node for name in node.output if name}

    def translated(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        made: torch.export.ExportedProgram = translate(program, Form()).exported_program
        return made

    rows = two_rows(example) if batch else example
    return _best(side, there, _ways(side, rows, axes, folded=folded), translated)


def traced_for_program(
    side: ModuleSide, program: fx.Graph, example: Example, *, folded: bool
) -> Traced | None:
    """The same for a program in a ``.pt2`` file."""
    there = {node.name for node in program.nodes if node.op not in ("placeholder", "get_attr", "output")}
    return _best(side, there, _ways(side, example, Axes(), folded=folded), lambda program: program)


def _ways(
    side: ModuleSide, example: Example, axes: Axes, *, folded: bool
) -> Iterator[torch.export.ExportedProgram]:
    """The programs that may have been written, the likeliest first."""
    if side.program is not None:
        yield side.program
        return

    def fold() -> torch.export.ExportedProgram:
        return exported(fold_program(side.model, example, axes=axes, verify=False).model, example, axes)

    def plain() -> torch.export.ExportedProgram:
        return exported(side.model, example, axes)

    def atoms() -> torch.export.ExportedProgram:
        model = written_plainly(side.model, capture(side.model, example))
        return exported(atomised(exported(model, example, axes)), example, axes)

    for way in (fold, plain, atoms) if folded else (plain, atoms, fold):
        try:
            yield way()
        except BntoolsError:
            continue


def _best(
    side: ModuleSide,
    there: Collection[str],
    ways: Iterator[torch.export.ExportedProgram],
    finish: Callable[[torch.export.ExportedProgram], torch.export.ExportedProgram],
) -> Traced | None:
    best: tuple[float, Traced] | None = None
    for way in ways:
        try:
            traced = Traced(finish(way), side)
        except BntoolsError:
            continue
        share = len(traced.names & set(there)) / max(1, len(there))
        if best is None or share > best[0]:
            best = share, traced
        if share >= _ENOUGH:
            break
    return best[1] if best is not None and best[0] > 0 else None
