"""What `recalibrate` takes: memory by the size of the virtual batch, time by the number of processes.

``python -m tests.bench.recalibrate_scale``; each run is a process of its own, or several; they take turns.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.swa_utils import update_bn

import bntools as bn
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import Spread
from tests.zoo import build

NAME = "torchvision:resnet18"
SIDE = 128
BATCH = 8
SAMPLES = 256
UPDATE, VIRTUAL = "torch `update_bn`", ("8", "32", "128", "all")
PROCESSES = (1, 2, 4)
TURNS = 3
THREADS = 2


def batches(rank: int = 0, size: int = 1) -> Iterator[Tensor]:
    """Made when they are asked for, so that what is held is what recalibrating holds."""
    for number in range(rank, SAMPLES // BATCH, size):
        yield torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))


def memory(way: str) -> None:
    """How much the peak of this process grows, in MB, and in how many seconds."""
    torch.set_num_threads(THREADS)
    model, _ = build(NAME)
    size: Any = int(way) if way.isdigit() else way
    run: Any = partial(bn.recalibrate, model, virtual_batch=size, stop=False, inplace=True)
    if way == UPDATE:
        run = torch.no_grad()(lambda data: update_bn(data, model))
    run(data=[next(batches())])  # what torch sets up once is not counted
    before, start = _peak(), time.perf_counter()
    run(data=batches())
    print(f"{_peak() - before:.0f} {time.perf_counter() - start:.2f}")


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
        print(f"{total:.6f} {time.perf_counter() - start:.2f}")
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


def alone(way: str) -> list[str]:
    return _words(_started("memory", way))


def together(size: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        running = [_started("member", rank, size, Path(folder)) for rank in range(size)]
        first, *_ = [_words(process) for process in running]
    return first


def turns(ways: Sequence[Any]) -> list[list[tuple[str, float]]]:
    """What each process of each way says: a word, and the seconds."""
    found: list[list[tuple[str, float]]] = [[] for _ in ways]
    for turn in range(TURNS):
        begun(f"turn {turn + 1} of {TURNS}")
        for way, words in zip(ways, found, strict=True):
            word, seconds = way()
            words.append((word, float(seconds)))
    return found


def bench(names: Sequence[str] = ()) -> Result:
    ways = (UPDATE, *VIRTUAL)
    found = turns([partial(alone, way) for way in ways])
    seconds = [Spread([s for _, s in words]) for words in found]
    grown = [Spread([float(mb) for mb, _ in words]) for words in found]
    shared = turns([partial(together, size) for size in PROCESSES])
    taken = [Spread([s for _, s in words]) for words in shared]
    sums = [", ".join(sorted({total for total, _ in words})) for words in shared]
    return Result(
        f"{NAME} on {SAMPLES} images of {SIDE}×{SIDE} in batches of {BATCH}. Claims: the virtual batch "
        "bounds the memory, at no cost in time; several processes give the statistics that one gives.",
        (
            Table(
                "By how much the peak of the memory grows, beside torch's `update_bn`, which holds one "
                f"batch; {TURNS} turns.",
                ("samples in lock-step", "memory, MB", "s", "to `update_bn`"),
                tuple(
                    (way, f"{mb:.0f}", f"{s:.2f}", f"{s.to(seconds[0]):.2f}")
                    for way, mb, s in zip(ways, grown, seconds, strict=True)
                ),
            ),
            Table(
                f"All in lock-step, a thread for each process of gloo, {TURNS} turns; the sum of all "
                "statistics is to be the same.",
                ("processes", "s", "to one process", "sum of the statistics"),
                tuple(
                    (f"{size}", f"{s:.2f}", f"{s.to(taken[0]):.2f}", total)
                    for size, s, total in zip(PROCESSES, taken, sums, strict=True)
                ),
            ),
        ),
        "processes on several machines; GPUs.",
        THREADS,
    )


if __name__ == "__main__":
    if sys.argv[1:2] in (["memory"], ["member"]):
        {"memory": memory, "member": member}[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main(bench))
