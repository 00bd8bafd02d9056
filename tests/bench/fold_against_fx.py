"""Fold against ``torch.fx.experimental.optimization.fuse``: sites, time, latency and memory, in one run.

Run by ``make bench``. Times are medians of interleaved runs, so that a busy machine slows both sides alike;
memory is the high-water mark of a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bntools as bn
import tests.torchvision_ops  # noqa: F401, before torchvision
from bntools.core.atomic import replacing
from bntools.core.latency import measure
from tests.season import season

MODELS = ("resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "densenet121")
ROUNDS = 7
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


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(name: str) -> dict[str, Any]:
    from torch.fx.experimental.optimization import fuse

    model, example = build(name)
    ways: dict[str, Callable[[], Any]] = {
        "fx": lambda: fuse(model),
        "ours": lambda: bn.fold(model, example, verify=False),
        "proven": lambda: bn.fold(model, example),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS + 1):
        for way, call in ways.items():
            seconds = timed(call)
            if turn:  # the first is to warm up
                times[way].append(seconds)
    surgery = bn.fold(model, example)
    latency = measure(model, surgery.model, bn.Example((example,)), runs=20)
    sites = len(surgery.plan.sites)
    return {
        "model": name,
        "sites": sites,
        "fx": sites - remaining(fuse(model)),
        "ours": len(surgery.plan.edits),
        **{f"{way}_s": statistics.median(t) for way, t in times.items()},
        "before_ms": latency.before,
        "after_ms": latency.after,
        "error": surgery.report.error,
        "memory": peak(name, "fold"),
        "memory_proven": peak(name, "proven"),
        "memory_fx": peak(name, "fx"),
    }


def peak(name: str, way: str) -> float:
    """The high-water mark above model, copy and one forward, as a share of the model's weights."""
    command = [sys.executable, "-m", "tests.bench.fold_against_fx", "--peak", name, way]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.strip().splitlines()[-1])


def measure_peak(name: str, way: str) -> float:
    from torch.fx.experimental.optimization import fuse

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


def table(rows: list[dict[str, Any]]) -> str:
    head = "| model | sites | fx | bntools | fx s | bntools s | ratio | proven s | before ms | after ms "
    head += "| memory fx | memory | proven |"
    lines = [head, "|---|" + "---:|" * 12]
    for r in rows:
        cells = [r["model"], r["sites"], r["fx"], r["ours"], f"{r['fx_s']:.3f}", f"{r['ours_s']:.3f}"]
        cells += [f"{r['ours_s'] / r['fx_s']:.2f}", f"{r['proven_s']:.2f}"]
        cells += [f"{r['before_ms']:.1f}", f"{r['after_ms']:.1f}"]
        cells += [f"{r[key]:.2f}" for key in ("memory_fx", "memory", "memory_proven")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    rows = [row(name) for name in MODELS]
    runs = f"medians of {ROUNDS} interleaved runs"
    print(f"torch {torch.__version__}, {THREADS} threads, batch of 1 at 224x224, {runs}.")
    print("Sites folded; seconds from model to folded model; milliseconds of a forward;")
    print("peak memory in units of the model's weights, above the model and its copy.\n")
    print(table(rows))
    print(f"\nworst error of a proof: {max(r['error'] for r in rows):.1e} of the scale, in float64")
    if len(sys.argv) > 1:
        with replacing(Path(sys.argv[1]), force=True) as part:
            part.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--peak"]:
        print(measure_peak(*sys.argv[2:4]))
    else:
        main()
