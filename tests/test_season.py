"""The seasoning is what lets every other test fail, so it is tested first."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from tests import zoo
from tests.season import BATCHES, season


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.BatchNorm2d(16, affine=False),
        FrozenBatchNorm2d(16),
        nn.InstanceNorm2d(16, track_running_stats=True),
    )


def example() -> Tensor:
    return torch.randn(2, 3, 9, 9)


def bypass(bn: nn.Module) -> None:
    """Make *bn* the identity, as a fold that deletes it does."""
    fresh = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}
    for name, value in fresh.items():
        if isinstance(tensor := getattr(bn, name, None), Tensor):
            tensor.data.fill_(value)


@pytest.mark.parametrize("given", [None, torch.ones(2, 3, 9, 9).normal_(3, 2)])
def test_statistics_are_those_of_a_trained_network(given: Tensor | None) -> None:
    bn = season(net(), example=given)[1]
    assert bn.weight.min() < -0.4
    assert bn.weight.max() > 0.4
    assert bn.weight.abs().min() >= 0.4
    assert bn.bias.std() > 0.2
    assert bn.running_mean.abs().median() > 0.2
    assert (bn.running_var.log().abs() > 0.1).any()
    assert bn.num_batches_tracked == BATCHES


def test_zero_plants_one_dead_channel_a_layer() -> None:
    model = season(net(), zero=True)
    assert [int((model[i].weight == 0).sum()) for i in (1, 5)] == [1, 1]
    assert not (season(net())[1].weight == 0).any()


def test_equal_seeds_give_equal_values_and_others_do_not() -> None:
    model, x = net(), example()
    one, two, other = (season(copy.deepcopy(model), seed, example=x).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["1.weight"], other["1.weight"])


def test_mode_and_random_state_are_left_alone() -> None:
    model, x, state = net().train(), example(), torch.get_rng_state()
    model[1].eval()
    season(model, example=x)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model)


@pytest.mark.parametrize("name", zoo.SAMPLE)
def test_every_norm_of_a_deep_network_matters(name: str) -> None:
    model, x = zoo.build(name)
    norms = [path for path, module in model.named_modules() if hasattr(module, "running_mean")]
    with torch.no_grad():
        reference = head(model(x))
        scale = reference.abs().max()
        assert 1e-6 < scale < 1e6
        assert (head(model(x.flip(-1))) - reference).abs().max() > 1e-2 * scale
        for path in norms[:: max(1, len(norms) // 4)]:
            bn = model.get_submodule(path)
            kept = copy.deepcopy(bn.state_dict())
            bypass(bn)
            assert (head(model(x)) - reference).abs().max() > 1e-3 * scale, path
            bn.load_state_dict(kept)


def head(output: Tensor | dict[str, Tensor]) -> Tensor:
    return output["out"] if isinstance(output, dict) else output
