"""Fold against ``torch.fx.experimental.optimization.fuse``: sites, time, latency and memory, in one run.

``python -m tests.bench.fold_against_fx [NAME …]``. Memory is the high-water mark of a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import bntools as bn
import tests.torchvision_ops  # noqa: F401, before torchvision
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import spreads
from tests.season import season

MODELS = ("resnet18", "resnet50", "mobilenet_v3_large", "densenet121")
TURNS, CALLS = 5, 20
THREADS = 2


def build(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision.models import get_model

    torch.manual_seed(0)
    example = torch.randn(1, 3, 224, 224)
    return season(get_model(name, weights=None).eval(), example=example), example


def remaining(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def weights(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def row(name: str) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    """A line of each table, and the error of the proof."""
    from torch.fx.experimental.optimization import fuse

    model, example = build(begun(name))
    ways = [partial(fuse, model), partial(bn.fold, model, example, verify=False)]
    theirs, ours, proven = spreads([*ways, partial(bn.fold, model, example)], TURNS, warm=1)
    surgery, fused = bn.fold(model, example), fuse(model)
    with torch.no_grad():
        calls = [partial(each, example) for each in (model, fused, surgery.model)]
        before, other, after = spreads(calls, CALLS, warm=3)
    sites = len(surgery.plan.sites)
    times = (
        name, f"{sites}", f"{sites - remaining(fused)}", f"{len(surgery.plan.edits)}",
        f"{theirs:.0f}", f"{ours:.0f}", f"{ours.to(theirs):.2f}", f"{proven:.0f}", f"{proven.to(theirs):.1f}",
    )  # fmt: skip
    runs = (name, f"{before:.1f}", f"{other:.1f}", f"{after:.1f}", f"{after.to(before):.2f}")
    memory = [f"{peak(name, way):.2f}" for way in ("fx", "fold", "proven")]
    return times, (*runs, f"{after.to(other):.2f}", *memory), surgery.report.error


def peak(name: str, way: str) -> float:
    """The high-water mark above model, copy and one forward, as a share of the model's weights."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.fold_against_fx", "--peak", name, way]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.strip().splitlines()[-1])


def measure_peak(name: str, way: str) -> float:
    from torch.fx.experimental.optimization import fuse

    torch.set_num_threads(THREADS)
    model, example = build(name)
    small = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    bn.fold(small, torch.randn(1, 3, 8, 8))  # so that what is imported on the way is not counted
    with torch.no_grad():
        model(example)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    result = fuse(model) if way == "fx" else bn.fold(model, example, verify=way == "proven")
    assert result is not None
    return (_status("VmHWM") - before) / weights(model) - 1  # the copy is not counted


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    rows = [row(name) for name in names or MODELS]
    worst = max(error for *_, error in rows)
    return Result(
        "`bn.fold` against `torch.fx.experimental.optimization.fuse`. Claim: it folds what fx folds or "
        "more, and the result is as fast. It takes longer: fx runs no forward and proves nothing.",
        (
            Table(
                "BatchNorms folded, and the time from a model to a folded model, without and with the "
                f"proof; a batch of 1 at 224×224, {TURNS} turns.",
                (
                    "model", "BatchNorms", "fx folds", "bntools folds", "fx, ms", "bntools, ms", "to fx",
                    "with proof, ms", "to fx",
                ),
                tuple(times for times, _, _ in rows),
            ),
            Table(
                f"A forward of the model and of both results in eager mode ({CALLS} turns), and the peak "
                "of the memory while it is folded, in units of the model's weights, above the model and "
                "its copy.",
                (
                    "model", "forward before, ms", "after fx, ms", "after bntools, ms", "to before", "to fx",
                    "memory: fx", "bntools", "with proof",
                ),
                tuple(runs for _, runs, _ in rows),
            ),
        ),
        "other batch sizes and layouts; `torch.compile`; AIMET, torchao and mmcv, which need other "
        "environments.",
        THREADS,
        notes=(f"The worst error of a proof is {worst:.1e} of the scale, in float64.",),
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(measure_peak(*sys.argv[2:4]))
    else:
        sys.exit(main(bench))
