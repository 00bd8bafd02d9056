"""Planted faults: each must turn verification red, or the check would be worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import affine, algebra, compute, conflicts, find, hosts, sites
from tests.must_fold import Apply, x
from tests.season import season

Patch = Callable[[pytest.MonkeyPatch], None]


def net(groups: int = 1) -> nn.Module:
    """Seasoned, with C_in = C_out and a height equal to the channels, which hides faults of axis."""
    return season(
        nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4, eps=1e-3),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 4, 3, padding=1, groups=groups),
            nn.BatchNorm2d(4),
            nn.Flatten(2),
            nn.Linear(24, 4, bias=False),
            nn.Flatten(0, 1),
            nn.BatchNorm1d(4),
        ).eval()
    )


def _affine(change: Callable[..., tuple[Tensor, Tensor]]) -> Patch:
    return lambda m: m.setattr(compute, "affine_of", change)


def _weight(change: Callable[..., Tensor]) -> Patch:
    return lambda m: m.setattr(compute, "fold_weight", change)


def _bias(change: Callable[..., Tensor]) -> Patch:
    return lambda m: m.setattr(compute, "fold_bias", change)


def _carries(op: str) -> Patch:
    return lambda m: m.setattr(find, "CARRIERS", {**affine.CARRIERS, op: affine._same})


right, fold_weight, fold_bias = algebra.affine_of, algebra.fold_weight, algebra.fold_bias


def _columns(w: Tensor, s: Tensor, t: Tensor, layout: str, groups: int = 1) -> Tensor:
    if layout == "rows" and w.shape[0] == w.shape[1]:
        return fold_weight(w.transpose(0, 1), s, t, layout).transpose(0, 1)
    return fold_weight(w, s, t, layout, groups)


ALGEBRA: dict[str, Patch] = {
    "eps dropped": _affine(lambda g, b, mean, var, eps: right(g, b, mean, var, 0.0)),
    "eps outside the root": _affine(
        lambda g, b, m, v, eps: (g / (v.sqrt() + eps), b - m * g / (v.sqrt() + eps))
    ),
    "root forgotten": _affine(lambda g, b, m, v, eps: (g / (v + eps), b - m * g / (v + eps))),
    "mean skipped": _affine(lambda g, b, m, v, eps: right(g, b, torch.zeros_like(m), v, eps)),
    "mean unscaled": _affine(lambda g, b, m, v, eps: (right(g, b, m, v, eps)[0], b - m)),
    "gamma skipped": _affine(lambda g, b, m, v, eps: right(None, b, m, v, eps)),
    "gamma's sign lost": _affine(lambda g, b, m, v, eps: right(g.abs(), b, m, v, eps)),
    "beta skipped": _affine(lambda g, b, m, v, eps: right(g, None, m, v, eps)),
    "sign of the shift": _affine(
        lambda g, b, m, v, eps: (right(g, b, m, v, eps)[0], -right(g, b, m, v, eps)[1])
    ),
    "gamma and beta swapped": _affine(lambda g, b, m, v, eps: right(b, g, m, v, eps)),
    "one channel wrong": _affine(
        lambda g, b, m, v, eps: right(g.index_fill(0, torch.tensor([2]), 0.5), b, m, v, eps)
    ),
    "a millionth off": _affine(lambda g, b, m, v, eps: right(g * (1 + 1e-6), b, m, v, eps)),
    "wrong axis": _weight(_columns),
    "weight unscaled": _weight(lambda w, s, t, layout, groups=1: w),
    "groups ignored": _weight(
        lambda w, s, t, layout, groups=1: fold_weight(
            w, s[: w.shape[1]].repeat(groups) if layout == "transposed" else s, t, layout, groups
        )
    ),
    "bias unscaled": _bias(lambda b, s, t: t if b is None else b + t),
    "old bias dropped": _bias(lambda b, s, t: t),
    "shift dropped": _bias(lambda b, s, t: torch.zeros_like(t) if b is None else b * s),
    "channels rolled": _bias(lambda b, s, t: fold_bias(b, s, t).roll(1)),
}


@pytest.mark.parametrize("fault", ALGEBRA)
def test_a_fault_in_the_algebra_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(groups=2)
    inputs = x(2, 4, 4, 6)
    assert bn.fold(model, inputs).report.verdict is bn.Verdict.PASSED
    ALGEBRA[fault](monkeypatch)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(bn.PromiseError) as caught:
        bn.fold(model, inputs, inplace=True)
    assert caught.value.report.verdict is bn.Verdict.FAILED
    first = "4" if fault == "groups ignored" else "1"
    if fault not in ("old bias dropped", "bias unscaled"):  # the last host has none
        assert caught.value.report.broken in (first, "4", "8")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model is not as it was"
    assert isinstance(model[1], nn.BatchNorm2d)


def reads_twice() -> nn.Module:
    return Apply(lambda m, v: m.bn(y := m.conv(v)) + y, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def serves_twice() -> nn.Module:
    return Apply(lambda m, v: m.bn(m.conv(v)) + m.conv(v * 2), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def one_bn_left() -> nn.Module:
    return Apply(
        lambda m, v: m.bn(torch.relu(m.bn(m.conv(v)))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)
    )


def wrong_axis() -> nn.Module:
    return Apply(lambda m, v: m.bn(m.conv(v).transpose(1, 2)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def ignored(m: pytest.MonkeyPatch, name: str, result: Any) -> None:
    m.setattr(find if hasattr(find, name) else conflicts, name, lambda *_: result)


def _any_axis(m: pytest.MonkeyPatch) -> None:
    monkey = {
        op: (lambda call: affine.HostCall(2, "rows", call.args["weight"], call.args["bias"]))
        for op in ("conv2d",)
    }
    m.setattr(hosts, "HOSTS", {**affine.HOSTS, **monkey})


PLANNING: dict[str, tuple[Callable[[], nn.Module], Patch]] = {
    "second reader ignored": (reads_twice, lambda m: ignored(m, "_check_only_read_on", None)),
    "second call of the host ignored": (serves_twice, lambda m: ignored(m, "_of_host", ())),
    "second call of the BatchNorm ignored": (one_bn_left, lambda m: ignored(m, "_of_batchnorm", ())),
    "axis not checked": (wrong_axis, _any_axis),
    "relu carries": (lambda: _between(torch.relu), _carries("relu")),
    "zero padding carries": (lambda: _between(lambda v: nn.functional.pad(v, (1, 1, 1, 1))), _carries("pad")),
    "max pooling carries": (
        lambda: _between(lambda v: nn.functional.max_pool2d(v, 2)),
        _carries("max_pool2d"),
    ),
    "a scaling carries": (lambda: _between(lambda v: v * 3), _carries("mul")),
    "transposition carries the axis": (wrong_axis, _carries("transpose")),
    "what a subclass does besides is dropped": (
        lambda: Apply(lambda m, v: m.bn(m.conv(v)), conv=nn.Conv2d(3, 4, 3), bn=_Doubling(4)),
        lambda m: m.setattr(sites, "_keeps", lambda *_: ()),
    ),
}


class _Doubling(nn.BatchNorm2d):
    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v) * 2


def _between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Apply(lambda m, v: m.bn(function(m.conv(v))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


@pytest.mark.parametrize("fault", PLANNING)
def test_a_fault_in_the_plan_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, patch = PLANNING[fault]
    model = season(build().eval())
    inputs = x(2, 3, 6, 6)
    assert bn.fold(model, inputs).plan.refusals, "the right plan refuses a site"
    patch(monkeypatch)
    with pytest.raises(bn.PromiseError):
        bn.fold(model, inputs)


def test_a_fault_in_the_shipped_tensors_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is in float64; what ships must be the rounding of what was proven."""

    def nudge(w: Tensor, s: Tensor, t: Tensor, layout: str, groups: int = 1) -> Tensor:
        folded = fold_weight(w, s, t, layout, groups)
        if w.dtype is torch.float32:
            folded.view(-1)[0] *= 1 + 1e-5
        return folded

    monkeypatch.setattr(compute, "fold_weight", nudge)
    with pytest.raises(bn.PromiseError, match="is not the tensor that was proven right") as caught:
        bn.fold(net(), x(2, 4, 4, 6))
    assert caught.value.report.broken == "1"


