"""Standardised convolutions against their equations, in the place of plain ones, and wherever layers go."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import bntools as bn
from bntools.core.quiet import quiet
from bntools.errors import UsageError
from bntools.norms import StandardizedConv1d, StandardizedConv2d, StandardizedConv3d
from bntools.norms.standardized import EPS, plain_of, standardization_of, standardize_, why_not
from tests.season import season

OURS = {1: StandardizedConv1d, 2: StandardizedConv2d, 3: StandardizedConv3d}
TORCHS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
KINDS: Mapping[str, tuple[int, int, int, Any, dict[str, Any]]] = {
    "1d": (1, 4, 6, 3, {}),
    "2d": (2, 4, 6, 3, {}),
    "3d": (3, 4, 6, 3, {}),
    "1d-stride-dilation": (1, 4, 6, 3, {"stride": 2, "dilation": 2, "padding": 2}),
    "2d-1x1": (2, 4, 6, 1, {}),
    "2d-oblong": (2, 4, 6, (3, 1), {"stride": (1, 2), "padding": (1, 0)}),
    "2d-groups": (2, 4, 6, 3, {"groups": 2}),
    "2d-depthwise": (2, 4, 8, 3, {"groups": 4}),
    "2d-no-bias": (2, 4, 6, 3, {"bias": False}),
    "2d-same": (2, 4, 6, 3, {"padding": "same"}),
    "3d-groups-dilation": (3, 4, 6, 2, {"groups": 2, "dilation": 2}),
    **{
        f"{space}d-{mode}": (space, 4, 6, 3, {"padding": 1, "padding_mode": mode})
        for space in (1, 2, 3)
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
}
every_kind = pytest.mark.parametrize("kind", KINDS)
each_space = pytest.mark.parametrize("kind", ["1d", "2d", "3d", "2d-groups", "2d-depthwise"])


@torch.no_grad()
def trained(conv: Any) -> Any:
    """Filters of different norms, and means of both signs, as those of a trained network."""
    n = conv.out_channels
    shape = (n, *(1 for _ in conv.weight.shape[1:]))
    scale, sign = torch.rand(n) * 2 + 0.2, torch.where(torch.arange(n) % 2 == 0, -1.0, 1.0)
    mean = sign * (0.1 + 0.4 * torch.rand(n))
    conv.weight.copy_(torch.randn(conv.weight.shape) * scale.view(shape) + mean.view(shape))
    if conv.bias is not None:
        conv.bias.copy_(torch.randn(n))
    return conv


def plain(kind: str) -> Any:
    space, inputs, outputs, size, options = KINDS[kind]
    return trained(TORCHS[space](inputs, outputs, size, **options)).double()


def made(kind: str, eps: float = 0.01) -> Any:
    """In float64, with a gain of both signs and an offset of its own, and an ε that can be seen."""
    space, inputs, outputs, size, options = KINDS[kind]
    conv = trained(OURS[space](inputs, outputs, size, eps=eps, **options)).double()
    with torch.no_grad():
        conv.gain.copy_(torch.randn(outputs) * 2)
        conv.offset.copy_(torch.randn(outputs))
    return conv


def drawn(kind: str, n: int = 3) -> Tensor:
    """Not around 0, or the mean of a filter would hardly be missed."""
    return torch.randn(n, KINDS[kind][1], *(7, 6, 5)[: KINDS[kind][0]], dtype=torch.float64) + 1


def standardized(conv: nn.Module, **options: Any) -> Any:
    twin = copy.deepcopy(conv)
    standardize_(twin, **options)
    return twin


def by_hand(conv: Any) -> Any:
    """The equations of the two papers, filter by filter, in NumPy."""
    weight, gain, offset = (getattr(conv, name).detach().numpy() for name in ("weight", "gain", "offset"))
    filters = []
    for own, g, m in zip(weight, gain, offset, strict=True):
        n = own.size
        mean = own.sum() / n
        var = ((own - mean) ** 2).sum() / n
        filters.append(g * (own - mean) / np.sqrt(var + conv.eps) / np.sqrt(n) + m)
    return np.stack(filters)


def off(found: Tensor, expected: Tensor) -> float:
    """How far two outputs are apart, in parts of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


# The equations


