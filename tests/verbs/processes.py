"""What three processes of torch.distributed do together, for `test_distributed.py`: ``main`` is one of them.

All scenarios run in one after the other in the same processes, since starting those takes seconds.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bntools as bn
from bntools.core import ranks
from tests.season import season

SIZE = 3


class Ways(nn.Module):
    """Two branches that the batch decides between, with a BatchNorm before, in each, and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.tail, self.head = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.a, self.b, self.unreached = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, v: Tensor) -> Tensor:
        side = self.a if v[0, 0] > 0 else self.b
        return self.tail(side(self.head(v)) ** 2)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5)]
    return season(nn.Sequential(*layers, nn.Flatten(), nn.Linear(45, 3))).double()


def shares(uneven: bool = True) -> list[list[Tensor]]:
    """The data of each process; with *uneven*, batches of many sizes, and the last process has none."""
    x = torch.randn(31, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double() * 2 + 1
    if uneven:
        return [[*x[:17].split([4, 1, 5, 7])], [*x[17:].split([12, 2])], []]
    return [[*x[at : at + 10].split(4)] for at in (0, 10, 20)]


def ways() -> list[list[Tensor]]:
    """The first process only takes one way, the second the other, the third both."""
    drawn = [torch.randn(6, 3, generator=torch.Generator().manual_seed(k)).double() for k in range(6)]
    for at, x in enumerate(drawn):
        x[0, 0] = 1.0 if at in (0, 1, 4) else -1.0
    return [drawn[:2], drawn[2:4], drawn[4:]]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def uneven(rank: int) -> Any:
    surgery = bn.recalibrate(net(), shares()[rank], virtual_batch="all")
    return state(surgery.model), surgery.report


def groups(rank: int) -> Any:
    surgery = bn.recalibrate(net(), shares(uneven=False)[rank], virtual_batch=12, stop=False)
    return state(surgery.model), surgery.report


def limited(rank: int) -> Any:
    return bn.recalibrate(net(), shares(uneven=False)[rank], max_samples=7).report.samples


def branches(rank: int) -> Any:
    return state(bn.recalibrate(Ways().double(), ways()[rank], virtual_batch="all").model)


def moving(rank: int) -> Any:
    return state(bn.recalibrate(net(), shares(uneven=False)[rank], method="ema").model)


def wrapped(rank: int) -> Any:
    model = DistributedDataParallel(net())
    model.module[1].running_mean += rank  # as it is after training: each process has its own
    surgery = bn.recalibrate(model, shares()[rank], virtual_batch="all", prior=5, inplace=True)
    assert surgery.model is model
    return state(model.module), surgery.report


def alone(rank: int) -> Any:
    if rank == 1:
        return state(bn.recalibrate(net(), shares()[rank], distributed=False, virtual_batch="all").model)
    return None


def failing(change: Callable[[int, list[Tensor]], Any], **options: Any) -> Callable[[int], Any]:
    """A run that must end with an error in all processes, and leave their models as they are."""

    def scenario(rank: int) -> Any:
        model = net()
        before = state(model)
        try:
            bn.recalibrate(model, change(rank, shares(uneven=False)[rank]), inplace=True, **options)
        except bn.BntoolsError as error:
            same = all(torch.equal(value, before[key]) for key, value in state(model).items())
            return type(error).__name__, error.message, same
        return "no error"

    return scenario


def broken(rank: int, batches: list[Tensor]) -> list[Tensor]:
    return [*batches[:1], batches[1] * float("nan"), *batches[2:]] if rank == 1 else batches


def misshapen(rank: int, batches: list[Tensor]) -> list[Tensor]:
    return [*batches[:2], batches[2][:, :2]] if rank == 2 else batches


def overflowing(rank: int, batches: list[Tensor]) -> list[Tensor]:
    return [batch * 1e300 for batch in batches] if rank == 0 else batches


def loader_of_one_fails(rank: int, batches: list[Tensor]) -> Any:
    def loader() -> Any:
        yield batches[0]
        if rank == 1:
            raise OSError("the disk is gone")
        yield from batches[1:]

    return loader()


def other_model(rank: int) -> Any:
    model = net() if rank else nn.Sequential(*net()[:5])
    try:
        bn.recalibrate(model, shares(uneven=False)[rank])
    except bn.BntoolsError as error:
        return error.message
    return "no error"


def other_weights(rank: int) -> Any:
    model = net()
    if rank == 2:
        model[0].weight.data += 0.1
    try:
        bn.recalibrate(model, shares(uneven=False)[rank])
    except bn.BntoolsError as error:
        return error.message
    return "no error"


def dying(rank: int) -> Any:
    """One ends without a word while the others wait for it."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        if rank == 1:
            os._exit(7)
        return model(x)

    start = time.monotonic()
    try:
        bn.recalibrate(net(), shares(uneven=False)[rank], forward=forward)
    except bn.BntoolsError as error:
        return error.message, time.monotonic() - start
    return "no error"


def nobody_else(rank: int) -> Any:
    """Only the first calls it."""
    if rank == 0:
        ranks._ARRIVAL = type(ranks._ARRIVAL)(seconds=2)
        try:
            bn.recalibrate(net(), shares()[0])
        except bn.BntoolsError as error:
            return error.message
    return None


SCENARIOS: dict[str, Callable[[int], Any]] = {
    "uneven": uneven,
    "groups": groups,
    "limited": limited,
    "branches": branches,
    "moving": moving,
    "wrapped": wrapped,
    "alone": alone,
    "broken": failing(broken),
    "misshapen": failing(misshapen),
    "overflowing": failing(overflowing),
    "loader": failing(loader_of_one_fails),
    "empty": failing(lambda rank, batches: []),
    "option": failing(lambda rank, batches: batches, prior=-1.0),
    "other model": other_model,
    "other weights": other_weights,
    "nobody else": nobody_else,
    "dying": dying,  # the last: one is missing afterwards
}


def main(rank: int, folder: Path) -> None:
    """Run all scenarios as one of the processes, and write what came out of each."""
    torch.set_num_threads(1)
    init = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=SIZE)
    for name, scenario in SCENARIOS.items():
        outcome = scenario(rank)
        torch.save(copy.deepcopy(outcome), folder / f"{name} {rank}.pt")
        if name == "nobody else":  # their counts of groups differ now: meet anew
            dist.destroy_process_group()
            init = f"file://{folder / 'second meeting'}"
            dist.init_process_group("gloo", init_method=init, rank=rank, world_size=SIZE)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # some of its groups have lost a member, which would be waited for
