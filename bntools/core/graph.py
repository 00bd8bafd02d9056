"""A capture as a graph: who makes, reads and writes what."""

from __future__ import annotations

from collections import defaultdict

from bntools.core.affine import HOSTS
from bntools.core.calls import Call, Capture, Stored, Value
from bntools.core.reasons import Reason


class BlockedError(Exception):
    """A site cannot be folded: what a rule found on the way back from it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail


class Graph:
    """The calls of a capture by what they make, read and write.

    Args:
        capture: one run of a model.

    Attributes:
        made: the call that made a value, by the value's id.
        stored: the memories of parameters and buffers.
        born: the index of the first call that made something in a memory; not what the model was given or
        holds.
        hosts: the calls of operators in `HOSTS`, by the module that made them.
        readers, writers: the calls that read or wrote a memory, in order.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.made: dict[int, Call] = {v.id: c for c in capture.calls for v in c.outputs}
        self.hosts: dict[str, list[Call]] = defaultdict(list)
        self.stored = {t.memory for call in capture.calls for t in call.reads() if isinstance(t, Stored)}
        self.readers: dict[int, list[Call]] = defaultdict(list)
        self.writers: dict[int, list[Call]] = defaultdict(list)
        for call in capture.calls:
            if call.op in HOSTS:
                self.hosts[call.owner].append(call)
            for memory in {t.memory for t in call.reads()}:
                self.readers[memory].append(call)
            for memory in call.writes:
                self.writers[memory].append(call)
        self.born: dict[int, int] = {}
        for call in capture.calls:
            for value in call.outputs:
                if value.memory not in self.stored:
                    self.born.setdefault(value.memory, call.index)
        self._first = {path: first for first, facts in capture.facts.items() for path in facts.paths}

    def owners(self, tensor: Stored) -> set[str]:
        """The modules that hold a tensor, each by its first path."""
        paths = (key.rpartition(".")[0] for key in tensor.keys)
        return {self._first.get(path, path) for path in paths}

    def made_at(self, value: object) -> int:
        """The index of the call that made a value; -1 for what no call made."""
        call = self.made.get(value.id) if isinstance(value, Value) else None
        return call.index if call is not None else -1

    def readers_of(self, value: Value) -> list[Call]:
        """The calls that read a value itself, and not another one in its memory."""
        return [call for call in self.readers[value.memory] if any(read is value for read in call.reads())]


def seen_outside(who: str) -> str:
    """What becomes of a value, by who sees it besides the calls: see `bntools.core.calls.Capture`."""
    return {"output": "returned", "kept": "kept by the model or its caller"}.get(who, f"seen by {who}")


def where(call: Call) -> str:
    """A call in words: its operator and the module that ran it."""
    return f"{call.op} in {call.owner}" if call.owner else call.op