@every_kind
def test_it_computes_the_equations(kind: str) -> None:
    conv, x = made(kind), drawn(kind)
    expected = by_hand(conv)
    assert abs(conv.effective_weight().detach().numpy() - expected).max() <= 1e-12
    twin = plain(kind)
    with torch.no_grad():
        twin.weight.copy_(torch.from_numpy(expected))
        if twin.bias is not None:
            twin.bias.copy_(conv.bias)
    assert off(conv(x), twin(x)) <= 1e-12
    assert off(conv(x), plain(kind)(x)) > 0.05


@each_space
def test_a_fresh_one_has_filters_of_mean_0_and_norm_1(kind: str) -> None:
    space, inputs, outputs, size, options = KINDS[kind]
    conv = OURS[space](inputs, outputs, size, eps=1e-12, **options)
    fresh = [conv.effective_weight()]
    with torch.no_grad():
        trained(conv), conv.gain.fill_(3), conv.offset.fill_(2)
    conv.reset_parameters()
    for weight in (*fresh, conv.effective_weight()):
        rows = weight.detach().flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(outputs), rtol=0, atol=1e-6)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(outputs))


@each_space
def test_gradients(kind: str) -> None:
    conv, x = made(kind), drawn(kind, 2)
    names, own = zip(*conv.named_parameters(), strict=True)
    assert set(names) == {"weight", "bias", "gain"}

    def run(x: Tensor, *own: Tensor) -> Any:
        return functional_call(conv, dict(zip(names, own, strict=True)), (x,))

    given = [t.detach().clone().requires_grad_() for t in (x, *own)]
    assert torch.autograd.gradcheck(run, given)


@each_space
def test_no_gradient_moves_the_mean_or_the_norm_of_a_filter(kind: str) -> None:
    """It is orthogonal to the constants and to the filter; that of a plain convolution is to neither."""
    x = drawn(kind)
    for conv, least, most in ((made(kind, eps=1e-20), 0.0, 1e-12), (plain(kind), 1e-3, 1.0)):
        (conv(x) * torch.randn_like(conv(x))).sum().backward()
        assert conv.weight.grad is not None
        grad, rows = (t.detach().flatten(1) for t in (conv.weight.grad, conv.weight))
        for other in (torch.ones_like(rows), rows):
            cosine = (grad * other).sum(1) / grad.norm(dim=1) / other.norm(dim=1)
            assert bool((cosine.abs() >= least).all())
            assert bool((cosine.abs() <= most).all())


@each_space
def test_the_first_step_is_that_of_the_plain_convolution_without_its_mean(kind: str) -> None:
    """To first order: weight and gain together move the filter by the gradient that it had, less its mean."""
    old, x = plain(kind), drawn(kind)
    new = standardized(old, eps=1e-20)
    direction = torch.randn_like(old(x))
    for conv in (old, new):
        (conv(x) * direction).sum().backward()
    rows = old.weight.detach().flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    along = centred / centred.norm(dim=1, keepdim=True)
    found = new.weight.grad.flatten(1) + new.gain.grad.unsqueeze(1) * along
    grad = old.weight.grad.flatten(1)
    assert off(found, grad - grad.mean(1, keepdim=True)) <= 1e-12


@each_space
def test_shape_is_all_that_a_filter_gives(kind: str) -> None:
    """Filters times a number above 0, plus another, are the same filters; one value more is not."""
    conv = made(kind, eps=1e-20)
    before = conv.effective_weight().detach()
    with torch.no_grad():
        conv.weight.mul_(3.7).add_(0.9)
        assert off(conv.effective_weight(), before) <= 1e-12
        conv.weight.flatten(1)[:, 0] += 0.5
        assert off(conv.effective_weight(), before) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@each_space
def test_training_keeps_the_filters_standardised(kind: str, optimizer: str) -> None:
    conv, x = standardized(plain(kind)), drawn(kind)
    before, goal = copy.deepcopy(conv.state_dict()), plain(kind)(x).detach()
    options = {"lr": 1e-3, "weight_decay": 0.1}
    steps = {
        "sgd": lambda: torch.optim.SGD(conv.parameters(), momentum=0.9, **options),
        "adam": lambda: torch.optim.AdamW(conv.parameters(), **options),
    }[optimizer]()
    losses = []
    for _ in range(20):
        steps.zero_grad()
        loss = (conv(x) - goal).square().mean()
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        rows = (conv.effective_weight().flatten(1) - conv.offset.unsqueeze(1)) / conv.gain.unsqueeze(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros_like(conv.gain), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones_like(conv.gain), rtol=1e-4, atol=0)
    assert torch.equal(conv.offset, before["offset"])
    for name in ("weight", "gain", "bias"):
        assert not torch.equal(conv.state_dict()[name], before[name])


