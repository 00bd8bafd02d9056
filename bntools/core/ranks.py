"""The processes that recalibrate together, and how they speak to one another.

There is one way to speak, `Ranks.talk`: everybody says something, and hears what all have said. So whatever
ends one of them reaches the others at the next talk, wherever each of them is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bntools import errors
from bntools.errors import BntoolsError, CaptureError, UsageError, first_line, in_a_line

_ARRIVAL = timedelta(minutes=5)
_LONGEST = timedelta(hours=12)
"""How long one waits for the others: at first, where some may never come, and later, when they are at work.
One that dies is noticed at once."""


class Ranks:
    """Those that work together; by default this process alone.

    Args:
        rank: the number of this process, from 0.
        size: how many there are.
        group: of torch.distributed, over which they speak.

    Attributes:
        neighbours: how many of them are on this machine, and share its memory.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size = rank, size
        self._group, self._over = group, False
        self.neighbours = self.talk(socket.gethostname()).count(socket.gethostname()) if group else 1

    def talk(self, word: Any) -> list[Any]:
        """Say something, and hear what each has said, in the order of their numbers.

        Tensors have to be on the CPU.

        Raises:
            BntoolsError: what has ended another process, with its number.
        """
        if self.size == 1:
            return [word]
        said = self._gather((None, word))
        for rank, (error, _) in enumerate(said):
            if error is not None:
                self._over = True
                raise _elsewhere(rank, *error)
        return [each for _, each in said]

    def agree(self, about: str, word: Any) -> None:
        """Go on only if all say the same.

        Raises:
            UsageError: if somebody says something else.
        """
        said = self.talk(word)
        for rank, each in enumerate(said):
            if each != said[0]:
                self._over = True
                both = f"process 0 has {said[0]!s:.80}, process {rank} has {each!s:.80}"
                raise UsageError(
                    f"the processes differ in {about}: {both}",
                    todo="call it in the same way in each of them, on the same model",
                )

    def share(self, count: int | None) -> int | None:
        """How many of so many fall to this process."""
        return None if count is None else count // self.size + (self.rank < count % self.size)

    def desk(self, device: torch.device) -> torch.device:
        """Where tensors have to be that are talked about."""
        return device if self.size == 1 else torch.device("cpu")

    def close(self) -> None:
        """What happens from here on is no longer of the others' concern."""
        self.talk(None)
        self._over = True

    def leave(self, error: Exception) -> None:
        """Tell the others what has ended this process; they hear it at their next talk."""
        if self.size > 1 and not self._over:
            kind = type(error).__name__ if isinstance(error, BntoolsError) else ""
            message = error.message if isinstance(error, BntoolsError) else in_a_line(error)
            with suppress(BntoolsError):
                self._gather(((kind, message, getattr(error, "todo", "")), None))

    def _gather(self, word: Any) -> list[Any]:
        said: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(said, word, group=self._group)
        except RuntimeError as error:
            self._over = True
            raise CaptureError(
                f"process {self.rank} of {self.size}: another has gone: {first_line(error)}",
                todo="look at what it said",
            ) from error
        return said


def _elsewhere(rank: int, kind: str, message: str, todo: str) -> BntoolsError:
    made: type[BntoolsError] = getattr(errors, kind) if kind else CaptureError
    error = made(f"process {rank}: {message}", todo=todo)
    error.rank = rank
    return error


@contextmanager
def joined(together: bool) -> Iterator[Ranks]:
    """Inside this, the processes of torch.distributed work together; or this one alone, if it is not in use.

    Args:
        together: whether they should.

    Raises:
        UsageError: if some do not come.
        BntoolsError: what has ended another process.
    """
    in_use = together and dist.is_available() and dist.is_initialized()
    if not in_use or dist.get_world_size() == 1:
        yield Ranks()
        return
    _wait_for_all()
    group = dist.new_group(backend="gloo", timeout=_LONGEST)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), group)
    try:
        yield ranks
    except Exception as error:
        ranks.leave(error)
        raise
    finally:
        dist.destroy_process_group(group)


def _wait_for_all() -> None:
    try:
        group = dist.new_group(backend="gloo", timeout=_ARRIVAL)
        dist.barrier(group)
    except RuntimeError as error:
        raise UsageError(
            f"not all of the {dist.get_world_size()} processes recalibrate: {first_line(error)}",
            todo="call it in each of them, or give distributed=False",
        ) from error
    dist.destroy_process_group(group)
