"""Find where two sides begin to differ: match their values, run both, and look for the first that is off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from bntools.core.bisect import Check, Divergence, Step, first_divergence, stretch_to
from bntools.core.capture import capture
from bntools.core.child import Part
from bntools.core.example import Example
from bntools.core.filevalues import file_values
from bntools.core.observe import difference_of
from bntools.core.runtime import FLOORS, TIMES
from bntools.core.sides import FileSide, ModuleSide, in_type
from bntools.core.traced import Traced
from bntools.core.values import Values, boundaries, module_steps, program_steps, program_values
from bntools.core.variants import jitter_, variant
from bntools.core.verify import TOLERANCE


def in_file(traced: Traced, file: FileSide, examples: Iterable[Example]) -> Divergence | None:
    """Where a file leaves the program that it is said to hold; values are matched by name and shape."""
    floor = _floor(file.dtype)
    steps, outputs = traced.steps()
    # What is returned may have been given another name.
    renamed = dict(zip(outputs, (each.name for each in file.proto.graph.output), strict=False))
    for example in examples:
        if not file.takes(example):
            continue
        exact, own = traced.values(in_type(example, traced.side.dtype))
        names = {name: renamed.get(name, name) for name in exact}
        seen, broken = file_values(file, example, [*names.values()])
        checks = _checks(seen, exact, own, names, outputs, floor)
        found = first_divergence(steps, checks, outputs)
        if found is not None:
            return _in_graph(found, file.proto, names[found.value])
        if broken is not None:
            return _unrun(file, broken, steps, checks, {names[n]: n for n in names})
    return None


def in_files(a: FileSide, b: FileSide, examples: Iterable[Example]) -> Divergence | None:
    """Where the second of two files leaves the first; values are matched by name and shape."""
    made = [name for node in b.proto.graph.node for name in node.output if name]
    renamed = {x.name: y.name for x, y in zip(a.proto.graph.output, b.proto.graph.output, strict=False)}
    steps = [
        Step(name, tuple(node.input), _owner(node, a.proto), node.op_type)
        for node in a.proto.graph.node
        for name in node.output
        if name
    ]
    names = {step.name: renamed.get(step.name, step.name) for step in steps}
    wanted = [name for name, there in names.items() if there in made]
    for example in examples:
        if not (a.takes(example) and b.takes(example)):
            continue
        exact, _ = file_values(a, example, wanted)
        with variant(a.path, jitter_) as near:
            own, _ = file_values(FileSide(near, a.runtime), example, wanted)
        seen, broken = file_values(b, example, [names[name] for name in wanted])
        checks = _checks(seen, exact, own, names, renamed, _floor(b.dtype))
        found = first_divergence(steps, checks, renamed)
        if found is not None:
            return _in_graph(found, b.proto, names[found.value])
        if broken is not None:
            return _unrun(b, broken, steps, checks, {y: x for x, y in renamed.items()})
    return None


def in_program(traced: Traced, other: fx.GraphModule, examples: Iterable[Example]) -> Divergence | None:
    """Where a program leaves another one; values are matched by the names of nodes, and shape."""
    steps, outputs = traced.steps()
    theirs = program_steps(other.graph, None)[1]
    renamed = dict(zip(outputs, theirs, strict=False))
    for example in examples:
        exact, own = traced.values(example)
        seen = program_values(other, example, double=False)
        names = {name: renamed.get(name, name) for name in exact}
        checks = _checks(seen, exact, own, names, outputs, _floor(traced.side.dtype))
        if (found := first_divergence(steps, checks, outputs)) is not None:
            return found
    return None


def in_module(
    a: ModuleSide, b: ModuleSide, examples: Iterable[Example], *, exactly: bool
) -> Divergence | None:
    """Where a module leaves another one; values are what modules of the same path return.

    Args:
        a, b: the two.
        examples: what to run them on.
        exactly: compare in float64, where nothing but rounding there may differ.
    """
    for example in examples:
        steps, named, outputs = module_steps(capture(a.model, example))
        exact = boundaries(a.model, example, double=True)
        own = exact if exactly else boundaries(a.model, example, double=False)
        seen = boundaries(b.model, example, double=exactly)
        floor = TOLERANCE if exactly else _floor(b.dtype)
        checks: dict[str, Check] = {}
        places: dict[str, str] = {}
        for value, paths in named.items():
            both = [path for path in paths if path in exact and path in seen]
            pairs = [(path, _check(seen[path], exact[path], own.get(path), floor)) for path in both]
            # A value has several names where a module returns what it gets: one that agrees is enough.
            if pairs:
                places[value], checks[value] = min(pairs, key=lambda pair: pair[1].error)
        found = first_divergence(steps, checks, outputs)
        if found is not None:
            path = places[found.value]
            return replace(
                found, module=path.partition("#")[0], value=path or "the output", values=len(named)
            )
    return None


def _unrun(
    file: FileSide,
    number: int,
    steps: Sequence[Step],
    checks: Mapping[str, Check],
    names: Mapping[str, str],
) -> Divergence:
    """The node that the runtime stops at: there is no value to compare."""
    node = file.proto.graph.node[number]
    value = names.get(node.output[0], node.output[0])
    step = next((step for step in steps if step.name == value), Step(value, (), _owner(node, file.proto)))
    inf = float("inf")
    place = Divergence(
        step.module,
        value,
        step.op or node.op_type,
        inf,
        0.0,
        0.0,
        stretch_to(value, steps, checks) or (step.module,),
        len(checks),
        len(steps),
    )
    return _in_graph(place, file.proto, node.output[0])


def _checks(
    seen: Values,
    exact: Values,
    own: Values,
    names: Mapping[str, str],
    outputs: Collection[str],
    floor: float,
) -> dict[str, Check]:
    """A check of each value that both sides have.

    Args:
        seen: by the names that the other side has for them.
        exact, own: of the reference.
        names: by the reference's names, those of the other side.
        outputs: names of what the reference returns, which must have the same shape; other values of one name
            and different shapes are two.
        floor: the smallest error that is no fault.
    """
    return {
        name: _check(seen[names[name]], value, own.get(name), floor)
        for name, value in exact.items()
        if names[name] in seen and (name in outputs or seen[names[name]].shape == value.shape)
    }


def _floor(dtype: torch.dtype) -> float:
    return FLOORS.get(dtype, FLOORS[torch.float32])


def _check(seen: Part, exact: Part, own: Part | None, floor: float) -> Check:
    if seen.shape != exact.shape:
        return Check(float("inf"), 0.0, floor)
    noise = _apart(own, exact) if own is not None else 0.0
    return Check(_apart(seen, exact), noise, max(TIMES * noise, floor))


def _apart(part: Part, exact: Part) -> float:
    if part.shape != exact.shape:
        return float("inf")
    return difference_of(torch.from_numpy(part.values), torch.from_numpy(exact.values), exact.scale)


def _in_graph(found: Divergence, proto: Any, value: str) -> Divergence:
    """A place with what computes its value in a file, and the weights that it reads."""
    weights = {each.name for each in proto.graph.initializer}
    for node in proto.graph.node:
        if value in node.output:
            read = [name for name in node.input if name in weights]
            text = " with ".join(filter(None, [f"{node.op_type} {node.name}", ", ".join(read)]))
            return replace(found, node=text, module=found.module or _owner(node, proto))
    return found


def _owner(node: Any, proto: Any) -> str:
    """The module of a node in a file, by the names of its weights."""
    weights = {each.name for each in proto.graph.initializer}
    owned = [name.rpartition(".")[0] for name in node.input if name in weights]
    return next((name for name in owned if name), "")