# In the place of a plain one


@every_kind
def test_it_computes_what_the_plain_one_did(kind: str) -> None:
    old, x = plain(kind), drawn(kind)
    new = standardized(old)
    assert type(new) is OURS[KINDS[kind][0]]
    assert off(new(x), old(x)) <= 1e-12
    assert off(new.effective_weight(), old.weight) <= 1e-12
    for name, value in (("gain", 1.0), ("offset", 0.0)):  # neither can be done without
        less = copy.deepcopy(new)
        less.get_parameter(name).data.fill_(value) if name == "gain" else less.offset.fill_(value)
        assert off(less(x), old(x)) > 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@every_kind
def test_other_types_are_near_their_rounding(kind: str, dtype: torch.dtype) -> None:
    """Gain, offset and filter are rounded to it: half a unit each of W − mean, of the mean and of W.

    Those of narrow ones come from float32, which computes with a few roundings more of its own.
    """
    old = plain(kind).to(dtype)
    new = standardized(old)
    assert {t.dtype for t in new.state_dict().values()} == {dtype}
    with torch.no_grad():
        apart = (new.effective_weight().double() - old.weight.double()).flatten(1).abs().amax(1)
    centred = old.weight.detach().double().flatten(1)
    size = centred.abs().amax(1) + centred.mean(1).abs()
    units = 4 if dtype is torch.float32 else 1.01
    assert float((apart / size).max()) <= units * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Squares of 0.0001 are below the smallest float16; a sum of 18 432 has no digits left in bfloat16."""
    old = trained(nn.Conv2d(2048, 2, 3))
    with torch.no_grad():
        old.weight.mul_(1e-3)
    new = standardized(old.to(dtype))
    exact = copy.deepcopy(new).double().effective_weight()
    apart, size = (new.effective_weight() - exact).detach().abs().max(), exact.detach().abs().max()
    assert float(apart) <= torch.finfo(dtype).eps / 2 * float(size)
    x = torch.randn(1, 2048, 4, 4, dtype=dtype)
    assert new(x).dtype == dtype


def test_autocast_narrows_the_convolution_alone() -> None:
    old, x = plain("2d").float(), drawn("2d").float()
    new = standardized(old)
    outside = new.effective_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(new.effective_weight(), outside)
        assert new(x).dtype == torch.bfloat16
        assert off(new(x).float(), old(x).float()) <= 2 * torch.finfo(torch.bfloat16).eps


def test_a_mean_far_from_0_leaves_digits() -> None:
    """Of a filter around 1000 with a σ of 1, the square of the mean would have 0.06 to the next float32."""
    old = nn.Conv2d(8, 4, 3)
    with torch.no_grad():
        old.weight.copy_(1000 + torch.randn(4, 8, 3, 3))
    new = standardized(old)
    centred = (new.effective_weight() - new.offset.view(4, 1, 1, 1)).detach().double()
    exact = old.weight.detach().double() - new.offset.double().view(4, 1, 1, 1)
    assert float((centred - exact).abs().max()) <= 2 * torch.finfo(torch.float32).eps * 1000


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_a_constant_filter_stays_what_it_was_and_can_be_trained(value: float) -> None:
    old, x = plain("2d").float(), drawn("2d").float()
    with torch.no_grad():
        old.weight[1] = value
    new = standardized(old)
    torch.testing.assert_close(new.effective_weight(), old.weight, rtol=1e-5, atol=1e-7)
    (new(x) - old(x).detach() + drawn("2d")[:, :1, :5, :4].float()).square().mean().backward()
    assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in new.parameters())
    with torch.no_grad():
        new.weight.sub_(1e-3 * new.weight.grad)
        assert float(new.effective_weight()[1].std()) > 1e-6


def test_in_front_of_a_group_norm() -> None:
    """It does not make up for a convolution standardised without gain and offset."""
    old = nn.Sequential(plain("2d"), nn.GroupNorm(2, 6).double())
    new, without = copy.deepcopy(old), copy.deepcopy(old)
    standardize_(new[0])
    kept = {"gain": 3 * torch.ones(6), "offset": torch.zeros(6)}
    standardize_(without[0], kept)
    x = drawn("2d")
    assert off(new(x), old(x)) <= 1e-12
    assert off(without(x), old(x)) > 0.1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_everything_else_stays(training: bool, frozen: bool) -> None:
    conv, seen = plain("2d").train(training), []
    conv.weight.requires_grad_(not frozen)
    conv.bias.requires_grad_(frozen)
    before = conv.register_forward_pre_hook(lambda *_: seen.append("before"))
    conv.register_forward_hook(lambda *_: seen.append("behind"))
    held = {name: (parameter, parameter.clone()) for name, parameter in conv.named_parameters()}
    standardize_(conv)
    for name, (parameter, value) in held.items():
        assert conv.get_parameter(name) is parameter
        assert torch.equal(parameter, value)
    assert conv.gain.requires_grad is not frozen
    assert conv.bias.requires_grad is frozen
    assert conv.training is training
    conv(drawn("2d"))
    before.remove()
    conv(drawn("2d"))
    assert seen == ["before", "behind", "behind"]
    assert [name for name, _ in conv.named_parameters()] == ["weight", "bias", "gain"]
    assert [name for name, _ in conv.named_buffers()] == ["offset"]


def test_who_else_reads_the_weight_reads_what_it_did() -> None:
    """A module under two names is one, and two with one weight keep it."""
    one, two = nn.Conv2d(3, 3, 3, padding=1).double(), nn.Conv2d(3, 3, 3, padding=1).double()
    trained(one), trained(two)
    two.weight = one.weight
    net = nn.Sequential(one, two, one)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected, value = net(x), one.weight.detach().clone()
    standardize_(one)
    assert net[2] is one
    assert torch.equal(two.weight, value)
    assert off(net(x), expected) <= 1e-12
    standardize_(two)
    assert two.weight is one.weight
    assert off(net(x), expected) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_given_is_taken(dtype: torch.dtype) -> None:
    conv = plain("2d").float()
    six = torch.arange(6, dtype=dtype)
    kept = {"gain": six.clone().requires_grad_(), "offset": (-six).requires_grad_()}
    new = standardized(conv, kept=kept, eps=0.5)
    kept["gain"].data.fill_(9), kept["offset"].data.fill_(9)
    assert new.gain.tolist() == [0, 1, 2, 3, 4, 5]
    assert new.offset.tolist() == [0, -1, -2, -3, -4, -5]
    assert new.gain.dtype == new.offset.dtype == torch.float32
    assert new.gain.is_leaf
    assert not new.offset.requires_grad
    assert new.eps == 0.5
    again = standardized(conv, kept=standardization_of(conv.weight, 0.5), eps=0.5)
    assert off(again.effective_weight(), conv.weight) <= 1e-6


# What is refused


class Scaled(nn.Conv2d):
    """Computes something of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def patched(name: str) -> nn.Module:
    conv = plain("2d")
    vars(conv)[name] = lambda *args: torch.zeros(())
    return conv


