"""What a capture sees, and that it leaves no trace."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntools as bn
from bntools.core.calls import Stored, Value
from bntools.core.capture import capture, fingerprint
from bntools.core.leaves import held_besides
from bntools.core.sites import find_sites
from tests.must_fold import Apply, x
from tests.season import season
from tests.zoo import build


def captured(model: nn.Module, *inputs: Any) -> bn.Capture:
    return capture(model, bn.Example(inputs))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:levit_128s", "timm:repghostnet_050"])
def test_it_sees_the_operators_that_export_sees(name: str) -> None:
    """torch.export refuses more, and takes longer; where it works, both must tell the same."""
    model, example = build(name)
    capture(model, bn.Example((example,)))  # LeViT fills a cache at its first forward
    ours = [c.op for c in captured(model, example).calls]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (example,), strict=False)
    theirs = [n.target for n in program.graph.nodes if n.op == "call_function"]
    named = [t._schema.name.removeprefix("aten::") for t in theirs if hasattr(t, "_schema")]
    assert ours == named
    weights = {n.name: key for n, key in _parameters(program)}
    convolutions = [n for n in program.graph.nodes if n.op == "call_function" and "conv2d" in str(n.target)]
    exported = [weights[n.args[1].name] for n in convolutions]
    assert exported == [c.args["weight"].keys[0] for c in captured(model, example).calls if c.op == "conv2d"]


def _parameters(program: Any) -> list[tuple[Any, str]]:
    names = program.graph_signature.inputs_to_parameters
    return [(n, names[n.name]) for n in program.graph.nodes if n.name in names]


def test_tensors_are_joined_by_identity() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    calls = captured(Apply(lambda m, v: m.b(m.a(v)), a=a, b=b), x(2, 3)).calls
    assert calls[0].args["weight"] is calls[1].args["weight"]
    assert calls[0].args["weight"].keys == ("a.weight", "b.weight")
    assert calls[0].args["bias"].keys == ("a.bias",)


def test_views_share_memory_and_copies_do_not() -> None:
    calls = captured(Apply(lambda m, v: (v * 2).flatten(1).clone()), x(2, 3, 4)).calls
    product, view, copy = (c.outputs[0].memory for c in calls)
    assert product == view != copy


def test_an_in_place_operator_makes_a_new_value_in_the_same_memory() -> None:
    calls = captured(Apply(lambda m, v: (v * 2).relu_()), x(2, 3)).calls
    before, after = calls[0].outputs[0], calls[1].outputs[0]
    assert before.id != after.id
    assert before.memory == after.memory
    assert calls[1].writes == {after.memory}


def test_memory_that_was_freed_is_not_taken_for_an_alias() -> None:
    """A thousand temporaries reuse few addresses; each still is a memory of its own."""

    def forward(m: Any, v: Tensor) -> Tensor:
        for _ in range(200):
            v = v + 1
        return v

    calls = captured(Apply(forward), x(2, 3)).calls
    assert len({c.outputs[0].memory for c in calls}) == 200


def test_shape_only_arguments_are_not_read() -> None:
    calls = captured(Apply(lambda m, v: (v * 2).reshape_as(v)), x(2, 3)).calls
    assert [type(t) for t in calls[1].reads()] == [Value]


def test_owners_are_the_innermost_modules() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.ReLU())
    assert [c.owner for c in captured(net, x(2, 3)).calls] == ["0.0", "1"]


def test_the_second_call_of_a_shared_batchnorm_has_a_name() -> None:
    net = Apply(lambda m, v: m.bn(m.bn(v)), bn=nn.BatchNorm1d(3)).eval()
    sites, unanswered = find_sites(captured(net, x(2, 3)))
    assert [s.site.name for s in sites] == ["bn", "bn#2"]
    assert not unanswered


def test_weight_standardisation_is_no_site_and_its_twin_on_activations_is() -> None:
    weight = nn.Linear(6, 4)

    def on_weight(m: Any, v: Tensor) -> Tensor:
        return F.linear(v, F.batch_norm(m.fc.weight[None], None, None, training=True)[0])

    def on_values(m: Any, v: Tensor) -> Tensor:
        return F.batch_norm(m.fc(v), None, None, training=True)

    assert not find_sites(captured(Apply(on_weight, fc=weight), x(2, 6)))[0]
    assert len(find_sites(captured(Apply(on_values, fc=weight), x(2, 6)))[0]) == 1


def test_an_instance_norm_on_its_own_statistics_is_no_site_and_one_on_running_ones_is() -> None:
    tracking = nn.InstanceNorm2d(3, track_running_stats=True)
    for norm, training, sites in (
        (nn.InstanceNorm2d(3), False, 0),
        (tracking, False, 1),
        (tracking, True, 0),
    ):
        assert len(find_sites(captured(norm.train(training), x(2, 3, 4, 4)))[0]) == sites


def test_modes_hooks_random_state_and_buffers_are_as_before() -> None:
    net = season(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train())
    net[0].weight.grad = torch.ones(3, 3)
    buffers = {k: b.clone() for k, b in net.named_buffers()}
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    captured(net, x(4, 3))
    assert all(torch.equal(b, buffers[k]) for k, b in net.named_buffers())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.is_grad_enabled()
    assert torch.equal(net[0].weight.grad, torch.ones(3, 3))
    assert not nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("error", [ValueError("no\nluck"), KeyboardInterrupt()])
def test_no_trace_is_left_when_the_forward_fails(error: BaseException) -> None:
    def forward(m: Any, v: Tensor) -> Tensor:
        m.bn(v)
        m.eval()
        raise error

    net = season(Apply(forward, bn=nn.BatchNorm1d(3)).train())
    mean, rng = net.bn.running_mean.clone(), torch.get_rng_state()
    with pytest.raises(bn.CaptureError if isinstance(error, Exception) else KeyboardInterrupt) as caught:
        captured(net, x(4, 3))
    if isinstance(error, Exception):
        assert "\n" not in caught.value.message
        assert "4x3" in caught.value.message
    assert net.training
    assert net.bn.training
    assert torch.equal(net.bn.running_mean, mean)
    assert torch.equal(rng, torch.get_rng_state())
    assert not nn.modules.module._has_any_global_hook()


def test_an_embedding_that_renormalises_is_as_before() -> None:
    table = nn.Embedding(5, 3, max_norm=0.1)
    weight = table.weight.detach().clone()
    calls = captured(table, torch.tensor([[1, 2]])).calls
    assert torch.equal(table.weight, weight)
    stored = next(t for t in calls[-1].reads() if isinstance(t, Stored))
    assert any(stored.memory in c.writes for c in calls), "the plan must know that the weight is written to"


class OneSlot:
    """As Python allows it: a single name, and not a tuple of names."""

    __slots__ = "weight"

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


class _PrivateSlot:
    __slots__ = ("__weight",)

    def __init__(self, weight: Tensor) -> None:
        self.__weight = weight

    def norm(self) -> Tensor:
        return self.__weight.norm()


def by_keyword(weight: Tensor) -> Callable[[], Tensor]:
    def norm(*, held: Tensor = weight) -> Tensor:
        return held.norm()

    return norm


def as_attribute(weight: Tensor) -> Callable[[], Tensor]:
    def norm() -> Tensor:
        held: Tensor = norm.__dict__["weight"]
        return held.norm()

    norm.__dict__["weight"] = weight
    return norm


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "a closure": lambda w: lambda: w,
    "a default": lambda w: lambda held=w: held,
    "a keyword's default": by_keyword,
    "a function's attribute": as_attribute,
    "the function of a method": lambda w: MethodType(lambda self, held=w: held, 0),
    "a single slot": OneSlot,
    "a private slot": _PrivateSlot,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_who_else_holds_a_tensor_is_found(holder: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net.held = HOLDERS[holder](net[0].weight)
    assert held_besides(net) == {id(net[0].weight): "held of the model"}
    net.held = HOLDERS[holder](torch.ones(4, 3, 1, 1))
    assert id(net[0].weight) not in held_besides(net)


class Builtin(nn.Module):
    """Python cannot tell what a builtin takes."""

    forward = staticmethod(torch.relu)


def test_a_dict_is_keywords_where_a_forward_tells_no_names() -> None:
    example = bn.Example.of({"input": torch.tensor([-1.0, 2.0])}, Builtin())
    assert example(Builtin()).tolist() == [0.0, 2.0]
    assert bn.Example.of({"a": x(1)}, nn.ReLU()).kwargs == {}


def test_the_fingerprint_is_of_the_architecture() -> None:
    one, two = (build("torchvision:resnet18")[0] for _ in range(2))
    with torch.no_grad():
        two.conv1.weight.zero_()
    assert fingerprint(one) == fingerprint(two)
    two.fc = nn.Linear(two.fc.in_features, 7)
    assert fingerprint(one) != fingerprint(two)
