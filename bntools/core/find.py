"""Capture in, plan out: which BatchNorms go, into which layers, and why the others stay.

Some stay whatever stands around them. For the others the flow of the capture says which maps go together, the
search takes the largest set, and the numbers are checked; what does not hold then stays as well, and the
search is repeated without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from bntools.core.aliases import find_overwritten
from bntools.core.calls import Capture
from bntools.core.carry import flow_of
from bntools.core.conflicts import find_missed
from bntools.core.edits import draw_edits
from bntools.core.explain import STAYS_ELSEWHERE, Explainer
from bntools.core.flow import Flow
from bntools.core.graph import BlockedError, Graph, where
from bntools.core.layout import check_layout
from bntools.core.plan import Op, Plan, Promise, Refusal
from bntools.core.problem import Conflict, Item, Problem
from bntools.core.reasons import Reason
from bntools.core.settle import Solution, settle
from bntools.core.siblings import find_siblings
from bntools.core.sites import BatchNorm, find_sites
from bntools.core.solve import choose

Refusals = dict[int, Refusal]
"""By the index of the BatchNorm's call."""


def find_folds(
    capture: Capture,
    *,
    bake: bool = False,
    refuse: Mapping[str, tuple[Reason, str]] | None = None,
    watch: Collection[str] = (),
    reduce: Mapping[str, Collection[Op]] = MappingProxyType({}),
    pads: frozenset[int] = frozenset(),
) -> Plan:
    """Decide every site of a capture.

    Args:
        capture: one run of the model.
        bake: whether hosts with a parametrised weight may be made plain.
        refuse: sites to refuse whatever the capture says, by name, with reason and detail.
        watch: paths of other modules of which the plan's numbers are to say what stands for what they return.
        reduce: for sites by name, what is faster than a BatchNorm there; those that stay become that.
        pads: the calls of convolutions that may pad with a value for each channel.

    Returns:
        a plan in which each site is either in ``edits`` or in ``refusals``.

    Example:
        >>> import torch
        >>> import bntools as bn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval()
        >>> plan = find_folds(bn.capture(net, bn.Example((torch.ones(2, 4),))))
        >>> [(edit.site.name, edit.into) for edit in plan.edits]
        [('1', ('0',))]
    """
    sites, unanswered = find_sites(capture)
    graph = Graph(capture)
    refusals = _standing(graph, sites, refuse or {})
    able = {bn.call.index: bn for bn in sites if bn.call.index not in refusals}
    flow = flow_of(graph, able, bake=bake, pads=pads)
    reducible = {index: (bn, reduce[bn.site.name]) for index, bn in able.items() if bn.site.name in reduce}
    level = [index for index, (_, ops) in reducible.items() if Op.SHIFT in ops and index in flow.takers]
    gone, solution, conflicts, barred = _solved(flow, able, level)
    left = {index: bn for index, bn in able.items() if index not in gone}
    beside = _beside(capture, able) if left else {}
    explainer = Explainer(flow, gone) if left else None
    for index, bn in left.items():
        if index in beside:
            refusals[index] = Refusal(bn.site, Reason.SIBLING, beside[index])
        elif index in barred and index not in conflicts:
            refusals[index] = Refusal(bn.site, barred[index].reason, barred[index].detail)
        elif explainer is not None:
            refusals[index] = explainer.refusal(bn, conflicts.get(index))
    reducible = {index: each for index, each in reducible.items() if index not in gone}
    edits, hosts, reductions, maps = draw_edits(flow, gone, solution, watch, reducible)
    return Plan(
        verb="fold",
        edits=edits,
        refusals=(*(refusals[i] for i in sorted(refusals)), *unanswered),
        fingerprint=capture.fingerprint,
        hosts=hosts,
        notes=capture.notes,
        promise=Promise.SAME,
        reductions=reductions,
        maps=maps,
    )