def with_attribute(name: str) -> nn.Module:
    conv = plain("2d")
    setattr(conv, name, 3.0)
    return conv


def filled(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    conv = nn.Conv1d(2, 2, 1).to(dtype)
    with torch.no_grad():
        conv.weight[0, :, 0] = torch.tensor([value, -value])
    return conv


REFUSED: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "one-value": (lambda: nn.Conv2d(6, 6, 1, groups=6), "one value"),
    "one-input": (lambda: nn.Conv1d(1, 6, 1), "one value"),
    "already": (lambda: made("2d"), "already"),
    "subclass": (lambda: Scaled(4, 6, 3), "a Scaled, not"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), "a ConvTranspose2d, not"),
    "lazy": (lambda: nn.LazyConv2d(6, 3), "a LazyConv2d, not"),
    "linear": (lambda: nn.Linear(4, 6), "a Linear, not"),
    "parametrized": (lambda: parametrizations.weight_norm(plain("2d")), "a ParametrizedConv2d, not"),
    "bias-parametrized": (lambda: parametrizations.weight_norm(plain("2d"), "bias"), "a ParametrizedConv2d"),
    "spectral-parametrized": (lambda: parametrizations.spectral_norm(plain("2d")), "a ParametrizedConv2d"),
    "spectral-norm": (lambda: spectral_norm(plain("2d")), "computed from other tensors"),
    "pruned": (lambda: prune.l1_unstructured(plain("2d"), "weight", 2), "computed from other tensors"),
    "bias-pruned": (lambda: prune.l1_unstructured(plain("2d"), "bias", 2), "computed from other tensors"),
    "forward": (lambda: patched("forward"), "forward is its own"),
    "conv-forward": (lambda: patched("_conv_forward"), "forward is its own"),
    "gain": (lambda: with_attribute("gain"), "by the name of gain"),
    "offset": (lambda: with_attribute("offset"), "by the name of offset"),
    "eps": (lambda: with_attribute("eps"), "by the name of eps"),
    "complex": (lambda: nn.Conv2d(4, 6, 3, dtype=torch.complex64), "complex64"),
    "meta": (lambda: nn.Conv2d(4, 6, 3, device="meta"), "meta device"),
    "nan": (lambda: filled(float("nan")), "not finite"),
    "infinite": (lambda: filled(float("inf")), "not finite"),
    "half-overflow": (lambda: filled(5e4, torch.float16), "not finite"),
}
FITS: Mapping[str, Callable[[], nn.Module]] = {
    "two-values": lambda: nn.Conv2d(12, 6, 1, groups=6),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "one-input": lambda: nn.Conv1d(1, 6, 2),
    "other-attribute": lambda: with_attribute("scale"),
    "own-method": lambda: patched("reset"),
    "no-bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "unpruned": lambda: prune.remove(prune.l1_unstructured(plain("2d"), "weight", 2), "weight"),
    "unparametrized": lambda: nn.utils.parametrize.remove_parametrizations(
        parametrizations.weight_norm(plain("2d")), "weight"
    ),
    "half": lambda: filled(4e4, torch.float16),
    "bfloat16": lambda: filled(5e4, torch.bfloat16),
    "single": lambda: filled(5e4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_standardised_stays_as_it_is(name: str) -> None:
    build, expected = REFUSED[name]
    conv = build()
    kind, before = type(conv), {key: dict(v) if isinstance(v, dict) else v for key, v in vars(conv).items()}
    assert expected in why_not(conv)
    with pytest.raises(UsageError, match=f"^{kind.__name__}: it cannot be standardised: .*{expected}"):
        standardize_(conv)
    assert type(conv) is kind
    assert vars(conv) == before


@pytest.mark.parametrize("name", FITS)
def test_what_differs_in_that_alone_can_be(name: str) -> None:
    conv = FITS[name]()
    expected = conv.weight.detach().clone()
    assert why_not(conv) == ""
    standardize_(conv)
    assert off(conv.effective_weight(), expected) <= 2 * torch.finfo(expected.dtype).eps


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_the_older_weight_norm_is_refused_until_it_is_removed() -> None:
    conv = weight_norm(plain("2d"))
    assert "computed from other tensors" in why_not(conv)
    nn.utils.remove_weight_norm(conv)
    assert why_not(conv) == ""


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"gain": torch.ones(6)},
        {"offset": torch.ones(6)},
        {"gain": torch.ones(6), "offset": torch.ones(5)},
        {"gain": torch.ones(1), "offset": torch.ones(6)},
        {"gain": torch.ones(6, 1, 1, 1), "offset": torch.ones(6)},
        {"gain": torch.ones(6), "offset": torch.ones(6), "bias": torch.ones(6)},
    ],
)
def test_other_tensors_do_not_fit(kept: dict[str, Tensor]) -> None:
    conv = plain("2d")
    with pytest.raises(UsageError, match=r"^Conv2d: expected gain and offset of shape \[6\], they are"):
        standardize_(conv, kept)
    assert type(conv) is nn.Conv2d
    assert [*conv.state_dict()] == ["weight", "bias"]


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_an_eps_that_is_none(eps: float) -> None:
    conv = plain("2d")
    with pytest.raises(UsageError, match="eps: expected a number above 0"):
        standardize_(conv, eps=eps)
    assert type(conv) is nn.Conv2d
    with pytest.raises(ValueError, match="eps: expected a number above 0"):
        StandardizedConv2d(4, 6, 3, eps=eps)


