"""The module behind a host's call, and whether its weight and bias can take in maps."""

from __future__ import annotations

from bntools.core.affine import HostCall
from bntools.core.calls import Call, Stored, Value
from bntools.core.graph import BlockedError, Graph, where
from bntools.core.host import Host
from bntools.core.keys import key_of
from bntools.core.reasons import Reason


def find_host(graph: Graph, call: Call, host: HostCall, *, bake: bool) -> Host:
    """The host that a call stands for.

    Args:
        graph: of the capture.
        call: of an operator in `bntools.core.affine.HOSTS`.
        host: how it reads its weights.
        bake: whether a parametrised weight may be made plain.

    Returns:
        the layer; it has neither bias nor a key for one if it would not use one.

    Raises:
        BlockedError: if its tensors cannot take in a map.
    """
    channels = call.outputs[0].shape[host.axis]
    facts = graph.capture.facts.get(call.owner)
    if facts is not None and facts.compiled:
        raise BlockedError(Reason.COMPILED, f"{where(call)} is TorchScript")
    _check_shapes(call, host, channels)
    baked, weight = _weight(graph, call, host, bake)
    bias, new_bias = _slot(graph, call, host, host.bias, "bias")
    new_weight = "" if weight else key_of(call.owner, "weight")
    path = (weight or bias or (f"{call.owner}.",))[0].rpartition(".")[0]
    return Host(
        path, call.op, host.layout, host.groups, weight, bias, new_weight, new_bias, baked, call.index
    )


def _check_shapes(call: Call, host: HostCall, channels: int) -> None:
    """A weight without channels, and a bias that broadcasts, are legal to torch and cannot take in a map."""
    if isinstance(host.weight, Stored | Value):
        shape = host.weight.shape
        ranks = {"vector": (1,), "table": (2,)}.get(host.layout, range(2, 6))
        at = {"transposed": 1, "table": 1}.get(host.layout, 0)
        groups = host.groups if host.layout == "transposed" else 1
        if len(shape) not in ranks or shape[at] * groups != channels:
            raise BlockedError(
                Reason.BLOCKED, f"the weight of {where(call)} has shape {list(shape)}: not a row a channel"
            )
    if isinstance(host.bias, Stored | Value) and host.bias.shape != (channels,):
        shape = host.bias.shape
        raise BlockedError(
            Reason.BLOCKED, f"the bias of {where(call)} has shape {list(shape)}: not a number a channel"
        )


def _weight(graph: Graph, call: Call, host: HostCall, bake: bool) -> tuple[str, tuple[str, ...]]:
    """The parametrised name to bake, if any, and the keys of the weight."""
    facts = graph.capture.facts.get(call.owner)
    if isinstance(host.weight, Value) and facts is not None and "weight" in facts.parametrised:
        if not bake:
            raise BlockedError(Reason.PARAMETRISED, f"the weight of {where(call)} is parametrised")
        _check_computed(graph, call, host.weight)
        _only_computed_inside(graph, call, host.weight)
        return "weight", tuple(key_of(p, "weight") for p in facts.paths)
    keys, _ = _slot(graph, call, host, host.weight, "weight")
    return "", keys


def _check_computed(graph: Graph, call: Call, weight: Value) -> None:
    """Refuse to bake what is more than the parametrised tensor, or another one at every call."""
    inner = key_of(call.owner, "parametrizations.")
    made, facts = graph.made.get(weight.id), graph.capture.facts[call.owner]
    if not facts.torchs and not (made and made.owner.startswith(inner)):
        raise BlockedError(Reason.COMPUTED_WEIGHT, f"the weight of {where(call)} is computed at every call")
    for other in graph.capture.calls:
        if (other.owner == call.owner or other.owner.startswith(inner)) and other.writes & graph.stored:
            raise BlockedError(
                Reason.COMPUTED_WEIGHT,
                f"{where(other)} estimates the norm anew at every call: eval() stops that",
            )


def _only_computed_inside(graph: Graph, call: Call, weight: Value) -> None:
    """Refuse to bake a weight that somebody besides its module asks for: he would get the folded one."""
    modules = graph.capture.modules
    own = [range(m.start, m.end) for m in modules if m.path == call.owner]
    inner = key_of(call.owner, "parametrizations.")
    asked = [m.start for m in modules if m.path.startswith(inner) and m.start < m.end]
    read = [c.index for c in graph.readers[weight.memory]]
    if not all(any(index in calls for calls in own) for index in (*asked, *read)):
        raise BlockedError(Reason.SHARED_HOST, f"the weight of {call.owner} is read outside its calls too")


def _slot(
    graph: Graph, call: Call, host: HostCall, tensor: Stored | Value | None, name: str
) -> tuple[tuple[str, ...], str]:
    """The keys of a host's tensor, or the key under which one can be made."""
    what = f"the {name} of {where(call)}"
    if isinstance(tensor, Value):
        raise BlockedError(Reason.COMPUTED_WEIGHT, f"{what} is computed at every call")
    if isinstance(tensor, Stored):
        if not tensor.floating:
            raise BlockedError(Reason.UNSUPPORTED_TYPE, f"{what} is {tensor.dtype}")
        if graph.writers[tensor.memory]:
            raise BlockedError(Reason.COMPUTED_WEIGHT, f"{what} is written to while the model runs")
        for key in tensor.keys:
            if key in graph.capture.held:
                raise BlockedError(Reason.SHARED_HOST, f"{what} is held by {graph.capture.held[key]} too")
        return tensor.keys, ""
    facts = graph.capture.facts.get(call.owner)
    if host.layout != "table" and facts is not None and name in facts.accepts:
        return (), key_of(call.owner, name)
    if name == "weight":
        raise BlockedError(Reason.NO_BIAS, f"{where(call)} has no {name}, and would not use one")
    return (), ""
