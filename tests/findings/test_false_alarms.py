"""Real architectures with sane statistics: no rule cries out, and what is noted is there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import bntools as bn
from bntools.findings import RULES, Severity
from tests.findings.alarms import WITH_DATA, fired, fired_with_data
from tests.zoo import ENTRIES, build

SAMPLE = [
    "torchvision:densenet121",
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
    "timm:efficientnet_b0",
    "timm:mobilenetv3_small_050",
    "timm:repghostnet_050",
]
TRUE = {"timm:repvit_m0_9": {"BN009"}}
"""Statistics at random make the fold of its long residual chain overflow, see below."""


@pytest.mark.parametrize(
    "name", [pytest.param(e.name, marks=[] if e.name in SAMPLE else pytest.mark.zoo) for e in ENTRIES]
)
def test_no_false_alarm(name: str) -> None:
    loud = {rule for rule in fired(name) if RULES[rule].severity is not Severity.NOTE}
    assert loud == TRUE.get(name, set())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLE[1:3] else pytest.mark.zoo) for n in WITH_DATA]
)
def test_no_false_alarm_with_data(name: str) -> None:
    """The statistics are of other samples of the same data, so that they are off by chance alone."""
    assert {rule for rule in fired_with_data(name) if RULES[rule].severity is not Severity.NOTE} == set()


@pytest.mark.zoo
def test_the_true_alarm_is_true() -> None:
    model, example = build("timm:repvit_m0_9")
    assert all(bool(p.half().isfinite().all()) for p in model.parameters())
    folded = bn.fold(model, example, verify=False).model
    assert not all(bool(p.half().isfinite().all()) for p in folded.parameters())


def test_a_trained_network_has_none() -> None:
    """γ, β and statistics as training leaves them, on images with pixels that are always 0."""
    data = load_digits()
    images, labels = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    block = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *block, nn.Flatten(), nn.Linear(288, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        for batch in torch.randperm(len(images) // 2 * 2).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    census = bn.inspect(model.eval(), images[:2])
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    assert [finding for finding in census.findings if finding.severity is not Severity.NOTE] == []
    # The running statistics are an average over the last steps, and weights have moved meanwhile.
    for batches in (images.split(32), images[torch.randperm(len(images))[:300]].split(50)):
        with_data = bn.inspect(model, data=batches)
        assert {f.rule for f in with_data.findings if f.severity is not Severity.NOTE} <= {"BN031"}
    (first,) = [f for f in bn.inspect(model, data=(images / 2).split(32)).findings if f.rule == "BN028"][:1]
    assert first.layer == "1"