def _standing(graph: Graph, sites: Sequence[BatchNorm], refuse: Mapping[str, tuple[Reason, str]]) -> Refusals:
    """The sites that stay whatever stands around them."""
    refusals: Refusals = {}
    for bn in sites:
        if bn.site.name in refuse:
            refusals[bn.call.index] = Refusal(bn.site, *refuse[bn.site.name])
        elif bn.refusal is not None:
            refusals[bn.call.index] = bn.refusal
        else:
            try:
                check_layout(graph, bn.call)
            except BlockedError as blocked:
                refusals[bn.call.index] = Refusal(bn.site, blocked.reason, blocked.detail)
    while missed := find_missed(graph, sites, refusals):
        refusals.update(missed)
    return refusals


def _beside(capture: Capture, able: Mapping[int, BatchNorm]) -> dict[int, str]:
    """The BatchNorms that could go in a captured program, where a sum can be taken out."""
    found = find_siblings(capture, {index: bn.call for index, bn in able.items()})
    return {
        site.index: f"{where(sibling.total)} adds up what it and {where(sibling.host)} return"
        for sibling in found
        for site in sibling.sites
    }


def _solved(
    flow: Flow, able: Mapping[int, BatchNorm], level: Sequence[int] = ()
) -> tuple[dict[int, BatchNorm], Solution, dict[int, Conflict], dict[int, BlockedError]]:
    """The largest set that goes, with numbers that hold, and what stood in the way of the others.

    Args:
        flow: of the capture.
        able: the BatchNorms that could go.
        level: those of which the scale is to go, if they stay; nothing else stays for their sake.
    """
    norms = flow.graph.capture.norms
    maps = {index: (norms[index].scale, norms[index].shift) for index in flow.edges}
    sizes = {index: (norms[index].before, norms[index].behind) for index in flow.edges}
    items = _items(flow, able)
    barred = _split(flow, able)
    for index, bn in able.items():
        if index in flow.edges:
            barred.update(find_overwritten(flow.graph, {index: bn}))
    while True:
        problem = Problem(flow, maps)
        held = [item for item in items if any(call in barred for call in item.calls)]
        free = [item for item in items if not any(call in barred for call in item.calls)]
        alone = {item: _alone(problem, item) for item in (*held, *(i for i in free if len(i.calls) > 1))}
        for item in held:
            problem.leave(item)
        chosen, conflicts = choose(problem, free)
        for item in alone.keys() - set(chosen):
            conflicts.update(alone[item])
        calls = sorted(call for item in chosen for call in item.calls)
        levelled = [call for call in level if call not in calls and problem.level(call)]
        gone = {call: able[call] for call in calls}
        solution, broken, dear = settle(problem, {call: flow.edges[call] for call in calls}, sizes)
        bad = find_overwritten(flow.graph, gone)
        bad = bad or dict.fromkeys(
            dear, BlockedError(Reason.IMPRECISE, "its inverse would lose too many digits")
        )
        bad = bad or dict.fromkeys(
            broken, BlockedError(Reason.BLOCKED, "what is around it cannot take it in")
        )
        if bad and levelled:
            level = ()
            continue
        if not bad:
            return gone, solution, conflicts, barred
        for item in items:
            for call in set(item.calls) & bad.keys():
                barred.update(dict.fromkeys(item.calls, bad[call]))


def _alone(problem: Problem, item: Item) -> dict[int, Conflict]:
    """What is in the way of each call of a module by itself."""
    found = {call: problem.conflict(Item((call,), rigid=True)) for call in item.calls}
    return {call: conflict for call, conflict in found.items() if conflict is not None}


def _split(flow: Flow, able: Mapping[int, BatchNorm]) -> dict[int, BlockedError]:
    """Calls of modules that are also called where they cannot go, on another axis."""
    lost = {bn.site.module for index, bn in able.items() if index not in flow.edges}
    stays = BlockedError(Reason.SHARED_BN, STAYS_ELSEWHERE)
    return {index: stays for index, bn in able.items() if index in flow.edges and bn.site.module in lost}


def _items(flow: Flow, able: Mapping[int, BatchNorm]) -> list[Item]:
    """The BatchNorms that could go, those of one module together."""
    together: dict[str, list[int]] = defaultdict(list)
    for index, bn in able.items():
        if index in flow.edges:
            together[bn.site.module or bn.site.name].append(index)
    return [Item(tuple(calls), any(flow.holds(call) for call in calls)) for calls in together.values()]