@pytest.mark.parametrize("space", OURS)
def test_filters_of_one_value_cannot_be_made(space: int) -> None:
    with pytest.raises(ValueError, match="weight: expected 2 values per filter or more"):
        OURS[space](6, 6, 1, groups=6)
    assert OURS[space](6, 6, 2, groups=6).gain.tolist() == [1] * 6


# And back


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_kind
def test_the_plain_one_computes_exactly_the_same(kind: str, dtype: torch.dtype) -> None:
    conv, x = made(kind).to(dtype), drawn(kind).to(dtype)
    back = plain_of(conv)
    assert type(back) is TORCHS[KINDS[kind][0]]
    assert torch.equal(back(x), conv(x))
    assert not torch.equal(conv.weight, back.weight)
    assert repr(back) == repr(plain(kind))
    assert vars(back).keys() == vars(plain(kind)).keys()
    fresh = TORCHS[KINDS[kind][0]](*KINDS[kind][1:4], **KINDS[kind][4]).to(dtype)
    fresh.load_state_dict(back.state_dict())
    assert torch.equal(fresh(x), conv(x))


def test_what_is_made_plain_has_nothing_in_common_with_what_it_was() -> None:
    conv, seen, x = made("2d").eval(), [], drawn("2d")
    conv.bias.requires_grad_(False)
    hook = conv.register_forward_hook(lambda module, *_: seen.append(type(module)))
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    back = plain_of(conv)
    assert (back.training, back.weight.requires_grad, back.bias.requires_grad) == (False, True, False)
    hook.remove()
    conv(x), back(x)
    assert seen == [nn.Conv2d]
    with torch.no_grad():
        back.weight.zero_(), back.bias.zero_()
    back.register_buffer("other", torch.ones(1), persistent=False)
    assert type(conv) is StandardizedConv2d
    assert [*conv.state_dict()] == [*before]
    assert all(torch.equal(conv.state_dict()[name], tensor) for name, tensor in before.items())
    assert conv._non_persistent_buffers_set == set()


