"""ONNX files of many architectures, folded as they stand: ``python -m tests.graphs [NAME …]``.

Each is exported with its BatchNorms in, by torch's exporter of today with its optimiser off and by the one
before it, then opened, folded and written by bntools, which runs both files in ONNX Runtime. Beside it stands
how many BatchNorms the model's own program keeps.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

import bntools as bn
from bntools.core.example import Example
from bntools.core.programfile import write_program
from bntools.core.quiet import quiet
from bntools.core.source import load
from bntools.errors import BntoolsError
from tests.zoo import build

NAMES = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:regnet_y_400mf",
    "torchvision:densenet121",
    "torchvision:efficientnet_b0",
    "torchvision:googlenet",
    "torchvision:lraspp_mobilenet_v3_large",
    "timm:levit_128s",
    "timm:repvgg_a0",
    "timm:repghostnet_050",
    "timm:mixnet_s",
    "timm:resnetv2_50",
    "timm:dla34",
    "timm:fastvit_t8",
    "timm:efficientvit_b0",
    "timm:mobileone_s0",
    "timm:cspdarknet53",
    "timm:hrnet_w18_small",
    "timm:inception_next_atto",
    "timm:convmixer_768_32",
    "timm:tf_mobilenetv3_small_minimal_100",
)


def exported(model: torch.nn.Module, example: Any, path: Path, how: str) -> int:
    """Export with the BatchNorms in; how many there are in the file."""
    args = example if isinstance(example, tuple) else (example,)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamo":
            batch = tuple({0: torch.export.Dim("batch")} for _ in args)
            torch.onnx.export(
                model, args, path, dynamo=True, optimize=False, verbose=False, dynamic_shapes=batch
            )
        else:
            names = [f"x{at}" for at, _ in enumerate(args)]
            torch.onnx.export(
                model,
                args,
                path,
                dynamo=False,
                opset_version=17,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                input_names=names,
                dynamic_axes={name: {0: "batch"} for name in names},
            )
    return norms(path)


def norms(path: Path) -> int:
    """The BatchNorms in a file."""
    return sum(
        n.op_type == "BatchNormalization" for n in onnx.load(path, load_external_data=False).graph.node
    )


def row(name: str, how: str, folder: Path) -> str:
    """A line of the table."""
    model, example = build(name)
    path, out = folder / "model.onnx", folder / "folded.onnx"
    try:
        before = exported(model, example, path, how)
    except Exception as error:
        return f"| {name} | {how} | not exported: {type(error).__name__} | | | | |"
    start = time.perf_counter()
    try:
        program = load(path, graphs=True).model
        surgery = bn.fold(program, Example.of(example, model), level="program")
        report = write_program(surgery, out, force=True)
    except BntoolsError as error:
        return f"| {name} | {how} | {before} | {type(error).__name__}: {error.message[:150]} | | | |"
    seconds = time.perf_counter() - start
    assert report is not None
    stay = len(bn.fold(model, example, level="program", verify=False).plan.refusals)
    cells = (before, norms(out), stay, f"{surgery.report.verdict} {surgery.report.error:.0e}")
    return f"| {name} | {how} | {' | '.join(map(str, cells))} | {report.verdict} | {seconds:.1f} |"


def main() -> None:
    head = "| model | exporter | BatchNorms before | after | in its own program | proof | file | seconds |"
    sys.stdout.write(f"{head}\n")
    sys.stdout.write("|---|---|---:|---:|---:|---|---|---:|\n")
    for name in sys.argv[1:] or NAMES:
        for how in ("dynamo", "torchscript"):
            with tempfile.TemporaryDirectory() as folder:
                sys.stdout.write(f"{row(name, how, Path(folder))}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
