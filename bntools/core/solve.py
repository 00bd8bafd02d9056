"""Choose the largest set of BatchNorms that go together.

Each BatchNorm that goes ties the maps in front of it to those behind it; a set can go if all ties and
requirements can be met at once. Those that touch nothing in common are decided apart. Within such a cluster
the first attempt takes all that fit, one after the other; if some did not, a bounded search looks for more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bntools.core.bound import bound, is_free
from bntools.core.flow import Pin
from bntools.core.forest import components
from bntools.core.problem import Conflict, Item, Mark, Problem, together

_FEW = 8
"""Every subset of a cluster of so many items is tried, if not all of them go together."""
_TRIES = 400
"""How many items are tried at most in a larger cluster."""


def choose(problem: Problem, items: Sequence[Item]) -> tuple[list[Item], dict[int, Conflict]]:
    """The items that go, and for each call of the others what was in its way.

    Args:
        problem: the equations, with nothing let go; afterwards with the chosen ones.
        items: in order of execution.
    """
    clusters = _clusters(problem, items)
    taken = _whole(problem, clusters)
    rest = [cluster for cluster in clusters if cluster.order[0] not in taken]
    found = [_search(problem, cluster, checked=False) for cluster in rest if not cluster.summed]
    start = problem.mark()
    for checked in (False, True):  # sums hold almost always, and are looked at once
        problem.back(start)
        with_sums = [_search(problem, cluster, checked) for cluster in rest if cluster.summed]
        if not problem.unmet():
            break
    found += with_sums
    missed = {item: conflict for each in found for item, conflict in each.missed.items()}
    conflicts = {call: conflict for item, conflict in missed.items() for call in item.calls}
    return [*taken, *(item for each in found for item in each.taken)], conflicts


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Items that touch something in common, if only through others.

    Args:
        order: in which to try them.
        summed: whether a sum or a product is among what they touch.
        most: how many of them can go at most.
    """

    order: list[Item]
    summed: bool
    most: int


def _clusters(problem: Problem, items: Sequence[Item]) -> list[_Cluster]:
    """What cannot take anything in if it stays comes first, so that the others know."""
    flow, wires = problem.flow, []
    for item in items:
        first = flow.edges[item.calls[0]].y[0]
        for call in item.calls:
            edge = flow.edges[call]
            wires += [(edge.x, edge.y), (edge.y, first)]
    near = components(flow.count, wires, flow.near)
    summed = np.zeros(flow.count, bool)
    outs = [total.out for total in flow.sums] + [product.out for product in flow.products]
    summed[near[together(outs)]] = True
    clusters: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        clusters[int(near[flow.edges[item.calls[0]].y[0]])].append(item)
    return [
        _Cluster(sorted(cluster, key=lambda i: not i.rigid), bool(summed[root]), bound(problem, cluster))
        for root, cluster in clusters.items()
    ]