def test_a_check_without_power_is_inconclusive() -> None:
    """The branch with the BatchNorm is multiplied by zero: no fault in it could show at the output."""
    dead = Apply(
        lambda m, v: m.bn(m.conv(v)) * 0 + v[:, :1, 1:-1, 1:-1], conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)
    )
    report = bn.fold(season(dead.eval()), x(2, 3, 6, 6)).report
    assert report.verdict is bn.Verdict.INCONCLUSIVE
    assert report.power == 0


def test_an_identity_is_inconclusive_and_a_fresh_batchnorm_is_not() -> None:
    """A fresh BatchNorm moves its input by 5e-6: a float32 tolerance is blind to it, float64 is not."""
    for eps, verdict in ((0.0, bn.Verdict.INCONCLUSIVE), (1e-5, bn.Verdict.PASSED)):
        fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps)).eval()
        assert bn.fold(fresh, x(2, 3, 6, 6)).report.verdict is verdict


def test_a_deleted_fresh_batchnorm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    inputs = x(2, 3, 6, 6)
    assert torch.allclose(fresh(inputs), fresh[0](inputs), atol=1e-4), "allclose does not see it"
    monkeypatch.setattr(
        compute, "affine_of", lambda g, b, m, v, eps: (torch.ones_like(m), torch.zeros_like(m))
    )
    with pytest.raises(bn.PromiseError):
        bn.fold(fresh, inputs)
