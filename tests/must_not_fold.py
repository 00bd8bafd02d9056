"""Small networks in which a BatchNorm must stay: each with the reason that must be given, site by site.

Almost all are one step away from a case in must_fold.py: the step is what makes a fold wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntools.core.reasons import Reason
from tests.must_fold import (
    Apply,
    BatchNormAct,
    Spelt,
    a_square,
    beside_itself,
    bn2d,
    changed,
    conv,
    flat_vector,
    forward,
    positive,
    pruned,
    sequential,
    unshifted,
    x,
)


@dataclass(frozen=True)
class Case:
    """A network, what it is called with, and the reason for each site that must be refused.

    `fold` names the sites that must fold beside them.
    """

    name: str
    build: Callable[[], nn.Module]
    refuse: dict[str, Reason]
    inputs: Any = field(default_factory=lambda: x(2, 3, 6, 6))
    fold: tuple[str, ...] = ()
    train: bool = False
    bake: bool = False


def pair(forward: Callable[..., Any], **children: nn.Module) -> Callable[[], nn.Module]:
    """A convolution of 3 to 4 channels and a BatchNorm, called by *forward*."""
    return lambda: Apply(forward, **{"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), **children})


def compiled(module: nn.Module) -> Any:
    """TorchScript, which is on its way out but not out of people's models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


@dataclass
class Record:
    """What a forward may return, and ``torch.utils._pytree`` takes for a leaf."""

    features: Tensor


class Doubling(nn.BatchNorm2d):
    """A subclass that does something besides which is no known activation."""

    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v) * 2


class Shifting(nn.BatchNorm2d):
    """A subclass that changes its input first."""

    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v + 1)


class ActTwice(BatchNormAct):
    """A subclass that calls its child twice."""

    def forward(self, v: Tensor) -> Tensor:
        return self.act(super().forward(v))


class ActByAnotherName(nn.BatchNorm2d):
    """A subclass whose child has the name of a method that a Sequential has."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.add_module("append", nn.ReLU())

    def forward(self, v: Tensor) -> Tensor:
        return self._modules["append"](super().forward(v))


class OwnArithmetic(nn.Module):
    """Running statistics, used in a way that is no BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = self.bias = None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, v: Tensor) -> Tensor:
        return v * self.running_var.view(1, -1, 1, 1).sigmoid() + self.running_mean.view(1, -1, 1, 1)


class Standardised(nn.Conv2d):
    """A weight-standardised convolution: its batch_norm on the weight is no site."""

    def forward(self, v: Tensor) -> Tensor:
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True).reshape_as(
            self.weight
        )
        return F.conv2d(v, w, self.bias)


class NoBias(nn.Conv2d):
    """A forward that would ignore a bias."""

    def forward(self, v: Tensor) -> Tensor:
        return F.conv2d(v, self.weight)


class BiasElsewhere(nn.Linear):
    """A forward that has a use for a bias, and another one than its operator has."""

    def forward(self, v: Tensor) -> Tensor:
        y = F.linear(v, self.weight)
        return y if self.bias is None else y + self.bias / 2


class Flipped(nn.Conv2d):
    """A forward that computes with something made of its weight."""

    def forward(self, v: Tensor) -> Tensor:
        return self._conv_forward(v, self.weight.flip(0), self.bias)


