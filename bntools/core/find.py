"""Capture in, plan out: which BatchNorms fold into the layer in front of them, and why the others don't.

First each site is looked at alone: back from it, through operators that carry the map, to a host,
with nobody else looking at the values on the way. Then together, see `bntools.core.conflicts`: dropping
one site may break another, so that is repeated until nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping

from bntools.core.affine import CARRIERS, HOSTS
from bntools.core.calls import Call, Capture, Stored, Value
from bntools.core.conflicts import Candidate, Candidates, find_conflicts
from bntools.core.graph import BlockedError, Graph, where
from bntools.core.hosts import find_host
from bntools.core.layout import check_layout
from bntools.core.plan import Edit, Plan, Promise, Reason, Refusal
from bntools.core.sites import BatchNorm, find_sites


def find_folds(
    capture: Capture, *, bake: bool = False, refuse: Mapping[str, tuple[Reason, str]] | None = None
) -> Plan:
    """Decide every site of a capture.

    Args:
        capture: one run of the model.
        bake: whether hosts with a parametrised weight may be made plain.
        refuse: sites to refuse whatever the capture says, by name, with reason and detail.

    Returns:
        a plan in which each site is either in ``edits`` or in ``refusals``.
    """
    sites, unanswered = find_sites(capture)
    graph = Graph(capture)
    candidates: dict[int, Candidate] = {}
    refusals: dict[int, Refusal] = {}
    for bn in sites:
        index = bn.call.index
        if refuse and bn.site.name in refuse:
            refusals[index] = Refusal(bn.site, *refuse[bn.site.name])
        elif bn.refusal is not None:
            refusals[index] = bn.refusal
        else:
            try:
                candidates[index] = _walk(graph, bn, bake)
            except BlockedError as blocked:
                refusals[index] = Refusal(bn.site, blocked.reason, blocked.detail)
    while dropped := find_conflicts(graph, candidates, sites):
        for index, refusal in dropped.items():
            refusals[index] = refusal
            del candidates[index]
    edits = [_edit(candidates, index) for index in sorted(candidates)]
    return Plan(
        verb="fold",
        edits=tuple(edits),
        refusals=(*(refusals[i] for i in sorted(refusals)), *unanswered),
        fingerprint=capture.fingerprint,
        notes=capture.notes,
        promise=Promise.SAME,
    )


def _walk(graph: Graph, bn: BatchNorm, bake: bool) -> Candidate:
    """Back from a site to its host."""
    value, axis = bn.call.args["input"], 1
    way, memories = [bn.call], set[int]()
    while True:
        call = graph.made.get(value.id) if isinstance(value, Value) else None
        if call is None:
            source = "a parameter" if isinstance(value, Stored) else "an input of the model"
            raise BlockedError(Reason.NO_HOST, f"it reads {source}")
        memories.add(value.memory)
        if call.op in HOSTS:
            break
        rule = CARRIERS.get(call.op)
        if rule is None or call.outputs[0].id != value.id:
            reason = Reason.BLOCKED if any(isinstance(r, Value) for r in call.reads()) else Reason.NO_HOST
            raise BlockedError(reason, f"{where(call)} stands in front of it")
        lane = rule(call, axis)
        if isinstance(lane, str):
            raise BlockedError(Reason.BLOCKED, f"{where(call)} {lane}")
        way.append(call)
        value, axis = lane.value, lane.axis
    _check_only_read_on(graph, way, memories)
    host = find_host(graph, call, axis, bn.site.channels, bake=bake)
    check_layout(graph, way)
    return Candidate(bn, host, call, tuple(c.op for c in way[1:]))


def _check_only_read_on(graph: Graph, way: list[Call], memories: set[int]) -> None:
    """Refuse if somebody besides the calls on the way sees the values between site and host."""
    known = {c.index for c in way}
    for memory in sorted(memories):
        for call in graph.writers[memory]:
            raise BlockedError(Reason.WRITTEN_IN_PLACE, f"{where(call)} writes into the values it reads")
        for call in graph.readers[memory]:
            if call.index not in known:
                raise BlockedError(Reason.READ_ELSEWHERE, f"{where(call)} reads the same values")
        for who in graph.capture.outside.get(memory, ()):
            if who.startswith("a hook"):
                raise BlockedError(Reason.HOOKED, f"{who} sees the values it reads")
            how = "returned" if who == "output" else "kept by the model or its caller"
            raise BlockedError(Reason.RETURNED, f"the values it reads are {how}")


def _edit(candidates: Candidates, index: int) -> Edit:
    candidate = candidates[index]
    host, call, through = candidate.host, candidate.call, candidate.through
    while call.index in candidates:
        behind = candidates[call.index]
        host, call, through = behind.host, behind.call, (*through, call.op, *behind.through)
    bn = candidate.bn
    gamma, beta, mean, var = (t.keys[0] if isinstance(t, Stored) else "" for t in bn.slots)
    return Edit(bn.site, host, (gamma, beta, mean, var), through, bn.paths, bn.keeps)
