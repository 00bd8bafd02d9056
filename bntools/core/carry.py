"""From a capture to its flow: every operator's rule, then who else looks at a value or a weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bntools.core import mixes, moves, reshapes
from bntools.core.affine import HOSTS, HostCall
from bntools.core.calls import Call, Stored, Value
from bntools.core.flow import Edge, Flow, Pin, Taker, Tie
from bntools.core.graph import BlockedError, Graph, seen_outside, where
from bntools.core.hosts import find_host
from bntools.core.lanes import Lane, along, ground, is_ground, spread
from bntools.core.reasons import Reason
from bntools.core.reshapes import Rule

_MOST = 1 << 20

MOVES: Mapping[str, Rule] = {**reshapes.RULES, **moves.RULES}
RULES: Mapping[str, Rule] = {**MOVES, **mixes.RULES}


def flow_of(
    graph: Graph,
    foldable: Mapping[int, object],
    *,
    bake: bool = False,
    pads: frozenset[int] = frozenset(),
) -> Flow:
    """What a fold may change in a capture.

    Args:
        graph: of the capture.
        foldable: the indices of the calls of BatchNorms that may go.
        bake: whether hosts with a parametrised weight may be made plain.
        pads: the calls of convolutions that may pad with a value for each channel.
    """
    flow = Flow(graph, bake, padded=pads)
    for call in graph.capture.calls:
        lanes = _host(call, flow, call.index in foldable) if call.op in HOSTS else _carried(call, flow)
        for value, lane in zip(call.outputs, lanes, strict=False):
            if not is_ground(lane):
                flow.lanes[value.id] = lane
    _pin_outside(flow)
    _pin_stale(flow)
    for taker in list(flow.takers.values()):
        _share(flow, taker)
    flow.close()
    return flow


def rule_of(op: str) -> Rule | None:
    """The rule of an operator; one that works in place follows that of its other form."""
    return RULES.get(op) or (RULES.get(op[:-1]) if op.endswith("_") and not op.startswith("__") else None)


def _carried(call: Call, flow: Flow) -> Sequence[Lane]:
    rule = rule_of(call.op)
    if rule is None or not call.outputs or not _readable(call):
        flow.opaque(call)
        return ()
    lanes = rule(call, flow)
    if lanes is None:
        flow.opaque(call)
        return ()
    lanes = [lanes] if isinstance(lanes, np.ndarray) else lanes
    for value, lane in zip(call.outputs, lanes, strict=True):
        fits = lane.ndim == len(value.shape) and all(
            n in (1, m) for n, m in zip(lane.shape, value.shape, strict=True)
        )
        if not fits:
            raise AssertionError(f"{call.op} from {call.args} to {value.shape}: lane of shape {lane.shape}")
    return lanes


def _readable(call: Call) -> bool:
    """Whether it returns numbers with a fraction, laid out as usual; or a single one of any kind."""
    return all(value.floating or not value.shape for value in call.outputs[:1])


def _host(call: Call, flow: Flow, foldable: bool) -> Sequence[Lane]:
    """A layer with weights: its input and output may have any maps, and need not have the same."""
    spec = HOSTS[call.op](call)
    if spec is None:
        flow.blocked[call.index] = BlockedError(
            Reason.BLOCKED, f"{where(call)} has a weight for each element"
        )
        flow.opaque(call)
        return ()
    rank, count = len(call.outputs[0].shape), call.outputs[0].shape[spec.axis]
    try:
        host = find_host(flow.graph, call, spec, bake=flow.bake)
    except BlockedError as blocked:
        flow.blocked[call.index] = blocked
        host = None
    paired = _paired(call, flow) if foldable else None
    if paired is not None:
        edge, lane = paired
        flow.edges[call.index] = edge
        if host is not None and host.bias_key and spec.reads == 1:
            flow.takers[call.index] = Taker(call, host, edge.y[edge.first], edge.x[edge.first])
        return [lane]
    columns = _columns(call, flow, spec)
    if host is None:
        flow.opaque(call)
        return ()
    rows = flow.fresh((count,))
    if columns is None:
        flow.opaque(call)
    elif call.index in flow.padded:
        # Zero stands for −v/r then: any map will do, but one that leaves nothing of the value.
        flow.ties.append(Tie(columns.ravel(), columns.ravel()))
    elif not spec.shifts:
        flow.pin(columns, Pin.SHIFT, call)
    if not host.bias_key and spec.layout != "table":
        none = BlockedError(Reason.NO_BIAS, f"{where(call)} has no bias, and would not use one")
        flow.pin(rows, Pin.SHIFT, call, none)
        if columns is not None:
            flow.pin(columns, Pin.SHIFT, call, none)
    flow.takers[call.index] = Taker(call, host, rows, columns)
    return [spread(rows, spec.axis, rank), *(ground(len(v.shape)) for v in call.outputs[1:])]


def _columns(call: Call, flow: Flow, spec: HostCall) -> Lane | None:
    """The labels of the input channels, if those are all that labels differ by."""
    if spec.reads is None:
        return None
    x = call.args["input"]
    if not isinstance(x, Value) or not len(x.shape) > spec.reads:
        return None
    return along(flow.lane(x), spec.reads, x.shape[spec.reads])


def _paired(call: Call, flow: Flow) -> tuple[Edge, Lane] | None:
    """Each channel of a BatchNorm with each label that stands in it, and the lane of what it returns."""
    x = call.args["input"]
    lane = flow.lane(x)
    if lane.size > _MOST:
        return None
    lane = np.broadcast_to(lane, [x.shape[1] if axis == 1 else n for axis, n in enumerate(lane.shape)])
    if lane.size == x.shape[1]:
        y = flow.fresh(lane.shape)
        return Edge(lane.ravel(), y.ravel(), np.arange(x.shape[1])), y
    channels = spread(np.arange(x.shape[1]), 1, lane.ndim)
    key, place = np.unique(channels * flow.count + lane, return_inverse=True)
    channel, labels = np.divmod(key, flow.count)
    y = flow.fresh(key.shape)
    return Edge(labels, y, channel), y[place.reshape(lane.shape)]


# Who else looks


def _pin_outside(flow: Flow) -> None:
    """What the caller gets, what somebody keeps and what a hook sees stays as it is."""
    for value in _values(flow):
        for who in flow.graph.capture.outside.get(value.memory, ()):
            reason = Reason.HOOKED if who.startswith("a hook") else Reason.RETURNED
            flow.pin(flow.lane(value), Pin.FIXED, None, BlockedError(reason, seen_outside(who)))


def _pin_stale(flow: Flow) -> None:
    """A value that is read after something was written into its memory is not what it was made as.

    Then none of the values of that memory has a map of its own. An operator that works in place returns a new
    value; whoever reads that one reads what was written.
    """
    graph, stale = flow.graph, dict[int, Call]()
    for memory, writers in graph.writers.items():
        for reader in graph.readers[memory]:
            reads = [v for v in reader.reads() if isinstance(v, Value) and v.memory == memory]
            between = (w for v in reads for w in writers if graph.made_at(v) < w.index < reader.index)
            if (writer := next(between, None)) is not None:
                stale.setdefault(memory, writer)
    for value in _values(flow):
        if value.memory in stale:
            writer = stale[value.memory]
            why = BlockedError(Reason.WRITTEN_IN_PLACE, f"written into by {where(writer)}")
            flow.pin(flow.lane(value), Pin.FIXED, None, why)


def _values(flow: Flow) -> Iterator[Value]:
    for call in flow.graph.capture.calls:
        for value in call.outputs:
            if value.id in flow.lanes:
                yield value


def _share(flow: Flow, taker: Taker) -> None:
    """Tie the calls that read one tensor for one use; hold those where another use would miss it.

    A BatchNorm that shares what it holds takes nothing in.
    """
    graph, call, host = flow.graph, taker.call, taker.host
    spec = HOSTS[call.op](call)
    assert spec is not None
    shared: dict[int, set[str]] = defaultdict(set)
    problems: list[str] = []
    for name, tensor in (("weight", spec.weight), ("bias", spec.bias)):
        if not isinstance(tensor, Stored):
            continue
        readers, owners = graph.readers[tensor.memory], graph.owners(tensor)
        for reader in readers:
            if (
                reader is not call
                and reader.index in flow.takers
                and _use(reader, tensor) == _use(call, tensor)
            ):
                shared[reader.index].add(name)
                makes = host.new_bias or flow.takers[reader.index].host.new_bias
                if makes and not {call.owner, reader.owner} <= owners:
                    # Code that reads a module's weight may read its bias too, and find the one that is made.
                    shared[reader.index].add("bias")
            elif reader is not call:
                problems.append(f"{where(reader)} reads {tensor.keys[0]} too, without the same BatchNorm")
        idle = sorted(owners - {r.owner for r in readers}) if len(owners) > 1 else []
        why = f"holds {tensor.keys[0]} too, and was not called with it"
        problems += [f"{owner or 'the model'} {why}" for owner in idle]
    if host.bake or host.new_bias or host.new_weight:  # every call of the module gets what is made
        for again in graph.hosts[call.owner]:
            if again is not call and again.index in flow.takers:
                shared[again.index] |= {"weight", "bias"}
            elif again is not call:
                problems.append(f"{where(again)} is called again without the same BatchNorm")
    if call.index in flow.edges:
        if shared or problems:
            del flow.takers[call.index]
        return
    for problem in problems[:1]:
        _hold(flow, taker, BlockedError(Reason.SHARED_HOST, problem))
    for index, names in shared.items():
        if index > call.index:
            _tie(flow, taker, flow.takers[index], names)


def _tie(flow: Flow, one: Taker, two: Taker, shared: set[str]) -> None:
    """Give two calls the same maps, as far as they share what takes those in.

    ``W' = s·W·r`` is one for both if s and r are, ``b' = s·(b + W·v) + t`` if s, t and W·v are.
    """
    calls = {"call": one.call, "other": two.call}
    flow.tie(one.rows, two.rows, shift="bias" in shared or one.host.layout == "table", **calls)
    columns = [lane for lane in (one.columns, two.columns) if lane is not None]
    if "weight" in shared and len(columns) == 2:
        flow.tie(columns[0], columns[1], shift="bias" in shared, **calls)
    for lane in columns:
        if "weight" not in shared or len(columns) < 2:
            flow.pin(lane, Pin.SHIFT if "weight" not in shared else Pin.FIXED, two.call)


def _hold(flow: Flow, taker: Taker, why: BlockedError) -> None:
    flow.blocked.setdefault(taker.call.index, why)
    for lane in (taker.rows, taker.columns):
        if lane is not None:
            flow.pin(lane, Pin.FIXED, taker.call, why)


def _use(call: Call, tensor: Stored) -> object:
    """What a call takes a tensor for: two uses that differ need two folded tensors."""
    spec = HOSTS[call.op](call) if call.op in HOSTS else None
    if spec is None:
        return None
    slots = (spec.weight, spec.bias)
    as_slot = tuple(isinstance(t, Stored) and t.memory == tensor.memory for t in slots)
    reads = sum(t.memory == tensor.memory for t in call.reads())
    return as_slot, reads, spec.layout, spec.groups
