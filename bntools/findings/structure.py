"""Rules about where a layer stands: what is in front of it, and how often it is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import prod

from bntools.core.affine import HOSTS
from bntools.core.calls import Call, Capture, Stored, Value
from bntools.core.changes import Part
from bntools.core.graph import Graph
from bntools.core.reasons import Reason
from bntools.core.sites import BatchNorm
from bntools.findings.remark import Remark
from bntools.findings.subject import Subject

_DROPOUT = ("dropout", "dropout_", "feature_dropout", "feature_dropout_")
_NORMS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")
_WEIGHTED = ("conv1d", "conv2d", "conv3d", "convolution", "linear")


def redundant_bias(subject: Subject, threshold: float) -> Iterator[Remark]:
    """In front of frozen statistics a bias has an effect, and learns."""
    if subject.seen is None or subject.graph is None:
        return
    capture, graph = subject.seen.capture, subject.graph
    pairs = {}
    for site in subject.sites:
        host = _host(site, capture, graph)
        if host is not None and site.site.module in subject.by_path:
            pairs[host.index] = site, host
    for site, host in pairs.values():
        bias = host.args["bias"]
        norm = subject.by_path[site.site.module or ""]
        alone = all(call.index in pairs for call in graph.readers[bias.memory])
        if alone and norm.batchnorm and not norm.held:
            yield Remark(norm.path, f"{bias.keys[0]} is taken out again", {})


def _host(site: BatchNorm, capture: Capture, graph: Graph) -> Call | None:
    """The layer with a bias in front of a BatchNorm, if nobody else sees what it makes."""
    x = site.call.args["input"]
    made = graph.made.get(x.id) if isinstance(x, Value) else None
    if made is None or not (made.op in _WEIGHTED or made.op.startswith("conv_transpose")):
        return None
    about = HOSTS[made.op](made)
    alone = graph.readers[x.memory] == [site.call] and x.memory not in capture.outside
    fits = about is not None and about.axis == 1 and isinstance(about.bias, Stored)
    return made if fits and alone else None


def shared(subject: Subject, threshold: float) -> Iterator[Remark]:
    yield from _repeated(subject, loops=False)


def recurrent(subject: Subject, threshold: float) -> Iterator[Remark]:
    yield from _repeated(subject, loops=True)


def _repeated(subject: Subject, *, loops: bool) -> Iterator[Remark]:
    if subject.seen is None or subject.graph is None:
        return
    calls: dict[str, list[Call]] = defaultdict(list)
    for site in subject.sites:
        if site.site.module is not None:
            calls[site.site.module].append(site.call)
    for path, found in calls.items():
        if len(found) > 1 and _reaches(subject.seen.capture, subject.graph, found) == loops:
            told = f"it is called {len(found)} times in one forward"
            yield Remark(path, told, {"calls": float(len(found))})


def _reaches(capture: Capture, graph: Graph, calls: list[Call]) -> bool:
    """Whether what one of these calls returns comes to another of them, by another way than the statistics
    that both write in training mode.
    """
    ours = {call.index for call in calls}
    touched: set[int] = set()
    for call in capture.calls:
        reached = any(tensor.memory in touched for tensor in call.reads())
        if call.index in ours and reached:
            return True
        if call.index in ours or reached:
            touched |= ({value.memory for value in call.outputs} | call.writes) - graph.stored
    return False


def does_more(subject: Subject, threshold: float) -> Iterator[Remark]:
    if subject.seen is None:
        return
    told = {
        refusal.site.module: refusal.detail
        for refusal in subject.seen.plan.refusals
        if refusal.reason is Reason.SUBCLASS
    }
    for site in subject.sites:
        if site.keeps:
            told[site.site.module] = f"{site.site.kind} also runs {', '.join(map(_called, site.keeps))}"
    for path, detail in told.items():
        if path in subject.by_path:
            yield Remark(path, detail, {})


def _called(part: Part) -> str:
    return part.op or part.name


def dropout_upstream(subject: Subject, threshold: float) -> Iterator[Remark]:
    if subject.graph is None:
        return
    for site in subject.sites:
        dropout = _dropout(subject.graph, site.call)
        p = float(dropout.args["p"]) if dropout is not None else 0.0
        if dropout is None or not threshold < p < 1 or site.site.module not in subject.by_path:
            continue
        ratio = 1 / (1 - p)
        where = f" in {dropout.owner}" if dropout.owner else ""
        told = f"p = {p:g}{where}: right behind it σ² is {ratio:.3g} times as large in training"
        yield Remark(site.site.module, told, {"p": p, "ratio": ratio})


def _dropout(graph: Graph, norm: Call) -> Call | None:
    """The dropout with the largest p between a norm and the norms in front of it."""
    waiting = [norm.args["input"]]
    seen: set[int] = set()
    found: list[Call] = []
    while waiting:
        value = waiting.pop()
        call = graph.made.get(value.id) if isinstance(value, Value) else None
        if call is None or call.index in seen:
            continue
        seen.add(call.index)
        if call.op in _DROPOUT:
            found.append(call)
        if call.op not in _NORMS:
            waiting += call.reads()
    return max(found, key=lambda call: float(call.args["p"]), default=None)


def one_value(subject: Subject, threshold: float) -> Iterator[Remark]:
    """Where the groups are as many as the channels, and the layer in front leaves one place of each."""
    if subject.seen is None:
        return
    alone: dict[str, tuple[Call, list[bool]]] = {}
    for call in subject.seen.capture.calls:
        if call.op == "group_norm":
            shape, groups = call.args["input"].shape, call.args["num_groups"]
            alone.setdefault(call.owner, (call, []))[1].append(prod(shape[1:]) == groups)
    for path, (call, found) in alone.items():
        if all(found):
            shape = "x".join(map(str, call.args["input"].shape))
            yield Remark(
                path, f"{call.args['num_groups']} groups on {shape}", {"groups": call.args["num_groups"]}
            )
