"""Forwards that wait for one another at every BatchNorm.

Each forward is a greenlet: a stack of its own that can stop in the middle of a model's code, and go on. All
run until they stand at a BatchNorm or are done. Then those that stand at the same one are looked at together,
and go on; and so on until all are done. Only one runs at a time, all in one thread: with a thread each, each
would have a pool of OpenMP workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from bntools.core.ranks import Ranks
from bntools.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Stop:
    """One call of a BatchNorm in a forward.

    Args:
        path: of the module.
        call: which of its calls in that forward, from 1.
    """

    path: str
    call: int


Meet = Callable[[Stop, Sequence[tuple[int, Tensor]]], None]
"""Told of a stop, and the number of each forward that stands there with what it brings: nobody, if only in
other processes somebody does."""
_Step = tuple[Stop | None, Stop]


class Lockstep:
    """Runs forwards in lock-step.

    Forwards that take different ways through the model meet where they can: of several stops with somebody
    waiting, the one that comes first goes on first. What comes first is learned on the way, and where nothing
    is known yet it is the order in which the model registers its modules.

    Args:
        norms: the modules to stop at, each with a path; forwards of several models meet at the modules of one
            path.
        meet: called at each stop; what it writes into the BatchNorm's statistics normalises all that wait.
        ranks: the processes whose forwards meet: all come to the same stops in the same order.
    """

    def __init__(self, norms: Sequence[tuple[str, nn.Module]], meet: Meet, ranks: Ranks) -> None:
        self._norms, self._meet, self._ranks = norms, meet, ranks
        self._order: list[Stop] = []
        self._rank = {path: at for at, path in enumerate(dict(norms))}

    @property
    def order(self) -> tuple[Stop, ...]:
        """The stops that were reached, in order of execution."""
        return tuple(self._order)

    def run(self, forwards: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run some forwards to their end.

        Returns:
            what each of them returned.

        Raises:
            Exception: the first that a forward raises; the others are ended where they stand.
        """
        hooks = [
            norm.register_forward_pre_hook(partial(self._stop, path), with_kwargs=True)
            for path, norm in self._norms
        ]
        runners = [_Runner(number, forward) for number, forward in enumerate(forwards)]
        try:
            waiting: dict[Stop, list[_Runner]] = {}
            steps = self._wait(waiting, runners)
            while stop := self._first(waiting, steps):
                there = waiting.pop(stop, [])
                self._meet(stop, [(runner.number, runner.brings) for runner in there])
                steps = self._wait(waiting, there)
        finally:
            for runner in runners:
                with suppress(Exception):  # what led here is the error to show
                    runner.end()
            for hook in hooks:
                hook.remove()
        return [runner.result for runner in runners]

    def _wait(self, waiting: dict[Stop, list[_Runner]], runners: Sequence[_Runner]) -> list[_Step]:
        """Let each run up to its next stop; returns which new stop came behind which."""
        steps: dict[Stop, _Step] = {}
        for runner in runners:
            before = runner.stop
            if runner.go_on():
                assert runner.stop is not None
                if runner.stop not in self._order:
                    steps.setdefault(runner.stop, (before, runner.stop))
                waiting.setdefault(runner.stop, []).append(runner)
        for there in waiting.values():
            there.sort(key=lambda runner: runner.number)
        return [*steps.values()]

    def _first(self, waiting: Iterable[Stop], steps: Iterable[_Step]) -> Stop | None:
        """The stop that comes first of those where somebody waits, in any process; None if nobody does."""
        said = self._ranks.talk(([*waiting], steps))
        for _, learned in said:
            for step in learned:
                self._learn(*step)
        stops = {stop for theirs, _ in said for stop in theirs}
        return min(stops, key=self._order.index, default=None)

    def learn(self, order: Sequence[Stop]) -> None:
        """Take over the order of the stops of one forward, as somebody else has found it."""
        for before, stop in zip((None, *order), order, strict=False):
            self._learn(before, stop)

    def _learn(self, before: Stop | None, stop: Stop) -> None:
        if stop in self._order:
            return
        if before is not None:
            at = self._order.index(before) + 1
        else:  # nothing is known about it but the model's own order
            later = (i for i, s in enumerate(self._order) if self._rank[s.path] >= self._rank[stop.path])
            at = next(later, len(self._order))
        self._order.insert(at, stop)

    def _stop(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner = getcurrent()
        if not isinstance(runner, _Runner):
            raise CaptureError(
                f"{path}: it is called in another thread than the forward",
                todo="let one thread run the model",
            )
        runner.wait(path, next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None))


class _Runner(greenlet):  # type: ignore[misc]
    """One forward."""

    def __init__(self, number: int, forward: Callable[[], Any]) -> None:
        super().__init__(self._forward)
        self.number = number
        self.result: Any = None
        self.stop: Stop | None = None
        self.brings: Any = None
        self._call = forward
        self._calls: dict[str, int] = {}
        self._state = _State()
        self._hub: Any = None

    def _forward(self) -> None:
        self.result = self._call()

    def go_on(self) -> bool:
        """Run up to the next stop; False if there is none."""
        self.brings = None
        self._hub = self.parent = getcurrent()
        self._enter(self.switch)
        return not self.dead

    def end(self) -> None:
        """End it where it stands, with its ``finally`` and ``with`` blocks carried out."""
        if self and not self.dead:
            self._enter(partial(self.throw, GreenletExit))

    def _enter(self, how: Callable[[], Any]) -> None:
        """Go over to it, with what torch keeps for a thread as it left that."""
        ours = _State()
        self._state.restore()
        try:
            how()
        finally:
            self._state = _State()
            ours.restore()

    def wait(self, path: str, x: Tensor | None) -> None:
        """Stand at a stop until everybody who comes there is there."""
        self._calls[path] = self._calls.get(path, 0) + 1
        if x is None:
            raise CaptureError(
                f"{path}: it is called without a tensor", todo=f"leave it out: only=['!{path}']"
            )
        if self._state.modes != _modes():
            raise CaptureError(
                f"{path}: it is called inside a mode that the forward entered",
                todo="enter torch.device and other modes around the call",
            )
        self.stop, self.brings = Stop(path, self._calls[path]), x
        self._hub.switch()


def _modes() -> tuple[int, int]:
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


class _State:
    """What torch keeps for each thread, and a forward may change in a ``with`` block that it stops in."""

    def __init__(self) -> None:
        self.modes = _modes()
        self._grad = torch.is_grad_enabled()
        self._autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        }
        self._cache = torch.is_autocast_cache_enabled()

    def restore(self) -> None:
        torch.set_grad_enabled(self._grad)
        for kind, (enabled, dtype) in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self._cache)
