"""The bound on how many go together: never too small, and small where it has to be."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import find, solve
from bntools.core.bound import bound
from bntools.core.problem import Item, Problem
from tests.season import season


class Readers(nn.Module):
    """What one convolution makes, read by several BatchNorms, each in front of another convolution."""

    def __init__(self, count: int, alike: bool, act: nn.Module) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 5, 1), act
        self.norms = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(count))
        self.convs = nn.ModuleList(nn.Conv2d(5, 2, 3, padding=1) for _ in range(count))
        season(self)
        if alike:
            for norm in self.norms[1:]:
                norm.load_state_dict(self.norms[0].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat(
            [conv(self.act(norm(x))) for norm, conv in zip(self.norms, self.convs, strict=True)], 1
        )


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid(), nn.Identity()])
@pytest.mark.parametrize(("alike", "goes"), [(False, 1), (True, 4)])
def test_readers_that_want_different_things_count_once(
    alike: bool, goes: int, act: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _found(Readers(4, alike, act).eval(), torch.randn(2, 3, 4, 4), monkeypatch)
    assert found == [(goes, goes)]


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_never_below_what_goes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    count = 3 + seed % 4
    net = Readers(count, False, [nn.ReLU(), nn.Sigmoid()][seed % 2])
    with torch.no_grad():
        for norm in net.norms:  # few different ones, so that some want the same
            norm.load_state_dict(net.norms[int(torch.randint(2, ()))].state_dict())
    ((most, largest),) = _found(net.eval(), torch.randn(2, 3, 4, 4), monkeypatch)
    assert most == largest


def _found(net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For the BatchNorms of a network, the bound and the size of the largest set of them that goes."""
    seen: list[tuple[int, int]] = []

    def choose(problem: Problem, items: list[Item]) -> object:
        start = problem.mark()
        able = []
        for item in items:
            if problem.take(item) is None:
                able.append(item)
            problem.back(start)
        sizes = [0]
        for size in range(1, len(able) + 1):
            for some in itertools.combinations(able, size):
                if all(problem.take(item) is None for item in some):
                    sizes.append(size)
                problem.back(start)
        seen.append((bound(problem, able), max(sizes)))
        return solve.choose(problem, items)

    monkeypatch.setattr(find, "choose", choose)
    plan = bn.find_folds(bn.capture(net, bn.Example((x,))))
    assert len(plan.edits) == seen[0][1]
    return seen[:1]
