"""Weight standardisation beside a swap: the convolutions in front of the new norms compute what they did."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import graft
from bntools.norms import StandardizedConv2d
from tests.must_fold import BatchNormReLU
from tests.season import season
from tests.zoo import build

X = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def net() -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)
    )
    return season(layers).double().eval()


def kinds(model: nn.Module) -> dict[str, str]:
    return {
        path: type(module).__name__
        for path, module in model.named_modules()
        if "Conv" in type(module).__name__
    }


@pytest.mark.parametrize("options", [{}, {"to": "layer"}, {"to": "instance"}, {"data": X.split(4)}])
@pytest.mark.parametrize("inplace", [True, False])
def test_only_those_right_in_front_are_and_the_function_stays(options: Any, inplace: bool) -> None:
    model = net()
    weight = model[0].weight
    plain = bn.swap(model, **{"inputs": X, **options}).model
    surgery = bn.swap(model, weight_standardization=True, inplace=inplace, **{"inputs": X, **options})
    assert kinds(surgery.model) == {"0": "StandardizedConv2d", "3": "Conv2d"}
    torch.testing.assert_close(surgery.model(X), plain(X), rtol=1e-9, atol=1e-9)
    assert [conv.path for conv in surgery.plan.standardized] == ["0"]
    assert any(note.startswith("5: no convolution") for note in surgery.plan.notes)
    if inplace:
        assert surgery.model[0].weight is weight
    else:
        assert kinds(model) == {"0": "Conv2d", "3": "Conv2d"}
    # And it is trained as one: no step moves the mean of a filter.
    surgery.model(X).square().sum().backward()
    torch.testing.assert_close(
        surgery.model[0].weight.grad.flatten(1).sum(1), torch.zeros(16).double(), rtol=0, atol=1e-6
    )


def test_what_cannot_be_is_noted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1), BatchNormReLU(8)
    )
    surgery = bn.swap(season(model).double().eval(), groups=1, weight_standardization=True, inputs=X)
    assert kinds(surgery.model) == {"0": "Conv2d", "2": "StandardizedConv2d"}
    assert [note for note in surgery.plan.notes if note.startswith("0: it is not standardised")]
    assert not bn.swap(model, groups=1, inputs=X).plan.notes


def test_a_whole_network() -> None:
    model, _ = build("torchvision:resnet18")
    x = torch.randn(2, 3, 64, 64)
    plain, standardized = (
        bn.swap(model, weight_standardization=on, inputs=x).model.eval() for on in (False, True)
    )
    assert sum(isinstance(m, StandardizedConv2d) for m in standardized.modules()) == 20
    with torch.no_grad():
        torch.testing.assert_close(standardized(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", ["batch", "sync", "switchable", "frozen"])
def test_it_is_for_norms_of_single_samples(to: Any) -> None:
    with pytest.raises(bn.UsageError, match="weight_standardization: not for"):
        bn.swap(net(), to, weight_standardization=True, inputs=X)


def test_it_is_saved_and_replayed(tmp_path: Path) -> None:
    model = net()
    surgery = bn.swap(model, groups=2, weight_standardization=True, inputs=X)
    bn.save(surgery, tmp_path / "swapped.safetensors")
    again = bn.replay(tmp_path / "swapped.safetensors", net())
    assert torch.equal(again(X), surgery.model(X))
    assert kinds(again) == kinds(surgery.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "4"}, "it cannot be standardised"),
        ({"path": "9"}, "has no such convolution"),
        ({"eps": 0.0}, "an .* of 0.0"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    surgery = bn.swap(net(), groups=2, weight_standardization=True, inputs=X)
    conv = dataclasses.replace(surgery.plan.standardized[0], **change)
    plan = dataclasses.replace(surgery.plan, standardized=(conv,))
    state = surgery.model.state_dict()
    tensors = {key: state.get(key, torch.ones(16)) for key in plan.keys}
    with pytest.raises(bn.PlanError, match=message):
        bn.graft_(net(), plan, tensors)


def test_what_fails_in_between_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model = season(model).double().eval()
    before, real, done = copy.deepcopy(model.state_dict()), graft.standardize_, []

    def standardize_(conv: nn.Module, kept: dict[str, Tensor], *, eps: float) -> None:
        if len(done) == 1 and conv is model[2]:
            raise KeyboardInterrupt
        real(conv, kept, eps=eps)
        if conv is model[0]:
            done.append(conv)

    monkeypatch.setattr(graft, "standardize_", standardize_)
    with pytest.raises(KeyboardInterrupt):
        bn.swap(model, groups=2, weight_standardization=True, inputs=X, inplace=True)
    assert done
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
