"""The latency of a model before and after its fold, in eager mode and in ONNX Runtime, in one run.

``python -m tests.bench.latency_in_onnx [NAME …]``. Before is what torch's exporter writes, which folds some
BatchNorms itself, as ONNX Runtime does when it opens a file; after is what `bn.fold(level="program")` writes.
The calls are interleaved, so that a busy machine slows all alike.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

import bntools as bn
from tests.bench.turns import medians
from tests.zoo import build

MODELS = (
    "torchvision:resnet18",
    "torchvision:densenet121",
    "timm:levit_128s",
    "timm:repghostnet_050",
    "timm:repvgg_a0",
    "timm:resnetv2_50",
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


def row(name: str, folder: Path) -> str:
    """A line of the table."""
    model, example = build(name)
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
        eager, eager_after, runtime, runtime_after = medians(ways, TURNS, warm=5)
    cells = f"{eager:.1f} | {eager_after:.1f} | {eager_after / eager:.2f} | {left} | {rest}"
    return f"| {name} | {cells} | {runtime:.2f} | {runtime_after:.2f} | {runtime_after / runtime:.2f} |"


def main() -> None:
    print(f"Milliseconds, medians of {TURNS} interleaved calls on {THREADS} thread, a batch of 2.\n")
    print(
        "| model | eager before | after | ratio | BatchNorms in the file before | after "
        "| ONNX Runtime before | after | ratio |"
    )
    print("|---|" + "---:|" * 8)
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    main()
