"""What must not grow, on any machine: forwards, copies, passes over the data, nodes, imports.

The times are in ``docs/benchmarks.md``. Here is what they are made of, as limits that any machine can check.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bntools as bn
import tests.torchvision_ops  # noqa: F401, before torchvision
from tests.season import season

BATCH = 4


class Counted(nn.Module):
    """Some blocks of convolution, BatchNorm and ReLU, that count what is done to them and to their copies."""

    counts: Counter[str]

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(8 if n else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
                for n in range(blocks)
            )
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        counts = type(self).counts
        counts["forwards"] += 1
        counts["inside"] += 1
        counts["most inside"] = max(counts["most inside"], counts["inside"])
        try:
            return self.head(self.blocks(x).mean((2, 3)))
        finally:
            counts["inside"] -= 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        type(self).counts["copies"] += 1
        return super().__reduce_ex__(protocol)


class Reads(TorchDispatchMode):
    """Counts the numbers that leave a tensor: on a GPU each waits for all that was asked for before."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Loader:
    """Batches that count how often each is read."""

    def __init__(self, batches: int) -> None:
        self.batches, self.read = batches, Counter[int]()

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.batches):
            self.read[number] += 1
            yield inputs(number)


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def counted(blocks: int, run: Callable[[nn.Module], Any]) -> Counter[str]:
    Counted.counts = Counter()
    model = season(Counted(blocks).eval(), example=inputs())
    Counted.counts = counts = Counter()
    run(model)
    return counts


@pytest.mark.parametrize(
    ("run", "forwards", "copies"),
    [
        pytest.param(lambda net: bn.capture(net, bn.Example((inputs(),))), 1, 0, id="capture"),
        pytest.param(lambda net: bn.inspect(net, inputs()), 1, 0, id="inspect"),
        pytest.param(lambda net: bn.fold(net, inputs(), verify=False), 1, 1, id="fold without proof"),
        pytest.param(lambda net: bn.fold(net, inputs()), 14, 3, id="fold"),
        pytest.param(lambda net: bn.freeze(net), 0, 1, id="freeze"),
        pytest.param(lambda net: bn.swap(net, groups=2, inputs=inputs()), 3, 1, id="swap"),
    ],
)
def test_forwards_and_copies_are_few_at_any_depth(
    run: Callable[[nn.Module], Any], forwards: int, copies: int
) -> None:
    """A proof runs the model, the result, and the model without its BatchNorms, in float64 too."""
    shallow, deep = counted(2, run), counted(9, run)
    assert deep["forwards"] == shallow["forwards"] <= forwards
    assert deep["copies"] == shallow["copies"] <= copies
    assert [deep["forwards"] > 0, deep["copies"] > 0] == [forwards > 0, copies > 0]  # or nothing is counted


DATA: dict[str, tuple[Callable[[nn.Module, Loader], Any], int, int]] = {
    "recalibrate": (lambda net, data: bn.recalibrate(net, data, virtual_batch="all"), 1, 2),
    "recalibrate in groups": (
        lambda net, data: bn.recalibrate(net, data, virtual_batch=2 * BATCH, stop=False),
        1,
        2,
    ),
    "recalibrate by ema": (lambda net, data: bn.recalibrate(net, data, method="ema"), 1, 2),
    "inspect": (lambda net, data: bn.inspect(net, inputs(), data=data), 2, 4),
    "swap": (lambda net, data: bn.swap(net, groups=2, inputs=inputs(), data=data), 2, 5),
}
"""What each does with data, and how many forwards it may take of each batch, and beyond."""


@pytest.mark.parametrize("name", DATA)
def test_data_is_read_once_and_a_batch_runs_once(name: str) -> None:
    run, forwards, beyond = DATA[name]
    few, many = Loader(3), Loader(9)
    start, end = (counted(3, lambda net, data=data: run(net, data)) for data in (few, many))
    assert many.read == Counter(range(9))
    assert start["forwards"] <= forwards * 3 + beyond
    assert end["forwards"] <= forwards * 9 + beyond
    assert start["copies"] == end["copies"]


@pytest.mark.parametrize(("virtual", "most"), [(BATCH, 1), (2 * BATCH, 2), (3 * BATCH, 3), ("all", 7)])
def test_no_more_forwards_wait_than_the_virtual_batch_holds(virtual: Any, most: int) -> None:
    """What they hold is the memory that recalibrating takes."""
    counts = counted(3, lambda net: bn.recalibrate(net, Loader(7), virtual_batch=virtual, stop=False))
    assert counts["most inside"] == most


def test_batches_add_no_reads_at_the_stops() -> None:
    """A batch is looked at once for NaN, at any depth; what stands at a stop is looked at together."""

    def reads(blocks: int, batches: int) -> int:
        with Reads() as mode:
            counted(blocks, lambda net: bn.recalibrate(net, Loader(batches), virtual_batch="all"))
        with Reads() as alone:
            counted(blocks, lambda net: None)
        return mode.count - alone.count

    assert 0 < reads(2, 8) - reads(2, 2) <= 6
    assert reads(7, 8) - reads(7, 2) <= 6
    assert reads(7, 2) - reads(2, 2) <= 5 * 10


def residual() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18()


def dense() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16)


@pytest.mark.parametrize(
    ("make", "folded", "sites"),
    [
        pytest.param(residual, 20, 20, id="1, 2 in each of 8 blocks, 3 of shortcuts"),
        pytest.param(dense, 7, 13, id="1, 1 in each of 5 layers, 1 behind the transition"),
    ],
)
def test_nodes_that_go_are_the_batchnorms_that_fold(
    make: Callable[[], nn.Module], folded: int, sites: int
) -> None:
    """And not one operator comes."""
    x = torch.randn(1, 3, 64, 64)
    model = season(make().eval(), example=x)
    surgery = bn.fold(model, x, verify=False)
    before, after = operators(model, x), operators(surgery.model, x)
    assert (len(surgery.plan.edits), len(surgery.plan.sites)) == (folded, sites)
    assert before - after == Counter({"aten.batch_norm.default": folded})
    assert after - before == Counter()


def operators(model: nn.Module, x: Tensor) -> Counter[str]:
    nodes = torch.export.export(model, (x,), strict=False).graph.nodes
    return Counter(str(node.target) for node in nodes if node.op == "call_function")


def test_help_imports_no_package_that_typers_own_help_does_not() -> None:
    least = "import typer; app = typer.Typer(); app.command()(print); app(['--help'], standalone_mode=False)"
    ours = "from bntools.__main__ import main; main(['--help'])"
    assert imported(ours) - imported(least) <= {"bntools", *sys.stdlib_module_names}


def test_help_imports_the_face_and_nothing_behind_it() -> None:
    """A file of the command line is read for what it can be told, and imports a verb when it is called."""
    names = modules("from bntools.__main__ import main; main(['--help'])")
    assert "bntools.cli.app" in names
    behind = ("bntools.core", "bntools.verbs", "bntools.norms", "bntools.findings", "bntools.report")
    assert [name for name in names if name.startswith(behind)] == []


def imported(code: str) -> set[str]:
    return {name.partition(".")[0] for name in modules(code)}


def modules(code: str) -> set[str]:
    said = "print(*set(sys.modules) - before, file=sys.stderr)"
    script = f"import sys; before = set(sys.modules)\n{code}\n{said}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stderr.splitlines()[-1].split())