def test_there_and_back_is_where_it_was() -> None:
    old, x = plain("2d-groups"), drawn("2d-groups")
    assert off(plain_of(standardized(old))(x), old(x)) <= 1e-12


def own_forward() -> nn.Module:
    conv = made("2d")
    vars(conv)["forward"] = conv.forward
    return conv


STUCK: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (
        lambda: plain("2d"),
        "expected a StandardizedConv1d or StandardizedConv2d or StandardizedConv3d",
    ),
    "linear": (lambda: nn.Linear(3, 3), "expected a StandardizedConv1d"),
    "parametrized": (lambda: parametrizations.spectral_norm(made("2d")), "expected a StandardizedConv1d"),
    "spectral-norm": (lambda: spectral_norm(made("2d")), "computed from other tensors"),
    "forward": (own_forward, "forward is its own"),
}


@pytest.mark.parametrize("name", STUCK)
def test_what_cannot_be_made_plain(name: str) -> None:
    module, expected = STUCK[name][0](), STUCK[name][1]
    with pytest.raises(UsageError, match=f"^{type(module).__name__}: it cannot be made plain: .*{expected}"):
        plain_of(module)


# State dicts


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("eps", [EPS, 0.1])
@every_kind
def test_it_loads_a_plain_one_and_computes_what_that_did(kind: str, eps: float, assign: bool) -> None:
    old, new = nn.Sequential(plain(kind)), nn.Sequential(made(kind, eps))
    given = old.state_dict()
    keys = [*given]
    assert str(new.load_state_dict(given, assign=assign)) == "<All keys matched successfully>"
    assert [*given] == keys
    x = drawn(kind)
    assert off(new(x), old(x)) <= 1e-12
    assert off(made(kind)(x), old(x)) > 0.05
    assert all(parameter.requires_grad for parameter in new.parameters())


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_it_loads_a_plain_one_of_another_type(dtype: torch.dtype, assign: bool) -> None:
    """It becomes that type, or is as near to the weights as its own has digits."""
    old, new = plain("2d").to(dtype), made("2d").float()
    new.load_state_dict(old.state_dict(), assign=assign)
    own = dtype if assign else torch.float32
    assert {tensor.dtype for tensor in new.state_dict().values()} == {own}
    digits = 2 * torch.finfo(own).eps if assign else 4 * torch.finfo(torch.float32).eps
    assert off(new.effective_weight().double(), old.weight.double()) <= digits


