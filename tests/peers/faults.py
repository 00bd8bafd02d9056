"""Faults planted into exported files: who finds them, and who can say where they are.

``python -m tests.peers.faults [COUNT]``. Each file is exported by bntools from a seasoned model and is right;
then one fault at a time is planted into it. Beside the verdict of `bn.verify` stand those of
``np.allclose`` with both tolerances at 1e-3 and at 1e-5, and of the check behind
``torch.onnx.export(verify=True)``, which logs a line from 5e-3 absolute or 0.1 relative on, and never fails.
All of them look at what ONNX Runtime computes on the same input. Nothing is planted twice in one file.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import onnx
import torch
from torch import nn
from torch.onnx.verification import VerificationInfo

import bntools as bn
from bntools.core.child import Runtime
from bntools.core.example import Example
from bntools.core.places import in_file
from bntools.core.runtime import check
from bntools.core.sides import FileSide, ModuleSide
from bntools.core.traced import traced_for_file
from bntools.core.trials import trials
from tests.planted import KINDS, Fault, owners_of, plant
from tests.zoo import build

MODELS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "timm:repghostnet_050",
    "timm:resnetv2_50",
    "timm:levit_128s",
)
COUNT = 200
PEERS = ("allclose 1e-3", "allclose 1e-5", "verify=True logs", "verify=True fails")


@dataclass
class Row:
    """What came of one file."""

    model: str
    fault: Fault | None
    verdict: str
    error: float
    place: str
    between: tuple[str, ...]
    peers: dict[str, bool]

    @property
    def right(self) -> bool:
        """Whether the place is that of the fault, or a stretch of at most three modules with it."""
        assert self.fault is not None
        near = {self.place, *(self.between if len(self.between) <= 3 else ())}
        return self.fault.module in near


def rows(name: str, count: int, folder: Path) -> Iterator[Row]:
    """The clean file, then *count* faults."""
    model, example = build(name)
    given = Example.of(example, model)
    path = folder / "model.onnx"
    bn.export(model, example, path, compare=False, verify=False, keep_debug_info=True)
    owners = owners_of(path.read_bytes(), {each for each, _ in model.named_modules()})
    bn.export(model, example, path, compare=False, force=True)
    content = path.read_bytes()
    side, examples = ModuleSide(model), list(trials(given))
    with Runtime() as runtime:
        traced = traced_for_file(side, FileSide(path, runtime), given, folded=True)
        assert traced is not None
        draw, kinds = random.Random(0), list(KINDS)
        faults: list[tuple[bytes, Fault | None]] = [(content, None)]
        seen = set()
        for number in range(20 * count):
            if len(faults) > count:
                break
            planted = plant(content, kinds[number % len(kinds)], draw, owners)
            if planted is not None and (planted[1].kind, planted[1].node) not in seen:
                seen.add((planted[1].kind, planted[1].node))
                faults.append(planted)
        for bad, fault in faults:
            path.write_bytes(bad)
            file = FileSide(path, runtime)
            report = check(side, file, examples)
            place = in_file(traced, file, examples) if report.verdict is bn.Verdict.FAILED else None
            yield Row(
                name,
                fault,
                report.verdict.value,
                report.error,
                place.module if place else "",
                place.between if place else (),
                _peers(model, file, given),
            )


def _peers(model: nn.Module, file: FileSide, example: Example) -> dict[str, bool]:
    """Which of the other checks finds something."""
    with torch.no_grad():
        expected = model(*example.args)
    got = file.run(example, optimise=True)[0]
    info = VerificationInfo.from_tensors("output", expected, got)
    close = [bool(np.allclose(got.numpy(), expected.numpy(), rtol=t, atol=t)) for t in (1e-3, 1e-5)]
    logs = info.max_abs_diff >= 5e-3 or info.max_rel_diff >= 1e-1
    return dict(zip(PEERS, (not close[0], not close[1], logs, False), strict=True))


def _say(text: str, to: TextIO | None = None) -> None:
    (to or sys.stdout).write(text + "\n")
    (to or sys.stdout).flush()


def main() -> int:
    """The exit code is 1 if less is found, or named, than is promised."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    found: list[Row] = []
    for number, name in enumerate(MODELS):
        share = count // len(MODELS) + (number < count % len(MODELS))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found += rows(name, share, Path(folder))
        _say(f"{name}: {time.perf_counter() - start:.0f} s", to=sys.stderr)
    clean, faulty = [r for r in found if r.fault is None], [r for r in found if r.fault is not None]
    caught = [r for r in faulty if r.verdict == "failed"]
    right = [r for r in caught if r.right]
    _say(f"{len(faulty)} faults in {len(MODELS)} files, {torch.__version__=}, {onnx.__version__=}\n")
    _say("| fault | planted | found | place named | " + " | ".join(PEERS) + " |")
    _say("|---|" + "---:|" * (3 + len(PEERS)))
    kinds = Counter(r.fault.kind for r in faulty if r.fault)
    for kind in [*kinds, "all"]:
        of = [r for r in faulty if r.fault and kind in (r.fault.kind, "all")]
        cells = [len(of), sum(r in caught for r in of), sum(r in right for r in of)]
        cells += [sum(r.peers[peer] for r in of) for peer in PEERS]
        _say(f"| {kind} | {' | '.join(map(str, cells))} |")
    alarms = [sum(r.verdict == "failed" for r in clean), *(sum(r.peers[p] for r in clean) for p in PEERS)]
    _say(f"| none: false alarms | {len(clean)} | {alarms[0]} | | {' | '.join(map(str, alarms[1:]))} |")
    for row in faulty:
        if row not in caught or row not in right:
            _say(f"missed or misplaced: {row}", to=sys.stderr)
    fine = len(caught) >= 0.99 * len(faulty) and len(right) >= 0.95 * len(caught) and not alarms[0]
    return 0 if fine else 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())
