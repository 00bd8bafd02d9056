"""The sweep: a child for each architecture, and a file for what it tells."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from tests.peers.measure import ORIGINAL, Row
from tests.peers.table import tables
from tests.peers.tools import PEERS
from tests.zoo import ENTRIES, takes_a_tensor

TIMEOUT = 180
PACKAGES = ("torch", "torchvision", "timm", "aimet-torch", "torchao", "onnx", "onnxscript", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.peers", description="Fold the zoo with other tools."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="architectures; all without a file if left out"
    )
    # Each after a flag of its own, so that a list of them does not swallow the names.
    parser.add_argument(
        "--tool", action="append", choices=PEERS, dest="tools", help="which to ask; all if left out"
    )
    parser.add_argument("--out", type=Path, default=Path("build/peers"), help="where the files are")
    parser.add_argument("--table", action="store_true", help="add up what the files hold, and run nothing")
    asked = parser.parse_args()
    # What others fold by takes one tensor.
    known = [entry.name for entry in ENTRIES if takes_a_tensor(entry)]
    if unknown := set(asked.names) - set(known):
        parser.error(f"not in tests/zoo.py: {' '.join(sorted(unknown))}")
    if asked.table:
        rows = [json.loads(file.read_text()) for file in sorted(asked.out.glob("*.json"))]
        sys.stdout.write(tables(rows))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    versions = dict(filter(all, ((package, _version(package)) for package in PACKAGES)))
    files = {name: asked.out / f"{name.replace(':', '-')}.json" for name in known}
    for name in asked.names or [name for name in known if not files[name].exists()]:
        start = time.perf_counter()
        told = ask(name, asked.tools or list(PEERS))
        row = {"name": name, "versions": versions, "seconds": round(time.perf_counter() - start, 1)}
        row |= {ORIGINAL: told.pop(ORIGINAL, None), "peers": told}
        files[name].write_text(json.dumps(row, indent=1) + "\n")
        sys.stdout.write(f"{name} {row['seconds']} s\n")
        sys.stdout.flush()


def ask(name: str, peers: list[str]) -> dict[str, Row]:
    """What a child tells; if it dies or hangs, each peer that it did not come to gets one of its own."""
    command = [sys.executable, "-m", "tests.peers.measure", name, ",".join(peers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=environment, check=False)
        stdout, end = done.stdout, _end(done)
    except subprocess.TimeoutExpired as late:
        stdout, end = late.stdout or b"", f"not done after {TIMEOUT} s"
    *lines, _ = stdout.decode().split("\n")
    told: dict[str, Row] = dict(map(json.loads, lines))
    missing = [peer for peer in peers if peer not in told]
    if len(peers) > 1:
        for peer in missing:
            told |= ask(name, [peer])
    elif missing:
        told[missing[0]] = {"failed": end}
    return told


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"died of {signal.Signals(-done.returncode).name}"
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return last[:300] or f"exit code {done.returncode}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
