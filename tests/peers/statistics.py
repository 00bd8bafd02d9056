"""How far the statistics that each tool finds are from those of one batch of all the data.

``python -m tests.peers.statistics``, in the environment that `make peers` makes. Each tool is used as its
documentation says: ``update_bn`` puts the whole model into training mode, fvcore asks for that of the
BatchNorms. It fails if bntools is not exact.
"""

from __future__ import annotations

import copy
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import bntools as bn
from tests.season import season
from tests.verbs.test_recalibrate import apart, whole_batch
from tests.zoo import build

SIZES = 1, 3, 8, 64
EXACT = 1e-9
HEAD = """\
The largest difference, of a mean in units of σ and of a variance as a share of it, from the statistics of one
training-mode batch of all the data, found in float64. The tools work in float64 too, but for the last row of
each model: in float32 the forwards differ by their rounding. The columns are sizes of batches, in a shuffled
order. torch {torch}, fvcore {fvcore}.

| model | tool | {columns} |
|---|---|{rule}
"""

Batches = Sequence[Tensor]
Tool = Callable[[nn.Module, Batches], nn.Module]


def by_bntools(model: nn.Module, data: Batches) -> nn.Module:
    return bn.recalibrate(model, data, virtual_batch="all", max_samples=None).model


def by_update_bn(model: nn.Module, data: Batches) -> nn.Module:
    update_bn(data, model)
    return model


def by_fvcore(model: nn.Module, data: Batches) -> nn.Module:
    from fvcore.nn.precise_bn import update_bn_stats

    for module in model.modules():
        module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
    update_bn_stats(model, data, num_iters=len(data))
    return model


TOOLS: dict[str, tuple[Tool, torch.dtype]] = {
    "bntools": (by_bntools, torch.float64),
    "torch `update_bn`": (by_update_bn, torch.float64),
    "fvcore `update_bn_stats`": (by_fvcore, torch.float64),
    "bntools, float32": (by_bntools, torch.float32),
}


def mlp() -> tuple[nn.Module, Tensor]:
    layers = nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32)
    return season(nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 10))), torch.randn(512, 20)


def trained() -> tuple[nn.Module, Tensor]:
    sys.path.append(str(Path(__file__).parents[2] / "examples"))  # they are scripts, no package
    from nets import ResidualNet
    from training import digits, fit

    images, _, labels, _ = digits()
    model = ResidualNet()
    fit(model, images, labels, epochs=6)
    return model, images


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet18": lambda: (build("torchvision:resnet18")[0], torch.randn(128, 3, 64, 64)),
    "efficientnet_b0": lambda: (build("torchvision:efficientnet_b0")[0], torch.randn(128, 3, 64, 64)),
    "a perceptron with BatchNorm1d": mlp,
    "a small network trained on digits": trained,
}


def distance(tool: Tool, model: nn.Module, data: Batches, exact: nn.Module) -> float | str:
    """How far what the tool makes of a copy is from what is exact, or why it makes nothing."""
    torch.manual_seed(0)  # of dropout
    try:
        return apart(tool(copy.deepcopy(model), data), exact)
    except Exception as error:
        return f"error: {textwrap.shorten(str(error), 42, placeholder='…')}"


def main() -> None:
    columns, rule = " | ".join(map(str, SIZES)), "---:|" * len(SIZES)
    versions = {name: metadata.version(name) for name in ("torch", "fvcore")}
    sys.stdout.write(HEAD.format(columns=columns, rule=rule, **versions))
    for name, made in MODELS.items():
        torch.manual_seed(0)
        model, data = made()
        data = data[torch.randperm(len(data))]
        exact = whole_batch(copy.deepcopy(model).double(), data.double())
        for title, (tool, dtype) in TOOLS.items():
            model, data = model.to(dtype), data.to(dtype)
            found = [distance(tool, model, data.split(size), exact) for size in SIZES]
            cells = (each if isinstance(each, str) else f"{each:.1e}" for each in found)
            sys.stdout.write(f"| {name} | {title} | {' | '.join(cells)} |\n")
            sys.stdout.flush()
            if title == "bntools":
                assert all(isinstance(each, float) and each <= EXACT for each in found), found


if __name__ == "__main__":
    main()
