"""Several processes with one command line, as ``torchrun -m bntools …`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Share(NamedTuple):
    """Which of the processes this is, from 0, and how many there are."""

    rank: int = 0
    size: int = 1


def share() -> Share:
    """What the environment says; one process alone where it says nothing."""
    given = [os.environ.get(name, "") for name in _NEEDED]
    if all(given) and given[0].isdecimal() and given[1].isdecimal():
        return Share(int(given[0]), int(given[1]))
    return Share()


@contextmanager
def together(own: Share) -> Iterator[None]:
    """Inside this, torch.distributed is in use, if there are several processes."""
    if own.size == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
