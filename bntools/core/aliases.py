"""What two values hold of each other's memory once the BatchNorms between them have gone.

A BatchNorm returns memory of its own. Where it has gone, its output is its input: what writes into the one
then writes into the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from bntools.core.calls import Call, Value
from bntools.core.graph import BlockedError, Graph, seen_outside, where
from bntools.core.reasons import Reason
from bntools.core.sites import BatchNorm


def find_overwritten(graph: Graph, gone: Mapping[int, BatchNorm]) -> dict[int, BlockedError]:
    """BatchNorms behind which somebody writes into what somebody else still needs from in front of them.

    Args:
        graph: of the capture.
        gone: those that go, by the index of their call.

    Returns:
        by the index of the call.
    """
    group: dict[int, int] = {}

    def find(memory: int) -> int:
        while group.get(memory, memory) != memory:
            memory = group[memory]
        return memory

    for bn in gone.values():
        one, two = find(bn.call.args["input"].memory), find(bn.call.outputs[0].memory)
        group[one] = group[two] = two
    members: dict[int, set[int]] = defaultdict(set)
    for memory in group:
        members[find(memory)].add(memory)
    overwritten: dict[int, BlockedError] = {}
    for memories in members.values():
        written = [(w, m) for m in memories for w in graph.writers[m]]
        found = next((e for writer, m in written if (e := _needed(graph, writer, memories - {m}))), None)
        if found is not None:
            near = [i for i, bn in gone.items() if bn.call.outputs[0].memory in memories]
            overwritten[max(near)] = found
    return overwritten


def _needed(graph: Graph, writer: Call, memories: set[int]) -> BlockedError | None:
    """Who needs what stood in one of these memories before something was written into another of them."""
    for memory in sorted(memories):
        if graph.born.get(memory, -1) > writer.index:
            continue
        for who in graph.capture.outside.get(memory, ()):
            what = f"{where(writer)} would write into what is {seen_outside(who)}"
            return BlockedError(Reason.WRITTEN_IN_PLACE, what)
        if memory not in graph.born:
            return BlockedError(
                Reason.WRITTEN_IN_PLACE, f"{where(writer)} would write into what the model was given"
            )
        for reader in graph.readers[memory]:
            made = min(
                graph.made_at(r) for r in reader.reads() if isinstance(r, Value) and r.memory == memory
            )
            if made < writer.index < reader.index:
                what = f"{where(writer)} would write into what {where(reader)} still reads"
                return BlockedError(Reason.WRITTEN_IN_PLACE, what)
    return None
