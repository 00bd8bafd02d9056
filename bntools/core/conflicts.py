"""Folds that each can be done, but not together with what the others do or leave undone.

A host's tensors can take in one map only, whoever reads them, and a BatchNorm module can go only if nobody
is left who asks for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bntools.core.affine import HOSTS
from bntools.core.calls import Call, Stored
from bntools.core.graph import Graph, where
from bntools.core.plan import Host, Reason, Refusal
from bntools.core.sites import BatchNorm


@dataclass(frozen=True, slots=True)
class Candidate:
    """A site that could fold if it were alone.

    Args:
        bn: the site.
        host: the layer that would take it in.
        call: of that layer.
        through: the operators between the two, from the site back.
    """

    bn: BatchNorm
    host: Host
    call: Call
    through: tuple[str, ...]


Candidates = Mapping[int, Candidate]
"""By the index of the BatchNorm's call."""


def find_conflicts(graph: Graph, candidates: Candidates, sites: Sequence[BatchNorm]) -> dict[int, Refusal]:
    """The candidates that do not fold together with the others; to be asked again without them.

    Args:
        graph: of the capture.
        candidates: what is still to be folded.
        sites: every BatchNorm that was called.
    """
    calls_of: dict[str, list[BatchNorm]] = defaultdict(list)
    for bn in sites:
        calls_of[bn.site.module or bn.site.name].append(bn)
    maps = _maps(candidates)
    bad: dict[int, Refusal] = {}
    for index, candidate in candidates.items():
        site = candidate.bn.site
        for detail in _of_batchnorm(graph, candidates, candidate, calls_of[site.module or ""]):
            bad.setdefault(index, Refusal(site, Reason.SHARED_BN, detail))
        # If its host folds away itself, what counts is checked there.
        if candidate.call.index not in candidates:
            for detail in _of_host(graph, candidate, maps):
                bad.setdefault(index, Refusal(site, Reason.SHARED_HOST, detail))
    return bad


def root(candidates: Candidates, index: int) -> Call:
    """The call of the host in which a site ends: behind a BatchNorm that folds, that one's host."""
    call = candidates[index].call
    while call.index in candidates:
        call = candidates[call.index].call
    return call


def _maps(candidates: Candidates) -> dict[int, tuple[object, ...]]:
    """For the call of each host, the maps that it would take in, in order."""
    maps: dict[int, tuple[object, ...]] = defaultdict(tuple)
    for index in sorted(candidates):
        maps[root(candidates, index).index] += (candidates[index].bn.maps,)
    return maps


def _of_batchnorm(
    graph: Graph, candidates: Candidates, candidate: Candidate, calls: Sequence[BatchNorm]
) -> Iterator[str]:
    """Who would miss the BatchNorm module, or what it holds under its name."""
    bn = candidate.bn
    for other in calls:
        theirs = candidates.get(other.call.index)
        if theirs is None or theirs.bn.keeps != bn.keeps:
            yield f"{other.site.name} stays"
    for path in bn.paths:
        if path in graph.capture.held:
            yield f"{path} is held by {graph.capture.held[path]} too"
    for tensor in bn.tensors:
        for call in graph.writers[tensor.memory]:
            yield f"{where(call)} writes into {tensor.keys[0]}"
        for call in graph.readers[tensor.memory]:
            theirs = candidates.get(call.index)
            folds = theirs is not None and theirs.bn.site.module == bn.site.module
            if not folds and not _reads_its_own(graph, call, tensor.memory, bn.site.module or ""):
                yield f"{where(call)} reads {tensor.keys[0]} too"


def _reads_its_own(graph: Graph, call: Call, memory: int, module: str) -> bool:
    """Whether a call reads a tensor that its own module holds as well, not the one of that name."""
    tensors = [t for t in call.reads() if isinstance(t, Stored) and t.memory == memory]
    return bool(tensors) and all(call.owner in graph.owners(t) - {module} for t in tensors)


def _of_host(graph: Graph, candidate: Candidate, maps: Mapping[int, object]) -> Iterator[str]:
    """Who else reads a tensor that the fold would change, and would get another map than his own."""
    host, mine = candidate.host, maps[candidate.call.index]
    spec = HOSTS[candidate.call.op](candidate.call)
    assert spec is not None
    tensors = [t for t in (spec.weight, spec.bias) if isinstance(t, Stored)]
    for tensor in tensors:
        use = _use(candidate.call, tensor.memory)
        readers = graph.readers[tensor.memory]
        for reader in readers:
            if maps.get(reader.index) != mine or _use(reader, tensor.memory) != use:
                yield f"{where(reader)} reads {tensor.keys[0]} too, without the same BatchNorm"
        owners = graph.owners(tensor)
        for owner in sorted(owners - {r.owner for r in readers}) if len(owners) > 1 else ():
            yield f"{owner or 'the model'} holds {tensor.keys[0]} too, and was not called with it"
    if host.bake or host.new_bias or not tensors:  # every call of the module gets what is made
        for call in graph.hosts[candidate.call.owner]:
            if maps.get(call.index) != mine:
                yield f"{where(call)} is called again without the same BatchNorm"


def _use(call: Call, memory: int) -> object:
    """What a call takes a tensor for: two uses that differ need two folded tensors."""
    spec = HOSTS[call.op](call) if call.op in HOSTS else None
    if spec is None:
        return None
    slots = (spec.weight, spec.bias)
    as_slot = tuple(isinstance(t, Stored) and t.memory == memory for t in slots)
    reads = sum(t.memory == memory for t in call.reads())
    return as_slot, reads, spec.layout, spec.groups
