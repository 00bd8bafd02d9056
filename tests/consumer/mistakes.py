"""Mistakes that mypy has to find, each with the code of its error; in other lines it may find none."""

from __future__ import annotations

import torch
from torch import nn

import bntools as bn
from bntools import merge  # error: attr-defined

net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
x = torch.ones(2, 3, 8, 8)


def mistakes() -> None:
    bn.fuse(net, x)  # error: attr-defined
    bn.fold("net.pt", x)  # error: arg-type
    bn.fold(net, x, level="graph")  # error: arg-type
    bn.fold(net, x, "module")  # error: call-arg
    bn.fold(net, x, in_place=True)  # error: call-arg
    str(bn.fold(net).report.first)  # error: attr-defined
    bn.fold(net).plan.edits.append(None)  # error: attr-defined
    bn.fold(net).plan = bn.fold(net).plan  # error: misc
    str(bn.inspect(net).plan.refusals)  # error: union-attr
    bn.inspect(net, thresholds={"BN007": "low"})  # error: dict-item
    bn.recalibrate(net)  # error: call-arg
    bn.recalibrate(net, [x], virtual_batch="everything")  # error: arg-type
    str(bn.recalibrate(net, [x]).report.verdict)  # error: attr-defined
    bn.freeze(net, only=3)  # error: arg-type
    bn.freeze(net, optimizer="sgd")  # error: arg-type
    bn.unfreeze(net, stats=True)  # error: call-arg
    bn.swap(net, "batchnorm")  # error: arg-type
    bn.swap(net, groups="all")  # error: arg-type
    bn.export(net, x)  # error: call-arg
    bn.export(net, x, "net.onnx").path.stat()  # error: union-attr
    bn.verify(net)  # error: call-arg
    bn.save(net, "net.pt")  # error: arg-type
    bn.replay(net, "net.safetensors")  # error: arg-type
    str(bn.load("net.pt").plan.edits)  # error: union-attr
    bn.graft_(net, {})  # error: call-arg
    bn.UsageError("no", "todo")  # error: call-arg
    verdict: str = bn.verify(net, net).verdict
    verdict = bn.verify(net, net)  # error: assignment
    str(verdict)
    str(merge)
