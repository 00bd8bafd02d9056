"""Every verb and every stage, each with the type of what comes back. mypy has to be content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import bntools as bn
from bntools.norms import StandardizedConv2d, SwitchableNorm2d

net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
x = torch.ones(2, 3, 8, 8)
batches = [x, x]


def looks(program: torch.export.ExportedProgram) -> None:
    census = bn.inspect(net, x, thresholds={"BN007": 0.05}, batch_size=8)
    assert_type(census, bn.Census)
    assert_type(bn.inspect(program), bn.Census)
    assert_type(census.sites, tuple[bn.Site, ...])
    assert_type(census.plan, bn.Plan | None)
    assert_type(census.findings, tuple[bn.Finding, ...])
    assert_type(census.findings[0].layer, str | None)


def folds(program: torch.export.ExportedProgram) -> None:
    surgery = bn.fold(net, (x,), level="module", simplify=True)
    assert_type(surgery, bn.Surgery[bn.Report])
    assert_type(bn.fold(program), bn.Surgery[bn.Report])
    assert_type(surgery.model, nn.Module)
    assert_type(surgery.report.verdict, bn.Verdict)
    assert_type(surgery.report.noise, float | None)
    for refusal in surgery.plan.refusals:
        assert_type(refusal.reason, bn.Reason)
        assert_type(refusal.site.name + refusal.detail + refusal.remedy, str)
    for edit in surgery.plan.edits:
        assert_type(edit.into, tuple[str, ...])
    assert_type(surgery.plan.promise, bn.Promise)
    assert_type(bn.Plan.from_json(surgery.plan.to_json()), bn.Plan)


def recalibrates() -> None:
    surgery = bn.recalibrate(net, batches, virtual_batch="all", only=["*", "!1"], forward=lambda m, x: m(x))
    assert_type(surgery, bn.Surgery[bn.Drift])
    assert_type(surgery.report.first, str | None)
    assert_type(surgery.report.samples, int)


def freezes() -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    surgery = bn.freeze(net, "1", first=3, optimizer=optimizer, inplace=True)
    assert_type(surgery, bn.Surgery[bn.Freezing])
    assert_type(surgery.report.parameters, tuple[str, ...])
    assert_type(bn.unfreeze(surgery.model), bn.Surgery[bn.Freezing])


def swaps() -> None:
    surgery = bn.swap(net, "group", groups=4, data=batches, weight_standardization=True)
    assert_type(surgery, bn.Surgery[bn.Change])
    assert_type(surgery.report.output, float | None)
    for module in surgery.model.modules():
        if isinstance(module, StandardizedConv2d):
            assert_type(module.effective_weight(), Tensor)
        if isinstance(module, SwitchableNorm2d):
            assert_type(module.weights(), dict[str, dict[str, float]])


def exports() -> None:
    done = bn.export(net, x, Path("net.onnx"), dynamic={"": {2: "height"}}, input_names=["image"])
    assert_type(done, bn.Export)
    assert_type(done.path, Path | None)
    assert_type(done.check, bn.Report)


def verifies() -> None:
    assert_type(bn.verify(net, "net.onnx", {"input": x}, data=None, limit=10), bn.Report)


def keeps() -> None:
    assert_type(bn.save(bn.fold(net), "net.safetensors", force=True), Path)
    assert_type(bn.save(bn.swap(net), Path("net.pt")), Path)
    assert_type(bn.replay("net.safetensors", net), nn.Module)
    assert_type(bn.load("weights.pt", arch="timm:resnet18", arch_kwargs={"num_classes": 10}), nn.Module)


def halfway() -> None:
    example = bn.Example.of(x, net)
    seen = bn.capture(net, example)
    assert_type(seen, bn.Capture)
    plan = bn.find_folds(seen)
    assert_type(plan, bn.Plan)
    tensors, overflowing = bn.fold_tensors(net, plan)
    assert_type(tensors, dict[str, Tensor])
    assert_type(overflowing, frozenset[str])
    before = bn.observe(net, example)
    assert_type(before, bn.Observation)
    undo = bn.graft_(net, plan, tensors)
    assert_type(undo, Callable[[], None])
    assert_type(bn.compare([before], [bn.observe(net, example)], before, {}), bn.Report)
    undo()


def fails(sizes: Mapping[str, int]) -> int:
    try:
        bn.load("net.pt")
    except bn.UnsafeError as error:
        assert_type(error.todo, str)
        return error.exit_code
    except bn.BntoolsError as error:
        return error.exit_code
    return len(sizes)
