"""``bntools inspect weights.safetensors`` against Python's start: torch is not imported for it.

Run as ``python -m tests.bench.inspect_safetensors``; its exit code is 1 if the look at a ResNet-50 of 102 MB
takes a third of the processor's time that importing torch takes. The goal is half a second beyond Python's
start; but a busy machine slows all alike, so a ratio is asked for. Times are medians of interleaved runs.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 11
MOST = 1 / 3

PYTHON = "python -c pass"
TORCH = "python -c 'import torch'"
OURS = "bntools inspect"


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of wall time and of the processor."""
    before, start = spent(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start, spent() - before


def spent() -> float:
    """Seconds of the processor, of all the children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def weights(folder: Path) -> Path:
    """A seasoned ResNet-50, written by a process of its own, so that this one stays small."""
    path = folder / "resnet50.safetensors"
    code = (
        "import tests.torchvision_ops, torchvision, sys; from safetensors.torch import save_file; "
        "from tests.season import season; "
        "save_file(season(torchvision.models.resnet50()).state_dict(), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    return path


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = weights(Path(folder))
        commands = {
            PYTHON: [sys.executable, "-c", "pass"],
            OURS: [sys.executable, "-m", "bntools", "inspect", str(path), "--json"],
            TORCH: [sys.executable, "-c", "import torch"],
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(ROUNDS + 1):
            for name, command in commands.items():
                taken = timed(command)
                if turn:  # the first fills the caches of bytecode and disk
                    times[name].append(taken)
        size = path.stat().st_size / 1e6
    wall, work = ({name: statistics.median(t[i] for t in times[name]) for name in times} for i in (0, 1))
    for name in times:
        print(f"{name:<25} {wall[name]:.3f} s, of the processor {work[name]:.3f} s")
    more, ratio = work[OURS] - work[PYTHON], work[OURS] / work[TORCH]
    told = f"{more:.2f} s of the processor and {wall[OURS] - wall[PYTHON]:.2f} s in all"
    print(f"{size:.0f} MB: {told} beyond Python's start")
    print(f"{ratio:.2f} times the import of torch, {work[OURS] / work[PYTHON]:.0f} times Python's start")
    print(f"medians of {ROUNDS} interleaved runs; less than {MOST:.2f} times torch is asked for")
    return int(ratio >= MOST)


if __name__ == "__main__":
    sys.exit(main())
