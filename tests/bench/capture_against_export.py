"""What a capture costs beside a plain forward and beside ``torch.export``, in one run.

``python -m tests.bench.capture_against_export [NAME …]``
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import partial

import torch

from bntools.core.capture import capture
from bntools.core.example import Example
from tests.bench.fold_against_fx import MODELS, THREADS, build
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import spreads

TURNS = 5


def row(name: str) -> tuple[str, ...]:
    model, example = build(begun(name))
    call = Example((example,))
    forward, ours, export = spreads(
        [
            torch.no_grad()(partial(call, model)),
            partial(capture, model, call),
            partial(torch.export.export, model, (example,), strict=False),
        ],
        TURNS,
        warm=1,
    )
    return (
        name, f"{forward:.0f}", f"{ours:.0f}", f"{export:.0f}",
        f"{ours.to(forward):.1f}", f"{ours.to(export):.2f}",
    )  # fmt: skip


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    columns = (
        "model", "forward, ms", "capture, ms", "`torch.export`, ms", "capture to forward",
        "capture to `torch.export`",
    )  # fmt: skip
    return Result(
        "What every fold of a module starts with, the capture of one forward, against "
        "`torch.export.export(strict=False)` and the forward itself. Claim: a capture takes a fraction of "
        "what an export takes.",
        (
            Table(
                f"A batch of 1 at 224×224, {TURNS} turns.",
                columns,
                tuple(row(name) for name in names or MODELS),
            ),
        ),
        "models that one of the two cannot take in; large batches, where both are as long as the forward.",
        THREADS,
    )


if __name__ == "__main__":
    sys.exit(main(bench))
