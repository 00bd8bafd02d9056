"""What `recalibrate` takes: memory by the size of the virtual batch, time by the number of processes.

``python -m tests.bench.recalibrate_scale``; each run is a process, or several, of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import bntools as bn
from tests.zoo import build

NAME = "torchvision:resnet18"
SIDE = 128
BATCH = 8
SAMPLES = 256
VIRTUAL = (8, 32, 64, 128, "all")
PROCESSES = (1, 2, 4)


def batches(rank: int = 0, size: int = 1) -> Iterator[Tensor]:
    """Made when they are asked for, so that what is held is what recalibrating holds."""
    for number in range(rank, SAMPLES // BATCH, size):
        yield torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))


def memory(virtual: str) -> None:
    """How much the peak of this process grows, in MB, and in how many seconds."""
    model, _ = build(NAME)
    bn.recalibrate(model, [next(batches())], inplace=True)  # what torch sets up once is not counted
    size: Any = virtual if virtual == "all" else int(virtual)
    before, start = _peak(), time.perf_counter()
    bn.recalibrate(model, batches(), virtual_batch=size, stop=False, inplace=True)
    print(f"{_peak() - before:.0f} {time.perf_counter() - start:.1f}")


def member(rank: str, size: str, folder: str) -> None:
    """One of some processes with a thread each: the seconds of the slowest, and a sum of the statistics."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=int(size))
    model, _ = build(NAME)
    bn.recalibrate(model, [next(batches())], inplace=True)
    data = [*batches(int(rank), int(size))]
    dist.barrier()
    start = time.perf_counter()
    found = bn.recalibrate(model, data, virtual_batch="all", inplace=True).model
    dist.barrier()
    if rank == "0":
        total = sum(float(v.double().sum()) for k, v in found.state_dict().items() if "running" in k)
        print(f"{time.perf_counter() - start:.2f} {total:.6f}")
    dist.destroy_process_group()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.recalibrate_scale", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _words(process: subprocess.Popen[str]) -> list[str]:
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a run failed with exit code {process.returncode}")
    return out.split()


def main() -> None:
    print(f"{NAME}, {SAMPLES} images of {SIDE}×{SIDE} in batches of {BATCH}.\n")
    print("| in lock-step | peak memory, MB | s |\n|---|---:|---:|")
    for virtual in VIRTUAL:
        print(f"| {virtual} | {' | '.join(_words(_started('memory', virtual)))} |", flush=True)
    print("\nAll in lock-step, one thread a process; the sum of all statistics has to be the same.\n")
    print("| processes | s | times as fast | sum |\n|---|---:|---:|---:|")
    alone = 0.0
    for size in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            running = [_started("member", rank, size, Path(folder)) for rank in range(size)]
            (seconds, total), *_ = [_words(process) for process in running]
        alone = alone or float(seconds)
        print(f"| {size} | {seconds} | {alone / float(seconds):.2f} | {total} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"memory": memory, "member": member}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
