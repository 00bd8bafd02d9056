"""BatchNorm modules that cannot be taken out, whatever stands around them, since somebody would miss them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from bntools.core.calls import Call, Stored
from bntools.core.graph import Graph, where
from bntools.core.plan import Refusal
from bntools.core.reasons import Reason
from bntools.core.sites import BatchNorm


def find_missed(
    graph: Graph, sites: Sequence[BatchNorm], refused: Mapping[int, Refusal]
) -> dict[int, Refusal]:
    """Refusals of sites whose module, or what it holds, is needed besides their own calls.

    Args:
        graph: of the capture.
        sites: every BatchNorm that was called.
        refused: those that stay already, by the index of their call; a module goes with all its calls only.

    Returns:
        by the index of the call.
    """
    calls_of: dict[str, list[BatchNorm]] = defaultdict(list)
    for bn in sites:
        calls_of[bn.site.module or bn.site.name].append(bn)
    missed: dict[int, Refusal] = {}
    for bn in sites:
        if bn.call.index not in refused:
            calls = calls_of[bn.site.module or bn.site.name]
            detail = next(_misses(graph, bn, calls, refused), None)
            if detail is not None:
                missed[bn.call.index] = Refusal(bn.site, Reason.SHARED_BN, detail)
    return missed


def _misses(
    graph: Graph, bn: BatchNorm, calls: Sequence[BatchNorm], refused: Mapping[int, Refusal]
) -> Iterator[str]:
    for other in calls:
        if other.call.index in refused or other.keeps != bn.keeps:
            yield f"{other.site.name} stays"
    for path in bn.paths:
        if path in graph.capture.held:
            yield f"{path} is held by {graph.capture.held[path]} too"
    own = {other.call.index for other in calls}
    for tensor in bn.tensors:
        for call in graph.writers[tensor.memory]:
            yield f"{where(call)} writes into {tensor.keys[0]}"
        for call in graph.readers[tensor.memory]:
            if call.index not in own and not _reads_its_own(graph, call, tensor.memory, bn.site.module or ""):
                yield f"{where(call)} reads {tensor.keys[0]} too"


def _reads_its_own(graph: Graph, call: Call, memory: int, module: str) -> bool:
    """Whether a call reads a tensor that its own module holds as well, not the one of that name."""
    tensors = [t for t in call.reads() if isinstance(t, Stored) and t.memory == memory]
    return bool(tensors) and all(call.owner in graph.owners(t) - {module} for t in tensors)
