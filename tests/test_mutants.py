"""Planted faults: each must turn verification red, or the check would be worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import algebra, carry, compute, find, maps, mixes, reshapes, sites
from bntools.core.flow import Flow, Pin
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
    return lambda m: m.setattr(maps, "affine_of", change)


def _weight(change: Callable[..., Tensor]) -> Patch:
    return lambda m: m.setattr(compute, "fold_weight", change)


def _bias(change: Callable[..., Tensor]) -> Patch:
    return lambda m: m.setattr(compute, "fold_bias", change)


def _carries(op: str) -> Patch:
    """It lets any map pass, on the axes on which the map lies."""
    return lambda m: m.setattr(carry, "RULES", {**carry.RULES, op: reshapes.same})


def _lets_pass(what: Pin) -> Patch:
    """Nothing requires that of anything."""
    pin = Flow.pin
    return lambda m: m.setattr(
        Flow, "pin", lambda self, lane, pinned, *rest: pin(self, lane, pinned & ~what, *rest)
    )


right, fold_weight, fold_bias = algebra.affine_of, algebra.fold_weight, algebra.fold_bias
shift_of = algebra.shift_of


def _columns(w: Tensor, s: Tensor, t: Tensor, layout: str, groups: int = 1, r: Any = None) -> Tensor:
    if layout == "rows" and w.shape[0] == w.shape[1]:
        return fold_weight(w.transpose(0, 1), s, t, layout).transpose(0, 1)
    return fold_weight(w, s, t, layout, groups, r)


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
    "weight unscaled": _weight(lambda w, s, t, layout, groups=1, r=None: w),
    "groups ignored": _weight(
        lambda w, s, t, layout, groups=1, r=None: fold_weight(
            w, s[: w.shape[1]].repeat(groups) if layout == "transposed" else s, t, layout, groups, r
        )
    ),
    "bias unscaled": _bias(lambda b, s, t, a: t if b is None else b + t),
    "old bias dropped": _bias(lambda b, s, t, a: t),
    "shift dropped": _bias(lambda b, s, t, a: torch.zeros_like(t) if b is None else b * s),
    "channels rolled": _bias(lambda b, s, t, a: fold_bias(b, s, t, a).roll(1)),
}

# What only a fold into readers can get wrong.
BEHIND: dict[str, Patch] = {
    **{name: ALGEBRA[name] for name in list(ALGEBRA)[:12]},
    "columns unscaled": _weight(
        lambda w, s, t, layout, groups=1, r=None: fold_weight(w, s, t, layout, groups)
    ),
    "columns divided": _weight(
        lambda w, s, t, layout, groups=1, r=None: fold_weight(
            w, s, t, layout, groups, None if r is None else 1 / r
        )
    ),
    "columns rolled": _weight(
        lambda w, s, t, layout, groups=1, r=None: fold_weight(
            w, s, t, layout, groups, None if r is None else r.roll(1)
        )
    ),
    "groups of columns ignored": _weight(
        lambda w, s, t, layout, groups=1, r=None: fold_weight(
            w, s, t, layout, groups, None if r is None else r[: len(r) // groups].repeat(groups)
        )
    ),
    "what the shift adds dropped": _bias(lambda b, s, t, a: fold_bias(b, s, t)),
    "what the shift adds doubled": _bias(lambda b, s, t, a: fold_bias(b, s, t, None if a is None else 2 * a)),
    "one tap of the kernel": lambda m: m.setattr(
        compute,
        "shift_of",
        lambda w, v, layout, groups=1: shift_of(w[..., :1] if w.ndim > 2 else w, v, layout, groups),
    ),
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
    return Apply(
        lambda m, v: m.bn(y := m.conv(v)) + y.sigmoid(), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)
    )


def returns_both() -> nn.Module:
    return Apply(lambda m, v: (m.bn(y := m.conv(v)), y), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def serves_twice() -> nn.Module:
    return Apply(lambda m, v: m.bn(m.conv(v)) + m.conv(v * 2), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def wrong_axis() -> nn.Module:
    return Apply(lambda m, v: m.bn(m.conv(v).transpose(1, 2)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


@pytest.mark.parametrize("fault", BEHIND)
def test_a_fault_in_the_algebra_of_readers_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = season(
        nn.Sequential(
            nn.Tanh(),
            nn.BatchNorm2d(4, eps=1e-3),
            nn.Conv2d(4, 6, 3, groups=2, bias=False),
            nn.Tanh(),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(96, 4),
        ).eval()
    )
    plan = bn.fold(model, x(2, 4, 6, 6)).plan
    assert [edit.side for edit in plan.edits] == ["downstream", "downstream"]
    BEHIND[fault](monkeypatch)
    with pytest.raises(bn.PromiseError):
        bn.fold(model, x(2, 4, 6, 6))


def ignored(name: str, result: Any) -> Patch:
    owner = next(module for module in (find, carry) if hasattr(module, name))
    return lambda m: m.setattr(owner, name, lambda *_, **__: result)


def written_over() -> nn.Module:
    def forward(m: Any, v: Tensor) -> Tensor:
        y = m.conv(v)
        return m.out(y + m.next(torch.relu_(m.bn(y))))

    layers = {"conv": nn.Conv2d(3, 4, 3), "next": nn.Conv2d(4, 4, 1), "out": nn.Conv2d(4, 2, 1)}
    return Apply(forward, bn=nn.BatchNorm2d(4), **layers)


def of_two_minds() -> nn.Module:
    """Two readers of a max pooling, which passes no negative scale."""
    return _between(lambda v: nn.functional.max_pool2d(v, 2))


PLANNING: dict[str, tuple[Callable[[], nn.Module], Patch]] = {
    "what is returned ignored": (returns_both, ignored("_pin_outside", None)),
    "second call of the host ignored": (serves_twice, ignored("_share", None)),
    "values that are read ignored": (
        reads_twice,
        lambda m: m.setattr(Flow, "opaque", lambda self, call: None),
    ),
    "stale values ignored": (lambda: in_place(), ignored("_pin_stale", None)),
    "overwriting ignored": (lambda: _positive(written_over()), ignored("find_overwritten", {})),
    "relu carries": (lambda: _between(torch.relu), _carries("relu")),
    "relu passes shifts": (lambda: _positive(_between(torch.relu)), _lets_pass(Pin.SHIFT)),
    "relu passes signs": (lambda: _still(_between(torch.relu)), _lets_pass(Pin.SIGN)),
    "zero padding carries": (lambda: _between(lambda v: nn.functional.pad(v, (1, 1, 1, 1))), _carries("pad")),
    "max pooling carries": (of_two_minds, _carries("max_pool2d")),
    "a softmax carries": (lambda: _between(lambda v: v.softmax(2)), _carries("softmax")),
    "a sum of one fixed term carries": (
        lambda: _between(lambda v: v + v.new_ones(v.shape)),
        lambda m: m.setattr(mixes, "is_ground", lambda lane: False) or _lets_pass(Pin.SCALE)(m),
    ),
    "transposition carries the axis": (wrong_axis, _carries("transpose")),
    "what a subclass does besides is dropped": (
        lambda: Apply(lambda m, v: m.bn(m.conv(v)), conv=nn.Conv2d(3, 4, 3), bn=_Doubling(4)),
        lambda m: m.setattr(sites, "_keeps", lambda *_: ()),
    ),
}


def in_place() -> nn.Module:
    def forward(m: Any, v: Tensor) -> Tensor:
        y = m.conv(v)
        y[:, :2].mul_(3)
        return m.bn(y)

    return Apply(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def _positive(net: nn.Module) -> nn.Module:
    net.after = lambda: net.bn.weight.data.abs_()
    return net


def _still(net: nn.Module) -> nn.Module:
    net.after = lambda: (net.bn.running_mean.zero_(), net.bn.bias.data.zero_())
    return net


class _Doubling(nn.BatchNorm2d):
    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v) * 2


def _between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Apply(lambda m, v: m.bn(function(m.conv(v))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


@pytest.mark.parametrize("fault", PLANNING)
def test_a_fault_in_the_plan_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, patch = PLANNING[fault]
    model = season(build().eval())
    with torch.no_grad():
        getattr(model, "after", lambda: None)()
    inputs = x(2, 3, 6, 6)
    assert bn.fold(model, inputs).plan.refusals, "the right plan refuses a site"
    patch(monkeypatch)
    with pytest.raises(bn.PromiseError):
        bn.fold(model, inputs)


def test_a_fault_in_the_shipped_tensors_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is in float64; what ships must be the rounding of what was proven."""

    def nudge(w: Tensor, s: Tensor, t: Tensor, layout: str, groups: int = 1, r: Any = None) -> Tensor:
        folded = fold_weight(w, s, t, layout, groups, r)
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
    monkeypatch.setattr(maps, "affine_of", lambda g, b, m, v, eps: (torch.ones_like(m), torch.zeros_like(m)))
    with pytest.raises(bn.PromiseError):
        bn.fold(fresh, inputs)
