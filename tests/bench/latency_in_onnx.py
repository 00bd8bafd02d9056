"""The latency of a model before and after its fold, in eager mode and in ONNX Runtime, in one run.

``python -m tests.bench.latency_in_onnx [NAME …]``. Before is what torch's exporter writes, which folds some
BatchNorms itself, as ONNX Runtime does when it opens a file; after is what `bn.fold(level="program")` writes.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

import bntools as bn
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import spreads
from tests.zoo import build

MODELS = (
    "torchvision:resnet18",
    "torchvision:densenet121",
    "timm:levit_128s",
    "timm:repghostnet_050",
    "timm:repvgg_a0",
)
TURNS = 40
THREADS = 1


def session(file: Path) -> tuple[onnxruntime.InferenceSession, int]:
    """ONNX Runtime on a file, and how many BatchNorms the file holds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    options.log_severity_level = 3
    nodes = onnx.load(file, load_external_data=False).graph.node
    return onnxruntime.InferenceSession(file, options), sum(n.op_type == "BatchNormalization" for n in nodes)


def row(name: str, folder: Path) -> tuple[str, ...]:
    model, example = build(begun(name))
    before, after = folder / "before.onnx", folder / "after.onnx"
    torch.onnx.export(model, (example,), before, dynamo=True, verbose=False)
    bn.save(bn.fold(model, example, level="program"), after, force=True)
    folded = bn.fold(model, example).model
    (one, left), (two, rest) = session(before), session(after)
    ways: list[Callable[[], Any]] = [lambda: model(example), lambda: folded(example)]
    for each in (one, two):
        feed = {each.get_inputs()[0].name: example.numpy()}
        ways.append(lambda each=each, feed=feed: each.run(None, feed))
    with torch.no_grad():
        eager, eager_after, runtime, runtime_after = spreads(ways, TURNS, warm=5)
    return (
        name, f"{eager:.1f}", f"{eager_after:.1f}", f"{eager_after.to(eager):.2f}", f"{left}", f"{rest}",
        f"{runtime:.2f}", f"{runtime_after:.2f}", f"{runtime_after.to(runtime):.2f}",
    )  # fmt: skip


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    rows = []
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
    columns = (
        "model", "eager before, ms", "after, ms", "to before", "BatchNorms in the file before", "after",
        "ONNX Runtime before, ms", "after, ms", "to before",
    )  # fmt: skip
    return Result(
        "A folded program in ONNX Runtime against the file that torch's exporter writes of the same "
        "model; both the exporter and the runtime fold BatchNorms themselves. Claim: it is faster where "
        "bntools folds what they leave, and as fast where they leave none. Beside it, eager mode.",
        (Table(f"A batch of 2, {TURNS} turns.", columns, tuple(rows)),),
        "other runtimes; ONNX Runtime on several threads. The [coverage](coverage.md) has the files of "
        "137 classifiers.",
        THREADS,
    )


if __name__ == "__main__":
    sys.exit(main(bench))
