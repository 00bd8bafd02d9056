"""``bntools inspect weights.safetensors`` against Python's start: torch is not imported for it.

``python -m tests.bench.inspect_safetensors``; its exit code is 1 if the look at a ResNet-50 of 102 MB takes a
third of the processor's time that importing torch takes. The goal is half a second beyond Python's start; but
a busy machine slows all alike, so a ratio is asked for.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.result import Result, Table, main
from tests.bench.turns import Spread

TURNS = 11
MOST = 1 / 3

PYTHON = "`python -c pass`"
TORCH = "`python -c 'import torch'`"
OURS = "`bntools inspect`"


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


def bench(names: Sequence[str] = ()) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = weights(Path(folder))
        size = path.stat().st_size / 1e6
        commands = {
            PYTHON: [sys.executable, "-c", "pass"],
            OURS: [sys.executable, "-m", "bntools", "inspect", str(path), "--json"],
            TORCH: [sys.executable, "-c", "import torch"],
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(TURNS + 1):
            for name, command in commands.items():
                taken = timed(command)
                if turn:  # the first fills the caches of bytecode and disk
                    times[name].append(taken)
    wall, work = ({name: Spread([t[i] for t in times[name]]) for name in times} for i in (0, 1))
    more = [each[OURS].median - each[PYTHON].median for each in (wall, work)]
    ratio = {name: work[name].to(work[TORCH]) for name in times}
    return Result(
        f"`bntools inspect` on a ResNet-50 of {size:.0f} MB against Python's own start and the import of "
        f"torch, as processes. Claim: less than {MOST:.2f} of the processor's time that the import of "
        "torch alone takes.",
        (
            Table(
                f"{TURNS} turns.",
                ("process", "s", "of the processor, s", "of the processor, to torch's import"),
                tuple(
                    (name, f"{wall[name]:.3f}", f"{work[name]:.3f}", f"{ratio[name]:.2f}") for name in times
                ),
            ),
        ),
        "a file that is not in the disk's cache.",
        threads=1,
        notes=(f"Beyond Python's start it takes {more[0]:.2f} s, {more[1]:.2f} s of the processor.",),
        holds=ratio[OURS].median < MOST,
    )


if __name__ == "__main__":
    sys.exit(main(bench))
