"""Capture in, plan out: which BatchNorms fold into the layer in front of them, and why the others don't.

First each site is looked at alone: back from it, through operators that carry the map, to a host,
with nobody else looking at the values on the way. Then together: a host's weight can take one map only,
whoever reads it, and a BatchNorm module can go only if all of its calls fold. Dropping one site may break
another, so the second step is repeated until nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from bntools.core.affine import CARRIERS, HOSTS, HostCall
from bntools.core.calls import Call, Capture, Stored, Value
from bntools.core.plan import Edit, Host, Plan, Promise, Reason, Refusal
from bntools.core.sites import BatchNorm, find_sites


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A site with the call of its host, and what it would take to fold the one into the other."""

    bn: BatchNorm
    host: Host
    call: Call
    through: tuple[str, ...]


class _BlockedError(Exception):
    """A site cannot be folded: what a rule found on the way back from it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail


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
    graph = _Graph(capture, bake)
    candidates: dict[int, _Candidate] = {}
    refusals: dict[int, Refusal] = {}
    for bn in sites:
        index = bn.call.index
        if refuse and bn.site.name in refuse:
            refusals[index] = Refusal(bn.site, *refuse[bn.site.name])
        elif bn.refusal is not None:
            refusals[index] = bn.refusal
        else:
            try:
                candidates[index] = graph.walk(bn)
            except _BlockedError as blocked:
                refusals[index] = Refusal(bn.site, blocked.reason, blocked.detail)
    while dropped := graph.conflicts(candidates, sites):
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


class _Graph:
    """Who makes, reads and writes what in a capture."""

    def __init__(self, capture: Capture, bake: bool) -> None:
        self.capture, self.bake = capture, bake
        self.made: dict[int, Call] = {v.id: c for c in capture.calls for v in c.outputs}
        self.readers: dict[int, list[Call]] = defaultdict(list)
        self.writers: dict[int, list[Call]] = defaultdict(list)
        for call in capture.calls:
            for memory in {t.memory for t in call.reads()}:
                self.readers[memory].append(call)
            for memory in call.writes:
                self.writers[memory].append(call)

    # One site

    def walk(self, bn: BatchNorm) -> _Candidate:
        """Back from a site to its host."""
        value, axis = bn.call.args["input"], 1
        way, memories = [bn.call], set[int]()
        while True:
            call = self.made.get(value.id) if isinstance(value, Value) else None
            if call is None:
                source = "a parameter" if isinstance(value, Stored) else "an input of the model"
                raise _BlockedError(Reason.NO_HOST, f"it reads {source}")
            memories.add(value.memory)
            if call.op in HOSTS:
                break
            rule = CARRIERS.get(call.op)
            if rule is None or call.outputs[0].id != value.id:
                reason = Reason.BLOCKED if any(isinstance(r, Value) for r in call.reads()) else Reason.NO_HOST
                raise _BlockedError(reason, f"{call.op}{_in(call.owner)} stands in front of it")
            lane = rule(call, axis)
            if isinstance(lane, str):
                raise _BlockedError(Reason.BLOCKED, f"{call.op}{_in(call.owner)} {lane}")
            way.append(call)
            value, axis = lane.value, lane.axis
        self._only_read_on(way, memories)
        return _Candidate(bn, self._host(call, axis), call, tuple(c.op for c in way[1:]))

    def _only_read_on(self, way: list[Call], memories: set[int]) -> None:
        """Refuse if somebody besides the calls on the way sees the values between site and host."""
        known = {c.index for c in way}
        for memory in sorted(memories):
            for call in self.writers[memory]:
                raise _BlockedError(
                    Reason.WRITTEN_IN_PLACE, f"{call.op}{_in(call.owner)} writes into the values it reads"
                )
            for call in self.readers[memory]:
                if call.index not in known:
                    raise _BlockedError(
                        Reason.READ_ELSEWHERE, f"{call.op}{_in(call.owner)} reads the same values"
                    )
            for who in self.capture.outside.get(memory, ()):
                if who.startswith("a hook"):
                    raise _BlockedError(Reason.HOOKED, f"{who} sees the values it reads")
                how = "returned" if who == "output" else "kept by the model or its caller"
                raise _BlockedError(Reason.RETURNED, f"the values it reads are {how}")

    def _host(self, call: Call, axis: int) -> Host:
        """The module behind a host's call, if its tensors can take in the map."""
        host = HOSTS[call.op](call)
        where = f"{call.op}{_in(call.owner)}"
        if host is None:
            raise _BlockedError(Reason.BLOCKED, f"{where} has a weight for each element")
        if host.axis != axis:
            raise _BlockedError(
                Reason.OTHER_AXIS,
                f"it normalises axis {axis} of what {where} returns, whose channels are axis {host.axis}",
            )
        facts = self.capture.facts.get(call.owner)
        if facts is not None and facts.compiled:
            raise _BlockedError(Reason.COMPILED, f"{where} is TorchScript")
        baked, weight = self._weight(call, host, where)
        bias, new_bias = self._slot(call, host, host.bias, "bias", where)
        if host.layout == "table":
            bias, new_bias = (), ""
        new_weight = "" if weight else _key(call.owner, "weight")
        path = (weight or bias or (f"{call.owner}.",))[0].rpartition(".")[0]
        return Host(
            path, call.op, host.layout, host.groups, weight, bias, new_weight, new_bias, baked, call.index
        )

    def _weight(self, call: Call, host: HostCall, where: str) -> tuple[str, tuple[str, ...]]:
        """The parametrised name to bake, if any, and the keys of the weight."""
        facts = self.capture.facts.get(call.owner)
        if isinstance(host.weight, Value) and facts is not None and "weight" in facts.parametrised:
            if not self.bake:
                raise _BlockedError(Reason.PARAMETRISED, f"the weight of {where} is parametrised")
            return "weight", tuple(_key(p, "weight") for p in facts.paths)
        keys, _ = self._slot(call, host, host.weight, "weight", where)
        return "", keys

    def _slot(
        self, call: Call, host: HostCall, tensor: Stored | Value | None, name: str, where: str
    ) -> tuple[tuple[str, ...], str]:
        """The keys of a host's tensor, or the key under which one can be made."""
        if isinstance(tensor, Value):
            raise _BlockedError(Reason.COMPUTED_WEIGHT, f"the {name} of {where} is computed at every call")
        if isinstance(tensor, Stored):
            if not tensor.floating:
                raise _BlockedError(Reason.UNSUPPORTED_TYPE, f"the {name} of {where} is {tensor.dtype}")
            if self.writers[tensor.memory]:
                raise _BlockedError(
                    Reason.COMPUTED_WEIGHT, f"the {name} of {where} is written to while the model runs"
                )
            return tensor.keys, ""
        facts = self.capture.facts.get(call.owner)
        if host.layout != "table" and (facts is None or name not in facts.accepts):
            raise _BlockedError(Reason.NO_BIAS, f"{where} has no {name}, and would not use one")
        return (), _key(call.owner, name)

    # All sites together

    def conflicts(
        self, candidates: Mapping[int, _Candidate], sites: tuple[BatchNorm, ...]
    ) -> dict[int, Refusal]:
        """Candidates that do not fold together with the others."""
        bad: dict[int, Refusal] = {}
        calls_of: dict[str, list[BatchNorm]] = defaultdict(list)
        for bn in sites:
            calls_of[bn.site.module or bn.site.name].append(bn)
        for index, candidate in candidates.items():
            for other in calls_of[candidate.bn.site.module or ""]:
                theirs = candidates.get(other.call.index)
                if theirs is None or theirs.bn.keeps != candidate.bn.keeps:
                    bad[index] = Refusal(candidate.bn.site, Reason.SHARED_BN, f"{other.site.name} stays")
        maps = self._maps(candidates)
        for index, candidate in candidates.items():
            if candidate.call.index in candidates:
                continue  # its host folds away itself: what counts is checked there
            mine = maps[candidate.call.index]
            for reader in self._readers_of_weights(candidate):
                if index not in bad and maps.get(reader.index) != mine:
                    what = f"{reader.op}{_in(reader.owner)} reads the weight of {candidate.host.path} too"
                    bad[index] = Refusal(
                        candidate.bn.site, Reason.SHARED_HOST, f"{what}, without the same BatchNorm"
                    )
        return bad

    def _maps(self, candidates: Mapping[int, _Candidate]) -> dict[int, tuple[object, ...]]:
        """For the call of each host, the maps that it would take in, in order."""
        maps: dict[int, tuple[object, ...]] = defaultdict(tuple)
        for index in sorted(candidates):
            maps[_root(candidates, index).index] += (candidates[index].bn.maps,)
        return maps

    def _readers_of_weights(self, candidate: _Candidate) -> list[Call]:
        """The calls that read a tensor that the fold would change."""
        call = candidate.call
        spec = HOSTS[call.op](call)
        assert spec is not None
        memories = {t.memory for t in (spec.weight, spec.bias) if isinstance(t, Stored)}
        if candidate.host.bake or not memories:  # every call of the module makes the weight anew
            return [c for c in self.capture.calls if c.op == call.op and c.owner == call.owner]
        same_module = [
            c
            for c in self.capture.calls
            if candidate.host.new_bias and c.owner == call.owner and c.op in HOSTS
        ]
        return [c for m in memories for c in self.readers[m]] + same_module


def _root(candidates: Mapping[int, _Candidate], index: int) -> Call:
    """The call of the host in which a site ends: behind a BatchNorm that folds, that one's host."""
    call = candidates[index].call
    while call.index in candidates:
        call = candidates[call.index].call
    return call


def _edit(candidates: Mapping[int, _Candidate], index: int) -> Edit:
    candidate = candidates[index]
    host, call, through = candidate.host, candidate.call, candidate.through
    while call.index in candidates:
        behind = candidates[call.index]
        host, call, through = behind.host, behind.call, (*through, call.op, *behind.through)
    bn = candidate.bn
    tensors = (bn.call.args.get(n) for n in ("weight", "bias", "running_mean", "running_var"))
    gamma, beta, mean, var = (t.keys[0] if isinstance(t, Stored) else "" for t in tensors)
    return Edit(bn.site, host, (gamma, beta, mean, var), through, bn.paths, bn.keeps)


def _key(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _in(owner: str) -> str:
    return f" in {owner}" if owner else ""