class AlwaysEval(nn.BatchNorm2d):
    """A BatchNorm that is frozen whatever the mode."""

    def forward(self, v: Tensor) -> Tensor:
        return F.batch_norm(
            v, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class SpectralNormLogger:
    """Somebody's hook, with a name like torch's."""

    def __call__(self, *_: Any) -> None:
        return None


def _frozen(conv: nn.Module) -> nn.Module:
    return nn.Sequential(conv, AlwaysEval(4))


class Keeps(nn.Module):
    """Remembers what its convolution returned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.seen = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), []

    def forward(self, v: Tensor) -> Tensor:
        y = self.conv(v)
        self.seen[:] = [y]
        return self.bn(y)


def _hooked(name: str, kind: str = "register_forward_hook") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4))
        getattr(net.get_submodule(name), kind)(SpectralNormLogger())
        return net

    return build


def _bad(change: Callable[[nn.BatchNorm2d], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        net.after_seasoning = lambda: change(net[1])
        return net

    return build


def _no_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))


def _tied(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        setattr(b, name, getattr(a, name))
        return Apply(
            lambda m, v: m.n(m.a(v)) + m.k(m.b(v * 2)), a=a, b=b, n=nn.BatchNorm2d(4), k=nn.BatchNorm2d(4)
        )

    return build


def _storage() -> nn.Module:
    """Two parameters, one memory."""
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    b.weight = nn.Parameter(a.weight.data)
    return Apply(lambda m, v: m.n(m.a(v)) + m.b(v * 2), a=a, b=b, n=nn.BatchNorm2d(4))


def _output_projection() -> nn.Module:
    def forward(m: Any, ids: Tensor) -> Tensor:
        return F.linear(m.bn(m.table(ids).transpose(1, 2)).transpose(1, 2), m.table.weight)

    return Apply(forward, table=nn.Embedding(9, 4), bn=nn.BatchNorm1d(4))


def _shared_bn() -> nn.Module:
    return Apply(lambda m, v: m.bn(F.relu(m.bn(m.conv(v)))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def _in_place_on_view(m: Any, v: Tensor) -> Tensor:
    y = m.conv(v)
    y[:, :2].mul_(3)
    return m.bn(y)


def _in_place_after(m: Any, v: Tensor) -> Tensor:
    y = m.conv(v)
    z = m.bn(y)
    y.add_(1)
    return z


def _functional(m: Any, v: Tensor) -> Tensor:
    n = m.bn
    return F.batch_norm(m.conv(v), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)


def _two_readers(m: Any, v: Tensor) -> Tensor:
    y = m.conv(v)
    return m.bn(y) + y


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


class OwnWeight(nn.Module):
    """A linear layer whose weight or bias is of an unusual shape."""

    def __init__(self, weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(weight)), nn.Parameter(torch.ones(bias))

    def forward(self, v: Tensor) -> Tensor:
        return F.linear(v, self.weight, self.bias if self.bias.numel() else None)


class AnyArguments(nn.BatchNorm2d):
    """A subclass that can be called in other ways than a BatchNorm."""

    def forward(self, v: Tensor, scale: float = 2.0) -> Tensor:
        return super().forward(v)


class Slotted:
    """Holds something where ``vars`` does not look, and can be called."""

    __slots__ = ("what",)

    def __init__(self, what: Any) -> None:
        self.what = what

    def __call__(self, v: Tensor) -> Tensor:
        return self.what(v)


def _listed(name: str, hold: Callable[[Any], Any] = lambda each: [each]) -> Callable[[], nn.Module]:
    """A tensor or module of the network is also held by something that is no module of it."""

    def build() -> nn.Module:
        net = pair(lambda m, v: m.bn(F.conv2d(v, m.conv.weight, m.conv.bias)))()
        at: Any = net
        for part in name.split("."):
            at = getattr(at, part)
        net.plain = hold(at)
        return net

    return build


def _laid_out(behind: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A BatchNorm of a transposed linear layer, whose own output is not transposed in memory."""
    return lambda: Apply(
        lambda m, v: behind(m.bn(m.fc(v).transpose(1, 2))), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4)
    )


def _tied_and_unreached() -> nn.Module:
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    b.weight = a.weight
    return Apply(lambda m, v, aux=False: m.b(v) if aux else m.bn(m.a(v)), a=a, b=b, bn=nn.BatchNorm2d(4))


def _tied_autoencoder() -> nn.Module:
    """One weight forwards and backwards: the maps are the same, the axes that they lie on are not."""

    def forward(m: Any, v: Tensor) -> Tensor:
        y = F.relu(m.bn(m.conv(v)))
        return m.bn(F.conv_transpose2d(y, m.conv.weight, m.conv.bias, padding=1))

    return Apply(forward, conv=nn.Conv2d(4, 4, 3, padding=1), bn=nn.BatchNorm2d(4))


