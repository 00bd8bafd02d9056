"""Swapping: what was learned is kept, by the closed form; and what hangs on a module stays on its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
import bntools.norms as bn_norms
from bntools.core.algebra import group_affine
from bntools.core.swapping import groups_for
from tests.must_fold import Apply, BatchNormAct, BatchNormReLU, FrozenBatchNorm
from tests.season import season
from tests.verbs.test_recalibrate import Batchwise
from tests.zoo import build

X = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(5))


def net(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return season(nn.Sequential(nn.Conv2d(3, 32, 3), norm(32), nn.ReLU(), nn.Conv2d(32, 64, 3), norm(64)))


def as_the_statistics_say(norm: Any, samples: int = 5, space: int = 4000) -> Tensor:
    """Samples each of which has, in each channel, exactly the mean and the variance that the norm holds."""
    x = torch.randn(samples, len(norm.running_mean), space, dtype=torch.float64)
    x = (x - x.mean(2, keepdim=True)) / x.std(2, correction=0, keepdim=True)
    mean, var = norm.running_mean.double(), norm.running_var.double()
    return (x * var.sqrt()[None, :, None] + mean[None, :, None]).unflatten(2, (-1, 50))


# The closed form


@pytest.mark.parametrize("groups", [1, 4, 8, 16])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_it_is_exact_where_samples_are_as_the_statistics_say(groups: int, affine: bool, eps: float) -> None:
    model = season(nn.Sequential(nn.BatchNorm2d(16, eps=eps, affine=affine))).double().eval()
    x = as_the_statistics_say(model[0])
    swapped = bn.swap(model, groups=groups, inputs=x)
    torch.testing.assert_close(swapped.model(x), model(x), rtol=1e-9, atol=1e-9)
    assert swapped.report.output <= 1e-9
    assert swapped.plan.promise is bn.Promise.NEW
    if groups == 16:  # a group for each channel: there the closed form is a copy
        return
    # The twins: the affine map copied, or fresh, is another function.
    for weight, bias in ((model[0].weight, model[0].bias), (None, None)):
        twin = copy.deepcopy(swapped.model)
        with torch.no_grad():
            twin[0].weight.copy_(weight if weight is not None else torch.ones(16))
            twin[0].bias.copy_(bias if bias is not None else torch.zeros(16))
        assert (twin(x) - model(x)).abs().max() > 0.1


def test_the_term_between_channels_keeps_its_digits() -> None:
    """As a difference of squares it would have none left: means near 1000, σ of 0.1."""
    mean = torch.tensor([1000.0, 1000.2], dtype=torch.float32)
    var = torch.tensor([0.01, 0.01])
    weight, bias = group_affine(None, None, mean, var, 0.0, 1)
    expected = group_affine(None, None, mean.double(), var.double(), 0.0, 1)
    torch.testing.assert_close(weight.double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        expected[0], torch.full((2,), (0.01 + 0.01) ** 0.5 / 0.1).double(), rtol=1e-3, atol=0
    )
    assert bias[0] == -bias[1] != 0


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(8, 1), (16, 1), (24, 1), (32, 2), (40, 2), (64, 4), (96, 6), (512, 32), (2048, 32), (7, 1)],
)
def test_how_many_groups_there_are(channels: int, groups: int) -> None:
    x = torch.randn(1, channels, 2, 2)
    model = bn.swap(season(nn.Sequential(nn.BatchNorm2d(channels))), inputs=x).model
    assert model[0].num_groups == groups
    assert channels % groups == 0
    assert groups == 1 or channels // groups >= 16


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_it_is_far_nearer_than_a_copy_of_the_affine_map(name: str) -> None:
    model, _ = build(name)
    x = torch.randn(4, 3, 64, 64)
    bn.recalibrate(model, [x], inplace=True)  # or the probe is nothing like what the statistics are of
    swapped = bn.swap(model, inputs=x)
    assert len(swapped.plan.edits) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in swapped.model.modules())
    twin = copy.deepcopy(swapped.model)
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            twin.get_submodule(path).load_state_dict({"weight": module.weight, "bias": module.bias})
    with torch.no_grad():
        want = model.eval()(x)
        off = [float((m.eval()(x) - want).norm() / want.norm()) for m in (swapped.model, twin)]
    assert off[0] == pytest.approx(swapped.report.output, rel=1e-4)
    assert off[0] < 0.8 * off[1]


# What stays as it was


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_modes_types_and_eps_stay(training: bool, inplace: bool) -> None:
    model = net(lambda c: nn.BatchNorm2d(c, eps=0.01)).to(torch.bfloat16).train(training)
    model[4].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    swapped = bn.swap(model, inputs=X.bfloat16(), inplace=inplace).model
    assert (swapped is model) is inplace
    for layer in (swapped[1], swapped[4]):
        assert isinstance(layer, nn.GroupNorm)
        assert (layer.eps, layer.training, layer.weight.dtype) == (0.01, training, torch.bfloat16)
    assert swapped[1].weight.requires_grad
    assert not swapped[4].weight.requires_grad
    if not inplace:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_shared_module_is_one_everywhere() -> None:
    model = season(Apply(lambda m, v: m.b(m.fc(m.a(m.fc(v)))), fc=nn.Conv2d(3, 3, 1), a=nn.BatchNorm2d(3)))
    model.b = model.a
    swapped = bn.swap(model, inputs=X).model
    assert swapped.a is swapped.b
    assert isinstance(swapped.a, nn.GroupNorm)


@pytest.mark.parametrize("layer", [BatchNormReLU, BatchNormAct])
def test_a_subclass_keeps_its_activation(layer: Callable[[int], nn.Module]) -> None:
    model = season(nn.Sequential(layer(16))).double().eval()
    x = as_the_statistics_say(model[0])
    swapped = bn.swap(model, groups=4, inputs=x).model
    torch.testing.assert_close(swapped(x), model(x), rtol=1e-9, atol=1e-9)
    assert (swapped[0][0](x) - model(x)).abs().max() > 0.1  # the norm alone


def test_hooks_go_on_and_come_off() -> None:
    model = net()
    seen: list[str] = []
    handle = model[1].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    bn.swap(model, inputs=X, inplace=True)
    seen.clear()
    model(X)
    assert seen == ["GroupNorm"]
    handle.remove()
    model(X)
    assert seen == ["GroupNorm"]


def test_only_those_that_are_asked_for() -> None:
    swapped = bn.swap(net(), only="4", inputs=X)
    assert [type(m).__name__ for m in (swapped.model[1], swapped.model[4])] == ["BatchNorm2d", "GroupNorm"]
    assert [r.reason for r in swapped.plan.refusals] == [bn.Reason.NOT_SELECTED]


# What is refused


@pytest.mark.parametrize(
    ("layer", "options", "reason"),
    [
        (nn.BatchNorm2d(30), {"groups": 4}, bn.Reason.GROUPS),
        (nn.BatchNorm1d(30), {"groups": 30}, bn.Reason.ONE_VALUE),
        (nn.BatchNorm1d(30), {"to": "instance"}, bn.Reason.ONE_VALUE),
        (nn.BatchNorm2d(30, track_running_stats=False), {}, bn.Reason.NO_STATISTICS),
        (nn.BatchNorm2d(30), {"to": "batch"}, bn.Reason.ALREADY),
        (Batchwise(30), {}, bn.Reason.SUBCLASS),
        (nn.InstanceNorm2d(30, track_running_stats=True), {}, bn.Reason.UNRECOGNISED),
    ],
)
def test_what_cannot_be_is_refused(layer: nn.Module, options: dict[str, Any], reason: bn.Reason) -> None:
    swapped = bn.swap(season(nn.Sequential(layer)), **options)
    assert [r.reason for r in swapped.plan.refusals] == [reason]
    assert type(swapped.model[0]) is type(layer)
    assert not swapped.plan.edits


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.BatchNorm2d(30), {"groups": 5}),
        (nn.BatchNorm1d(30), {"groups": 15}),
        (nn.BatchNorm3d(30), {"to": "instance"}),
    ],
)
def test_its_twins_are_not(layer: nn.Module, options: dict[str, Any]) -> None:
    swapped = bn.swap(season(nn.Sequential(layer)), **options)
    assert len(swapped.plan.edits) == 1
    assert type(swapped.model[0]) is not type(layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "weight"}, "to: 'weight' is none"),
        ({"groups": 0}, "groups: 0"),
        ({"groups": True}, "groups: True"),
        ({"only": "7"}, "matches no BatchNorm"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bn.UsageError, match=message):
        bn.swap(net(), **options)


def test_inputs_that_the_model_does_not_run_on() -> None:
    model = net()
    with pytest.raises(bn.CaptureError, match="does not run on"):
        bn.swap(model, inputs=torch.randn(2, 5), inplace=True)
    assert isinstance(model[1], nn.BatchNorm2d)


def test_the_model_itself_has_no_place_to_swap() -> None:
    assert [r.reason for r in bn.swap(nn.BatchNorm2d(16)).plan.refusals] == [bn.Reason.NO_MODULE]


# There and back, where that is exact


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"momentum": None}])
def test_sync_and_back_is_the_same_to_the_bit(options: dict[str, Any]) -> None:
    model = net(lambda c: nn.BatchNorm2d(c, **options)).train()
    there = bn.swap(model, "sync", inputs=X)
    assert there.plan.promise is bn.Promise.SAME
    assert isinstance(there.model[1], nn.SyncBatchNorm)
    assert there.report.output == 0
    back = bn.swap(there.model, "batch", inputs=X).model
    assert type(back[1]) is nn.BatchNorm2d
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    assert (back[1].eps, back[1].momentum, back[1].training) == (model[1].eps, model[1].momentum, True)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"momentum": None}])
def test_a_switchable_norm_starts_as_the_batchnorm(options: dict[str, Any]) -> None:
    model = net(lambda c: nn.BatchNorm2d(c, **options)).eval()
    held = model[1].running_mean
    swapped = bn.swap(model, "switchable", inputs=X, inplace=True)
    layer: Any = swapped.model[1]
    assert isinstance(layer, bn_norms.SwitchableNorm2d)
    assert layer.running_mean is held
    assert layer.momentum == options.get("momentum", 0.1)
    assert layer.mean_weight.requires_grad
    assert layer.weights()["mean"]["batch"] > 0.999
    assert 0 < swapped.report.output < 1e-3
    assert swapped.plan.promise is bn.Promise.NEW


def test_sync_keeps_the_very_parameters() -> None:
    model = net()
    held = [model[1].weight, model[1].running_mean]
    bn.swap(model, "sync", inputs=X, inplace=True)
    assert held[0] is model[1].weight
    assert held[1] is model[1].running_mean


def test_a_frozen_class_becomes_a_batchnorm() -> None:
    model = season(nn.Sequential(nn.Conv2d(3, 16, 3), FrozenBatchNorm(16))).eval()
    found = bn.swap(model, "batch", inputs=X).model
    assert type(found[1]) is nn.BatchNorm2d
    assert (found(X) - model(X)).abs().max() <= 1e-5 * model(X).abs().max()


def test_to_frozen_is_a_freeze() -> None:
    model = bn.swap(net().train(), "frozen", inputs=X).model.train()
    assert not model[1].training
    assert not model[1].weight.requires_grad
    assert bn.unfreeze(model).model[1].weight.requires_grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_to_frozen_and_back_is_what_it_was(training: bool, inplace: bool) -> None:
    model = net().train(training)
    model[4].weight.requires_grad_(False)
    there = bn.swap(copy.deepcopy(model), "frozen", inputs=X)
    assert not there.model[1].weight.requires_grad
    back = bn.swap(there.model, "batch", inputs=X, inplace=inplace)
    assert (back.model is there.model) is inplace
    assert [edit.site.name for edit in back.plan.edits] == ["1", "4"]
    assert back.plan.promise is bn.Promise.SAME
    assert [p.requires_grad for p in back.model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(each.training is training for each in back.model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[key], value)
    # The twin: nothing is done to what nobody has frozen.
    assert not bn.swap(model, "batch", inputs=X).plan.edits


def test_to_frozen_is_as_careful_as_a_freeze() -> None:
    """A γ that another layer has, which is not chosen, would be frozen there too."""
    model = net()
    model.twin = nn.BatchNorm2d(32)
    model.twin.weight = model[1].weight
    for plan in (bn.swap(model, "frozen", only="1").plan, bn.freeze(model, "1").plan):
        assert not plan.switches
        assert next(r.reason for r in plan.refusals if r.site.name == "1") is bn.Reason.TIED


# Files


def test_the_result_is_saved_and_replayed(tmp_path: Path) -> None:
    for number, (options, layer) in enumerate(
        [
            ({}, nn.BatchNorm2d),
            ({"to": "layer"}, BatchNormReLU),
            ({"to": "sync"}, nn.BatchNorm2d),
            ({"to": "instance"}, nn.BatchNorm2d),
        ]
    ):
        swapped = bn.swap(net(layer), inputs=X, **options)
        file = bn.save(swapped, tmp_path / f"{number}.safetensors")
        again = bn.replay(file, net(layer)).eval()
        assert torch.equal(again(X), swapped.model.eval()(X))
        pickled = bn.save(swapped, tmp_path / f"{number}.pt")
        assert torch.equal(bn.load(pickled, trust=["tests"]).eval()(X), again(X))


def test_auto_fits_where_other_rules_do_not() -> None:
    """32 groups for all, or groups of 16 channels, are none in many a model of torchvision."""
    from torchvision import models  # behind tests.zoo, which makes that possible

    names = (
        "resnet18 densenet121 mobilenet_v2 mobilenet_v3_small efficientnet_b0 mnasnet0_5 shufflenet_v2_x0_5"
    )
    channels: dict[str, set[int]] = {}
    for name in names.split():
        modules = models.get_model(name, weights=None).modules()
        channels[name] = {module.num_features for module in modules if isinstance(module, nn.BatchNorm2d)}
    assert all(c % groups_for(c) == 0 and groups_for(c) < c for sizes in channels.values() for c in sizes)
    assert {name for name, sizes in channels.items() if any(c % 32 for c in sizes)} >= {*names.split()[2:]}
    assert [name for name, sizes in channels.items() if any(c < 16 or c % (c // 16) for c in sizes)]
