"""Every claim about time and memory: ``python -m tests.bench [NAME …]``, each in a process of its own.

What was found is written to ``build/bench/NAME.json`` at once, so that a run that was killed goes on where it
was; what other code has found is measured anew. ``--write`` makes ``docs/benchmarks.md`` of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import machine
from tests.bench.page import BENCHES, page

RESULTS = Path("build/bench")
PAGE = Path("docs/benchmarks.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure what bntools takes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all, if none")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--write", action="store_true", help=f"measure nothing, write {PAGE}")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(BENCHES):
        parser.error(f"{', '.join(sorted(unknown))}: no such bench")
    if asked.write:
        PAGE.write_text(page(read(RESULTS)), "utf-8")
        return 0
    failed = [name for name in asked.names or BENCHES if not measured(name, again=asked.again)]
    if failed:
        print(f"failed, or a limit was not kept: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def measured(name: str, *, again: bool) -> bool:
    """Measure, unless it was by the same code; False if that fails, or a limit was not kept."""
    file = RESULTS / f"{name}.json"
    if file.exists() and not again:
        kept = json.loads(file.read_text("utf-8"))
        if kept["at"]["code"] == machine.code() and not kept["names"]:
            print(f"{name}: measured already, on {kept['at']['date']}", file=sys.stderr)
            return bool(kept["result"]["holds"])
    start, load = time.perf_counter(), os.getloadavg()[0]
    print(f"{name}: begun at a load of {load:.1f}", file=sys.stderr, flush=True)
    command = [sys.executable, "-W", "ignore", "-m", f"tests.bench.{name}", "--json", str(file)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return done.returncode == 0


def read(folder: Path) -> dict[str, Any]:
    """What is there, by the name of the bench."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))}


if __name__ == "__main__":
    sys.exit(main())