def _tied_projection() -> nn.Module:
    def forward(m: Any, ids: Tensor) -> Tensor:
        return m.bn(F.linear(F.relu(m.bn(m.table(ids))), m.table.weight, m.out.bias))

    return Apply(forward, table=nn.Embedding(4, 4), out=nn.Linear(4, 4), bn=nn.BatchNorm1d(4))


def _baked_and_read() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    return Apply(lambda m, v: m.bn(m.conv(v)) + F.conv2d(v, m.conv.weight), conv=conv, bn=nn.BatchNorm2d(4))


R = Reason
ONE = {"bn": R.BLOCKED}
CASES = [
    # somebody else looks
    Case("read-elsewhere", pair(_two_readers), {"bn": R.READ_ELSEWHERE}),
    Case(
        "read-through-a-view",
        pair(lambda m, v: m.bn(y := m.conv(v)) + y.flatten(2)[..., :1, None]),
        {"bn": R.READ_ELSEWHERE},
    ),
    Case("read-through-data", pair(lambda m, v: m.bn(y := m.conv(v)) + y.data), {"bn": R.READ_ELSEWHERE}),
    Case("returned", pair(lambda m, v: (m.bn(y := m.conv(v)), y)), {"bn": R.RETURNED}),
    Case("returned-in-a-dict", pair(lambda m, v: {"a": m.bn(y := m.conv(v)), "b": [y]}), {"bn": R.RETURNED}),
    Case("returned-in-a-record", pair(lambda m, v: (m.bn(y := m.conv(v)), Record(y))), {"bn": R.RETURNED}),
    Case(
        "returned-in-an-object",
        pair(lambda m, v: (m.bn(y := m.conv(v)), SimpleNamespace(features=y))),
        {"bn": R.RETURNED},
    ),
    Case("returned-in-a-closure", pair(lambda m, v: (m.bn(y := m.conv(v)), lambda: y)), {"bn": R.RETURNED}),
    Case("kept", Keeps, {"bn": R.RETURNED}),
    Case("hook-on-conv", _hooked("0"), {"2": R.HOOKED}),
    Case("hook-between", _hooked("1"), {"2": R.HOOKED}),
    Case("hook-on-bn", _hooked("2"), {"2": R.HOOKED}),
    Case("pre-hook-on-bn", _hooked("2", "register_forward_pre_hook"), {"2": R.HOOKED}),
    Case("backward-hook-on-bn", _hooked("2", "register_full_backward_hook"), {"2": R.HOOKED}),
    # a layer that serves twice
    Case("conv-again-without-bn", pair(lambda m, v: m.bn(m.conv(v)) + m.conv(v * 2)), {"bn": R.SHARED_HOST}),
    Case(
        "conv-again-with-another-bn",
        pair(lambda m, v: m.bn(m.conv(v)) + m.other(m.conv(v * 2)), other=nn.BatchNorm2d(4)),
        {"other": R.SHARED_HOST},
        fold=("bn",),
    ),
    Case(
        "two-bns-on-one-conv",
        pair(lambda m, v: m.bn(y := m.conv(v)) + m.other(y), other=nn.BatchNorm2d(4)),
        {"other": R.READ_ELSEWHERE},
        fold=("bn",),
    ),
    Case("two-convs-one-weight", _tied("weight"), {"k": R.SHARED_HOST}, fold=("n",)),
    Case("two-convs-one-bias", _tied("bias"), {"k": R.SHARED_HOST}, fold=("n",)),
    Case("two-parameters-one-memory", _storage, {"n": R.SHARED_HOST}),
    Case(
        "embedding-and-output-projection",
        _output_projection,
        {"bn": R.SHARED_HOST},
        torch.tensor([[0, 3], [2, 8]]),
    ),
    Case(
        "weight-read-by-a-penalty",
        pair(lambda m, v: m.bn(m.conv(v)) + m.conv.weight.norm()),
        {"bn": R.SHARED_HOST},
    ),
    Case("another-owner-was-not-reached", _tied_and_unreached, {"bn": R.SHARED_HOST}),
    Case(
        "tied-autoencoder",
        _tied_autoencoder,
        {"bn": R.SHARED_HOST, "bn#2": R.SHARED_HOST},
        x(2, 4, 6, 6),
    ),
    Case(
        "table-and-projection-with-one-bn",
        _tied_projection,
        {"bn": R.SHARED_HOST, "bn#2": R.SHARED_HOST},
        torch.tensor([0, 3, 2, 1]),
    ),
    Case(
        "a-vector-behind-the-parameters-is-read",
        lambda: flat_vector(lambda m, v: m.bn(m.conv(v)) * m.vector.norm()),
        {"bn": R.SHARED_BN},
    ),
    Case("weight-in-a-list", _listed("conv.weight"), {"bn": R.SHARED_HOST}),
    Case("weight-is-a-key", _listed("conv.weight", lambda w: {w: 1}), {"bn": R.SHARED_HOST}),
    Case("weight-in-a-closure", _listed("conv.weight", lambda w: lambda: w), {"bn": R.SHARED_HOST}),
    Case("baked-weight-is-read", _baked_and_read, {"bn": R.SHARED_HOST}, bake=True),
    # a BatchNorm that somebody asks
    Case("bn-in-a-list", _listed("bn"), {"bn": R.SHARED_BN}),
    Case("bn-in-a-partial", _listed("bn", partial), {"bn": R.SHARED_BN}),
    Case("bn-in-a-method", _listed("bn", lambda bn: {"act": bn.__call__}), {"bn": R.SHARED_BN}),
    Case("bn-in-an-object", _listed("bn", Slotted), {"bn": R.SHARED_BN}),
    Case("gamma-is-read", pair(lambda m, v: m.bn(m.conv(v)) * m.bn.weight.sum()), {"bn": R.SHARED_BN}),
    Case(
        "statistics-are-read",
        pair(lambda m, v: (m.bn(m.conv(v)), m.bn.running_mean.data * 2)),
        {"bn": R.SHARED_BN},
    ),
    Case(
        "statistics-are-written",
        pair(lambda m, v: (m.bn(m.conv(v)), m.bn.running_mean.mul_(2))[0]),
        {"bn": R.SHARED_BN},
    ),
    Case(
        "forward-called-by-hand",
        pair(lambda m, v: m.bn(m.conv(v)) + m.bn.forward(F.relu(m.other(v))), other=nn.Conv2d(3, 4, 3)),
        {"bn": R.SHARED_BN, "model:batch_norm": R.NO_MODULE},
    ),
    Case("bn-folds-once-only", _shared_bn, {"bn": R.SHARED_BN, "bn#2": R.BLOCKED}),
    # the wrong axis
    Case(
        "linear-n-c-l-with-c-equal-l",
        lambda: Apply(lambda m, v: m.bn(m.fc(v)), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4)),
        {"bn": R.OTHER_AXIS},
        x(2, 4, 6),
    ),
    Case(
        "height-becomes-the-channel",
        pair(lambda m, v: m.bn(m.conv(v).transpose(1, 2)), conv=nn.Conv2d(3, 4, 3)),
        {"bn": R.OTHER_AXIS},
    ),
    Case(
        "permute-with-equal-sizes",
        lambda: Apply(
            lambda m, v: m.bn(m.fc(v).permute(0, 2, 3, 1)), fc=nn.Linear(6, 4), bn=nn.BatchNorm2d(4)
        ),
        {"bn": R.OTHER_AXIS},
        x(2, 4, 4, 6),
    ),
    Case(
        "reshape-mixes-channels",
        pair(lambda m, v: m.bn(m.conv(v).reshape(2, 8, 2, 4)), bn=nn.BatchNorm2d(8)),
        ONE,
    ),
    Case("flatten-to-features", pair(lambda m, v: m.bn(m.conv(v).flatten(1)), bn=nn.BatchNorm1d(64)), ONE),
    Case(
        "view-as-another-type", pair(lambda m, v: m.bn(m.conv(v).view(torch.int32).view(torch.float32))), ONE
    ),
    Case(
        "batch-becomes-the-channel",
        lambda: Apply(lambda m, v: m.bn(m.fc(v).t()), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4)),
        {"bn": R.OTHER_AXIS},
        x(4, 6),
    ),
    Case(
        "one-image-hides-the-batch",
        lambda: Apply(
            lambda m, v, w: m.bn(m.conv(v).reshape(4, -1).t()) + w.sum(),
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm1d(4),
        ),
        ONE,
        (x(1, 3, 6, 6), x(3)),
    ),
    Case(
        "one-token-hides-a-transposition",
        lambda: Apply(
            lambda m, v: m.bn(m.fc(v).reshape(v.shape[0], 4, -1)), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4)
        ),
        ONE,
        x(2, 1, 6),
    ),
    Case(
        "spelt-out-channels-last",
        lambda: nn.Sequential(nn.Linear(6, 4), Spelt(4, (-1,))),
        {"1": R.UNRECOGNISED},
        x(2, 5, 6),
    ),
    Case(
        "spelt-out-with-an-integer-gamma",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Spelt(4, (1, -1, 1, 1), torch.int32)),
        {"1": R.UNRECOGNISED},
    ),
    Case(
        "spelt-out-along-the-length",
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), Spelt(4, (1, -1))),
        {"1": R.UNRECOGNISED},
        x(2, 3, 6),
    ),
    Case(
        "view-of-what-bn-lays-out",
        lambda: Apply(
            lambda m, v: F.relu(m.bn(m.fc(v).transpose(1, 2))).view(len(v), -1),
            fc=nn.Linear(6, 4),
            bn=nn.BatchNorm1d(4),
        ),
        {"bn": R.LAYOUT},
        x(2, 5, 6),
    ),
    Case(
        "view-behind-other-operators",
        _laid_out(lambda y: y.clamp(0).exp().view(len(y), -1)),
        {"bn": R.LAYOUT},
        x(2, 5, 6),
    ),
    Case(
        "view-of-one-token",
        _laid_out(lambda y: y.clone().view(len(y), -1)),
        {"bn": R.LAYOUT},
        x(2, 1, 6),
    ),
    Case(
        "write-into-a-reshape",
        _laid_out(lambda y: (y.reshape(len(y), -1).mul_(2), y)[1]),
        {"bn": R.LAYOUT},
        x(2, 5, 6),
    ),
    # operators that do not carry the map
    Case("relu", pair(lambda m, v: m.bn(F.relu(m.conv(v)))), ONE),
    Case("relu-in-place", pair(lambda m, v: m.bn(m.conv(v).relu_())), ONE),
    Case("zero-padding", pair(lambda m, v: m.bn(F.pad(m.conv(v), (1, 1, 1, 1)))), ONE),
    Case(
        "counted-padding-in-average-pooling",
        pair(lambda m, v: m.bn(F.avg_pool2d(m.conv(v), 2, padding=1))),
        ONE,
    ),
    Case("max-pooling", pair(lambda m, v: m.bn(F.max_pool2d(m.conv(v), 2))), ONE),
    Case("dropout-by-default", pair(lambda m, v: m.bn(torch.native_dropout(m.conv(v), 0.5, None)[0])), ONE),
    Case("active-dropout", pair(lambda m, v: m.bn(F.dropout(m.conv(v), 0.5, training=True))), ONE),
    Case("integer-cast", pair(lambda m, v: m.bn(m.conv(v).mul(9).int().float())), ONE),
    Case("written-into-a-view", pair(_in_place_on_view), {"bn": R.WRITTEN_IN_PLACE}),
    Case("written-after-it-was-read", pair(_in_place_after), {"bn": R.WRITTEN_IN_PLACE}),
    # what behind it does not carry the map
    *(
        Case(f"in-front-of-{name}", sequential(nn.Tanh(), bn2d(3), *behind), {"1": R.BLOCKED})
        for name, behind in (
            ("a-padded-conv", [conv(3, 4, 3, padding=1)]),
            ("a-transposed-conv", [lambda: nn.ConvTranspose2d(3, 4, 3)]),
            ("a-relu", [nn.ReLU(), conv(3, 4)]),
            ("max-pooling", [nn.MaxPool2d(2), conv(3, 4)]),
            ("counted-padding", [nn.AvgPool2d(2, padding=1), conv(3, 4)]),
            ("a-softmax", [nn.Softmax(1), conv(3, 4)]),
            ("relu6", [nn.ReLU6(), conv(3, 4)]),
            ("a-group-norm", [lambda: nn.GroupNorm(1, 3)]),
            ("what-returns-it", []),
        )
    ),
    Case(
        "in-front-of-relu6-with-positive-scales",
        positive(unshifted(sequential(nn.Tanh(), bn2d(3), nn.ReLU6(), conv(3, 4)))),
        {"1": R.BLOCKED},
    ),
    Case(
        "in-front-of-a-padded-conv-among-others",
        forward(
            lambda m, v: m.a(y := m.bn(v.tanh())).sum() + m.b(y),
            bn=bn2d(3),
            a=conv(3, 4, 3),
            b=conv(3, 4, 3, padding=1),
        ),
        ONE,
    ),
    Case(
        "in-front-of-a-gate",
        forward(lambda m, v: m.next(m.bn(v.tanh()) * v.sigmoid()), bn=bn2d(3), next=conv(3, 4)),
        ONE,
    ),
    Case(
        "in-front-of-attention-that-does-not-average",
        forward(
            lambda m, v: m.next(
                (v.transpose(1, 2) @ v) @ m.bn(v.tanh().transpose(1, 2)).transpose(1, 2).transpose(1, 2)
            ),
            bn=lambda: nn.BatchNorm1d(6),
            next=lambda: nn.Linear(5, 4),
        ),
        ONE,
        x(2, 5, 6),
    ),
    Case(
        "in-front-of-a-tied-weight",
        forward(
            lambda m, v: m.fc(m.bn(v.tanh())) + F.linear(v, m.fc.weight),
            bn=lambda: nn.BatchNorm1d(6),
            fc=lambda: nn.Linear(6, 4),
        ),
        ONE,
        x(5, 6),
    ),
    Case(
        "in-front-of-a-conv-without-bias",
        lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), NoBias(3, 4, 3, bias=False)),
        {"1": R.BLOCKED},
    ),
    # what a program could do
    Case(
        "beside-a-conv",
        forward(
            lambda m, v: F.relu(m.n(m.conv(y := v.tanh())) + m.skip(y)),
            conv=conv(3, 3, 3, padding=1),
            n=bn2d(3),
            skip=bn2d(3),
        ),
        {"skip": R.SIBLING},
        fold=("n",),
    ),
    Case(
        "beside-a-conv-with-a-stride",
        forward(
            lambda m, v: F.relu(m.n(m.conv(y := v.tanh())) + m.skip(F.avg_pool2d(y, 2))),
            conv=conv(3, 3, 2, stride=2),
            n=bn2d(3),
            skip=bn2d(3),
        ),
        {"skip": R.BLOCKED},
        fold=("n",),
    ),
    # products of values that both move
    Case(
        "both-factors-shifted",
        forward(lambda m, v: m.out(m.a(v.tanh()) * m.b(v.tanh())), a=bn2d(3), b=bn2d(3), out=conv(3, 4, 3)),
        {"a": R.BLOCKED, "b": R.BLOCKED},
    ),
    Case(
        "a-product-of-two-positive",
        unshifted(
            forward(
                lambda m, v: F.relu(m.bn(m.a(v).relu() * m.b(v).relu())),
                a=conv(3, 4),
                b=conv(3, 4),
                bn=bn2d(4),
            )
        ),
        {"bn": R.BLOCKED},
    ),
    Case("a-square", a_square(), {"bn": R.BLOCKED}),
    # several maps in one channel
    Case(
        "beside-itself-with-two-channels",
        beside_itself(2),
        {"n": R.READ_ELSEWHERE},
        fold=("bn",),
    ),
    # what would be overwritten
    Case(
        "written-where-another-reads",
        positive(
            forward(
                lambda m, v: m.out((y := m.a(v)) + m.c(F.relu(m.bn(y), inplace=True))),
                a=conv(3, 4, 3),
                bn=bn2d(4),
                c=conv(4, 4, 3, padding=1),
                out=conv(4, 2),
            )
        ),
        {"bn": R.WRITTEN_IN_PLACE},
    ),
    Case(
        "written-where-the-caller-looks",
        positive(unshifted(sequential(bn2d(3), nn.ReLU(inplace=True), conv(3, 4)))),
        {"0": R.WRITTEN_IN_PLACE},
    ),
    # what would lose digits
    Case(
        "almost-pruned-with-another-reader",
        changed(
            forward(
                lambda m, v: m.bn(y := m.conv(v)).tanh() + m.next(y),
                conv=conv(3, 4, 3),
                bn=bn2d(4),
                next=conv(4, 4),
            ),
            lambda bn: bn.weight.data[1].fill_(1e-6),
        ),
        {"bn": R.IMPRECISE},
    ),
    Case(
        "pruned-with-another-reader",
        pruned(
            forward(
                lambda m, v: m.bn(y := m.conv(v)).tanh() + m.next(y),
                conv=conv(3, 4, 3),
                bn=bn2d(4),
                next=conv(4, 4),
            )
        ),
        {"bn": R.READ_ELSEWHERE},
    ),
    # what the BatchNorm is
    Case("training-mode", pair(lambda m, v: m.bn(m.conv(v))), {"bn": R.TRAINING}, train=True),
    Case(
        "functional-training",
        pair(lambda m, v: F.batch_norm(m.conv(v), None, None, training=True)),
        {"model:batch_norm": R.NO_STATISTICS, "bn": R.UNREACHED},
    ),
    Case("no-statistics", _no_statistics, {"1": R.NO_STATISTICS}),
    Case(
        "no-statistics-and-unreached",
        pair(lambda m, v: m.bn(m.conv(v)), aux=nn.BatchNorm2d(4, track_running_stats=False)),
        {"aux": R.UNREACHED},
        fold=("bn",),
    ),
    Case(
        "no-statistics-on-noise",
        pair(lambda m, v: m.bn(torch.ones(2, 4, 3, 3)), bn=nn.BatchNorm2d(4, track_running_stats=False)),
        {"bn": R.NO_STATISTICS},
    ),
    Case(
        "called-with-more",
        pair(lambda m, v: m.bn(m.conv(v), 3.0), bn=AnyArguments(4)),
        {"bn": R.SUBCLASS},
    ),
    Case("called-by-keyword", pair(lambda m, v: m.bn(v=m.conv(v)), bn=AnyArguments(4)), {"bn": R.SUBCLASS}),
    Case(
        "float32-statistics-on-half",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3).half(), Spelt(4, (1, -1, 1, 1))),
        {"1": R.UNSUPPORTED_TYPE},
        x(2, 3, 6, 6).half(),
    ),
    Case("nan-mean", _bad(lambda bn: bn.running_mean[1].fill_(torch.nan)), {"1": R.BAD_STATISTICS}),
    Case("infinite-variance", _bad(lambda bn: bn.running_var[1].fill_(torch.inf)), {"1": R.BAD_STATISTICS}),
    Case("negative-variance", _bad(lambda bn: bn.running_var[1].fill_(-0.25)), {"1": R.BAD_STATISTICS}),
    Case("nan-gamma", _bad(lambda bn: bn.weight.data[1].fill_(torch.nan)), {"1": R.BAD_STATISTICS}),
    Case("not-through-its-module", pair(_functional), {"model:batch_norm": R.NO_MODULE}),
    Case("unreached", pair(lambda m, v: m.conv(v)), {"bn": R.UNREACHED}),
    Case("subclass-that-doubles", pair(lambda m, v: m.bn(m.conv(v)), bn=Doubling(4)), {"bn": R.SUBCLASS}),
    Case("subclass-that-shifts", pair(lambda m, v: m.bn(m.conv(v)), bn=Shifting(4)), {"bn": R.SUBCLASS}),
    Case("own-arithmetic", pair(lambda m, v: m.bn(m.conv(v)), bn=OwnArithmetic(4)), {"bn": R.UNRECOGNISED}),
    Case(
        "act-then-bn-behind-subclass",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct(4), nn.BatchNorm2d(4)),
        {"2": R.BLOCKED},
        fold=("1",),
    ),
    # what the host is
    Case(
        "bias-added-behind-an-activation",
        lambda: nn.Sequential(BiasElsewhere(6, 4, bias=False), nn.BatchNorm1d(4)),
        {"1": R.NO_BIAS},
        x(2, 6),
    ),
    Case(
        "more-than-the-parametrised-weight",
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(Flipped(3, 4, 3)), nn.BatchNorm2d(4)),
        {"1": R.COMPUTED_WEIGHT},
        bake=True,
    ),
    Case(
        "norm-estimated-at-every-call",
        lambda: _frozen(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))),
        {"1": R.COMPUTED_WEIGHT},
        train=True,
        bake=True,
    ),
    Case(
        "norm-estimated-at-every-call-the-old-way",
        lambda: _frozen(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))),
        {"1": R.COMPUTED_WEIGHT},
        train=True,
        bake=True,
    ),
    Case(
        "weight-of-one-axis",
        lambda: nn.Sequential(OwnWeight((6,), (0,)), nn.BatchNorm1d(4)),
        {"1": R.BLOCKED},
        x(2, 4, 6),
    ),
    Case(
        "bias-of-one-number",
        lambda: nn.Sequential(OwnWeight((4, 6), (1,)), nn.BatchNorm1d(4)),
        {"1": R.BLOCKED},
        x(2, 6),
    ),
    Case("first-in-the-model", sequential(bn2d(3), nn.ReLU(), conv(3, 4, 3)), {"0": R.NO_HOST}),
    Case(
        "weight-standardised",
        lambda: nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        {"1": R.COMPUTED_WEIGHT},
    ),
    Case(
        "forward-without-bias",
        lambda: nn.Sequential(NoBias(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
        {"1": R.NO_BIAS},
    ),
    Case(
        "weight-norm",
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        {"1": R.PARAMETRISED},
    ),
    Case("old-weight-norm", _old_weight_norm, {"1": R.PARAMETRISED}),
    Case(
        "spectral-norm",
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        {"1": R.PARAMETRISED},
    ),
    Case(
        "old-spectral-norm",
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        {"1": R.PARAMETRISED},
    ),
    Case(
        "layer-norm-over-two-axes",
        lambda: nn.Sequential(nn.LayerNorm([4, 5]), nn.BatchNorm1d(4)),
        {"1": R.BLOCKED},
        x(2, 4, 5),
    ),
    Case("act-called-twice", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), ActTwice(4)), {"1": R.SUBCLASS}),
    Case(
        "act-called-append",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), ActByAnotherName(4)),
        {"1": R.SUBCLASS},
    ),
    Case(
        "conv-is-torchscript",
        lambda: nn.Sequential(compiled(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        {"1": R.COMPILED},
    ),
    Case(
        "bn-is-torchscript",
        lambda: nn.Sequential(
            *[nn.Conv2d(3, 4, 3), compiled(nn.BatchNorm2d(4))], nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        ),
        {"1": R.COMPILED},
        fold=("3",),
    ),
]
