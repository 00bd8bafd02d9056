"""The values in an ONNX file by their names, and the node at which the runtime stops, if it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bntools.core.child import CrashError, HangError, Part, RefusalError
from bntools.core.example import Example
from bntools.core.sides import FileSide
from bntools.core.variants import showing, variant

_TROUBLE = (RefusalError, CrashError, HangError)


def file_values(file: FileSide, example: Example, names: Sequence[str]) -> tuple[dict[str, Part], int | None]:
    """Values of a file by name, and the number of the node that the runtime stops at, if it does.

    A part of the graph that runs is looked for by halving: the runtime says that it failed, and little more.
    """

    def run(count: int | None) -> dict[str, Part]:
        made = {name for node in file.proto.graph.node[:count] for name in node.output}
        wanted = [name for name in dict.fromkeys(names) if name in made]
        return _sampled(file, example, wanted, count) if wanted else {}

    try:
        return run(None), None
    except _TROUBLE:
        pass
    good, bad = 0, len(file.proto.graph.node)
    while bad - good > 1:
        middle = (good + bad) // 2
        last = [name for node in file.proto.graph.node[:middle] for name in node.output if name][-1:]
        if _runs(file, example, last, middle):
            good = middle
        else:
            bad = middle
    try:
        return (run(good) if good else {}), good
    except _TROUBLE:
        return {}, good


def _runs(file: FileSide, example: Example, names: Sequence[str], count: int) -> bool:
    """Whether the first *count* nodes run, all of them: each leaf of what is left is returned."""
    nodes = file.proto.graph.node[:count]
    read = {name for node in nodes for name in node.input}
    leaves = [name for node in nodes for name in node.output if name and name not in read]
    try:
        _sampled(file, example, leaves or names, count)
    except _TROUBLE:
        return False
    return True


def _sampled(file: FileSide, example: Example, names: Sequence[str], count: int | None) -> dict[str, Part]:
    """These values, of the first *count* nodes alone."""
    with variant(file.path, showing(names, count)) as part:
        session = file.runtime.open(part, optimise=False)
        parts = file.runtime.sample(session, _only(file.feeds(example), session.inputs))
        file.runtime.forget(session)
    return dict(zip([name for name, _ in session.outputs], parts, strict=True))


def _only(feeds: Mapping[str, Any], inputs: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    return {name: feeds[name] for name, *_ in inputs if name in feeds}