def test_its_own_state_goes_round() -> None:
    one, two = made("2d"), made("2d")
    assert [*one.state_dict()] == ["weight", "bias", "gain", "offset"]
    x = drawn("2d")
    assert not torch.equal(one(x), two(x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))
    assert all(torch.equal(two.state_dict()[name], tensor) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("gone", ["gain", "offset", "weight", "bias"])
def test_half_a_state_does_not_load(gone: str) -> None:
    given = {k: v for k, v in made("2d").state_dict().items() if k != gone}
    with pytest.raises(RuntimeError, match=f'Missing key.*"{gone}"'):
        made("2d").load_state_dict(given)


def test_a_plain_one_does_not_load_it() -> None:
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"gain", "offset"'):
        plain("2d").load_state_dict(made("2d").state_dict())


def test_weights_of_another_shape_are_told_as_torch_tells_them() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        made("2d").load_state_dict(plain("2d-groups").state_dict())


def test_nothing_to_load_leaves_gain_and_offset() -> None:
    conv = made("2d")
    before = copy.deepcopy(conv.state_dict())
    conv.load_state_dict({"bias": torch.zeros(6)}, strict=False)
    assert torch.equal(conv.gain, before["gain"])
    assert torch.equal(conv.offset, before["offset"])


def test_it_says_what_it_is() -> None:
    rest = "kernel_size=(3, 3), stride=(1, 1), eps=1e-06)"
    assert repr(StandardizedConv2d(2, 3, 3)) == f"StandardizedConv2d(2, 3, {rest}"
    assert repr(standardized(plain("2d"))) == f"StandardizedConv2d(4, 6, {rest}"


# Wherever a layer goes


@each_space
def test_copies_and_files(kind: str, tmp_path: Path) -> None:
    conv, x = standardized(plain(kind), eps=0.1), drawn(kind)
    torch.save(conv, tmp_path / "conv.pt")
    copies = [copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), bn.load(tmp_path / "conv.pt")]
    with torch.serialization.safe_globals([type(conv)]):
        copies.append(torch.load(tmp_path / "conv.pt", weights_only=True))
    with pytest.raises(pickle.UnpicklingError, match=type(conv).__name__):
        torch.load(tmp_path / "conv.pt", weights_only=True)
    state = io.BytesIO()
    torch.save(conv.state_dict(), state)
    state.seek(0)
    copies.append(made(kind, 0.1))
    copies[-1].load_state_dict(torch.load(state, weights_only=True))
    with torch.no_grad():
        conv_before = conv(x)
        conv.weight.add_(torch.randn_like(conv.weight)), conv.gain.mul_(2), conv.offset.add_(1)
    for each in copies:
        assert type(each) is type(conv)
        assert torch.equal(each(x), conv_before)
        assert each.eps == 0.1


def test_it_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    conv, x = made("2d"), drawn("2d")
    with quiet():
        run = torch.compile(copy.deepcopy(conv), backend="eager", fullgraph=True)
        torch.testing.assert_close(run(x), conv(x))


@pytest.mark.parametrize("kind", ["1d", "2d", "3d", "2d-groups", "2d-depthwise", "2d-reflect", "2d-no-bias"])
def test_onnx_runtime_computes_the_same(kind: str) -> None:
    conv, x = made(kind).float().eval(), drawn(kind).float()
    with quiet(), torch.no_grad():
        batch = torch.export.Dim.DYNAMIC
        program = torch.export.export(conv, (x,), dynamic_shapes=({0: batch},), strict=False)
        file = torch.onnx.export(program, dynamo=True, verbose=False)
        assert file is not None
        content = file.model_proto.SerializeToString()
    torch.testing.assert_close(program.module()(x), conv(x))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for given in (x, torch.cat([x, -2 * x, x + 1]), x[:1]):
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        assert off(torch.from_numpy(found), conv(given)) <= 2e-6


def test_a_batch_norm_folds_into_the_plain_one_alone() -> None:
    net = season(nn.Sequential(made("2d").float(), nn.BatchNorm2d(6))).eval()
    x = drawn("2d", 4).float()
    surgery = bn.fold(net, x)
    assert [(r.site.name, r.reason) for r in surgery.plan.refusals] == [("1", bn.Reason.COMPUTED_WEIGHT)]
    assert surgery.plan.edits == ()
    back = nn.Sequential(plain_of(net[0]), net[1])
    surgery = bn.fold(back, x)
    assert [edit.site.name for edit in surgery.plan.edits] == ["1"]
    assert surgery.report.verdict is bn.Verdict.PASSED
    assert off(surgery.model(x), net(x)) <= 1e-5