def _whole(problem: Problem, clusters: Sequence[_Cluster]) -> dict[Item, None]:
    """The items of those clusters of which all go, let go: in most networks that is nearly all there is."""
    start, able = problem.mark(), [cluster for cluster in clusters if cluster.most == len(cluster.order)]
    items = [item for cluster in able for item in cluster.order]
    wrong = problem.take_all(items)
    if not wrong and not problem.unmet():
        return dict.fromkeys(items)
    problem.back(start)
    able = [cluster for cluster in able if wrong.isdisjoint(cluster.order)]
    for some in (able, [cluster for cluster in able if not cluster.summed]):
        items = [item for cluster in some for item in cluster.order]
        if not problem.take_all(items) and not problem.unmet():
            return dict.fromkeys(items)
        problem.back(start)
    return {}


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What went in one order, what did not, and what was made to stay before."""

    order: Sequence[Item]
    stay: Sequence[Item]
    taken: list[Item]
    missed: dict[Item, Conflict]


def _search(problem: Problem, cluster: _Cluster, checked: bool) -> _Attempt:
    """The best of some attempts; the problem is left with it.

    Args:
        problem: the equations.
        cluster: what to search.
        checked: whether its sums are to hold.
    """
    start, order = problem.mark(), cluster.order

    def attempt(order: Sequence[Item], stay: Sequence[Item] = (), least: int = 0) -> _Attempt | Item:
        """Look at the sums once at the end, and at each step only if they do not hold."""
        problem.back(start)
        found = _attempt(problem, order, stay, check=False)
        if isinstance(found, _Attempt) and len(found.taken) >= least and checked and problem.unmet():
            problem.back(start)
            found = _attempt(problem, order, stay, check=True)
        return found

    best, stuck = attempt(order), list[Item]()
    while isinstance(best, Item):
        stuck.append(best)
        best = attempt([item for item in order if item not in stuck], stuck)
    whole = not best.missed or len(order) == 1
    if whole or (len(best.missed) == 1 and not stuck and not _is_flat(problem, order)):
        return best  # what is larger is all of them, and they do not go together
    alone = {item: _alone(problem, start, item) for item in best.missed}
    missed = [item for item, conflict in alone.items() if conflict is None]
    hopeful = [item for item in order if alone.get(item) is None]
    problem.back(start)
    if missed:
        most = cluster.most if len(hopeful) == len(order) else bound(problem, hopeful)
        if most <= len(best.taken):
            missed = []  # there is no larger set
    for some, stay in _tries(order, hopeful, missed):
        if len(some) <= len(best.taken):
            break
        found = attempt(some, stay, least=len(best.taken) + 1)
        if isinstance(found, _Attempt) and len(found.taken) > len(best.taken):
            best = found
    problem.back(start)
    if problem.take_all(best.taken):  # where a scale is 0, the order matters
        again = attempt(best.order, best.stay)
        assert isinstance(again, _Attempt)
        best = again
    else:
        best.missed.update({item: c for item in best.stay if (c := problem.conflict(item)) is not None})
        for item in best.missed:
            problem.leave(item)
    best.missed.update({item: c for item, c in alone.items() if item in best.missed and c is not None})
    return best


def _is_flat(problem: Problem, items: Sequence[Item]) -> bool:
    """Whether some scale is 0: then it matters which goes first."""
    return any(not problem.maps[call][0].all() for item in items for call in item.calls)


def _alone(problem: Problem, start: Mark, item: Item) -> Conflict | None:
    """What is in the way of an item if nothing else goes: then it cannot go in any set."""
    problem.back(start)
    return None if is_free(problem, item) else problem.take(item)


def _tries(
    order: Sequence[Item], hopeful: Sequence[Item], missed: Sequence[Item]
) -> Iterator[tuple[list[Item], list[Item]]]:
    """What more might go, and what is to stay then: of a few items every set, the larger ones first; else an
    order with one that did not fit in front.
    """
    if not missed:
        return
    if len(hopeful) <= _FEW:
        yield [*missed, *(item for item in order if item not in missed)], []
        for size in range(len(hopeful) - 1, 0, -1):
            for some in combinations(hopeful, size):
                yield [*some], [item for item in order if item not in some]
    else:
        for item in missed[: _TRIES // len(order)]:
            yield [item, *(other for other in order if other is not item)], []


def _attempt(problem: Problem, order: Sequence[Item], stay: Sequence[Item], check: bool) -> _Attempt | Item:
    """Let go what fits, one after the other; if there is one that can neither go nor stay, that one.

    Args:
        problem: the equations.
        order: what to let go.
        stay: what is to stay, before.
        check: whether to look at the sums each time.
    """
    missed = {item: Conflict(item.calls[0], Pin.SCALE, 0) for item in stay}
    for item in stay:
        if not problem.leave(item):
            return item
    taken: list[Item] = []
    at, many = 0, 1
    while at < len(order):
        mark = problem.mark()
        if many > 1:  # many at once, and more of them as long as they go
            some = order[at : at + many]
            if problem.take_all(some):
                problem.back(mark)
                many //= 2
            else:
                taken += some
                at += many
                many *= 2
            continue
        item = order[at]
        at += 1
        conflict = problem.take(item)
        if conflict is None and check and (unmet := problem.unmet()):
            problem.back(mark)
            conflict = Conflict(item.calls[0], unmet, 0)
        if conflict is None:
            taken.append(item)
            many = 1 if check else 2
        else:
            missed[item] = conflict
            if not problem.leave(item):
                return item
    return _Attempt(order, stay, taken, missed)
