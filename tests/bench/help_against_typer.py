"""``bntools --help`` against ``import typer``, the least that a command line in Typer can take.

``python -m tests.bench.help_against_typer``; its exit code is 1 if help takes three times as long.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from tests.bench.result import Result, Table, main
from tests.bench.turns import Spread, spreads

TURNS = 15
MOST = 3.0

HELP = (sys.executable, "-m", "bntools", "--help")
TYPER = (sys.executable, "-c", "import typer")


def measured(turns: int = TURNS) -> tuple[Spread, Spread]:
    """Milliseconds of each; the first turn fills the caches of bytecode and disk."""
    run = partial(subprocess.run, stdout=subprocess.DEVNULL, check=True)
    ours, least = spreads([partial(run, HELP), partial(run, TYPER)], turns, warm=1)
    return ours, least


def bench(names: Sequence[str] = ()) -> Result:
    ours, least = measured()
    ratio = ours.to(least)
    return Result(
        "`bntools --help` against `import typer` alone, as processes. Claim: less than "
        f"{MOST:.0f} times as long, since nothing that is not asked for is imported; torch least of all.",
        (
            Table(
                f"{TURNS} turns.",
                ("", "`bntools --help`, ms", "`import typer`, ms", "to Typer"),
                (("process", f"{ours:.0f}", f"{least:.0f}", f"{ratio:.2f}"),),
            ),
        ),
        "a first start with a cold disk.",
        threads=1,
        holds=ratio.median < MOST,
    )


if __name__ == "__main__":
    sys.exit(main(bench))
