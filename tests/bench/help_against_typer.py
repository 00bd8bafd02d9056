"""``bntools --help`` against ``import typer``, the least that a command line in Typer can take.

Run as ``python -m tests.bench.help_against_typer``; its exit code is 1 if help takes three times as long.
Times are medians of interleaved runs, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
MOST = 3.0

HELP = (sys.executable, "-m", "bntools", "--help")
TYPER = (sys.executable, "-c", "import typer")


def timed(command: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measured(rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds of each."""
    times: dict[tuple[str, ...], list[float]] = {HELP: [], TYPER: []}
    for turn in range(rounds + 1):
        for command, taken in times.items():
            seconds = timed(command)
            if turn:  # the first fills the caches of bytecode and disk
                taken.append(seconds)
    return statistics.median(times[HELP]), statistics.median(times[TYPER])


def main() -> int:
    ours, least = measured()
    ratio = ours / least
    print(f"bntools --help {ours * 1e3:.0f} ms, import typer {least * 1e3:.0f} ms: {ratio:.2f} times as long")
    print(f"medians of {ROUNDS} interleaved runs; less than {MOST:.0f} times is asked for")
    return int(ratio >= MOST)


if __name__ == "__main__":
    sys.exit(main())
