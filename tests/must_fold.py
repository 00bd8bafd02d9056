"""Small networks in which BatchNorms must fold: each is a builder, an input, and how many sites fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network, what it is called with, and the number of sites that must fold.

    `stay` is the number that must be refused beside them.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    fold: int
    stay: int = 0
    bake: bool = False


class Spelt(nn.Module):
    """A BatchNorm spelt out as arithmetic, along the axis that *shape* says."""

    def __init__(self, channels: int, shape: tuple[int, ...], cast: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.eps, self.cast = shape, 1e-5, cast
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, v: Tensor) -> Tensor:
        w, b, m, s = (
            t.reshape(self.shape) for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = (w if self.cast.is_floating_point else w.to(self.cast)) * (s + self.eps).rsqrt()
        return v * scale + (b - m * scale)


def sequential(*layers: Any) -> Callable[[], nn.Module]:
    """A builder of ``nn.Sequential``: each layer is a builder or a module without weights."""
    return lambda: nn.Sequential(
        *(layer() if callable(layer) and not isinstance(layer, nn.Module) else layer for layer in layers)
    )


class Apply(nn.Module):
    """Children by keyword, and the forward as a function of the module and its inputs."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class FrozenBatchNorm(nn.Module):
    """The arithmetic that detectron2, DETR and torchvision spell out."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, v: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + self.eps).rsqrt()
        bias = self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale
        return v * scale + bias


class BatchNormReLU(nn.BatchNorm2d):
    """A subclass with an activation as a function."""

    def forward(self, v: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(v), 0.3)


class BatchNormAct(nn.BatchNorm2d):
    """A subclass with an activation as a child, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.PReLU(init=0.1)

    def forward(self, v: Tensor) -> Tensor:
        v = F.batch_norm(v, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(self.drop(v))


class SamePad(nn.Conv2d):
    """A convolution whose forward is its own and uses its bias."""

    def forward(self, v: Tensor) -> Tensor:
        return F.conv2d(F.pad(v, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


def _pairs() -> nn.Module:
    """A convolution and its BatchNorm, both called twice: one weight, the same map."""
    return Apply(
        lambda m, v: m.bn(m.conv(v)) + m.bn(m.conv(v * 2)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)
    )


def _one_bn_two_convs() -> nn.Module:
    return Apply(
        lambda m, v: m.bn(m.a(v)) + m.bn(m.b(v)),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(3, 4, 3, bias=False),
        bn=nn.BatchNorm2d(4),
    )


def _tied_weight_same_bn() -> nn.Module:
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    b.weight = a.weight
    return Apply(lambda m, v: m.bn(m.a(v)) - m.bn(m.b(v)), a=a, b=b, bn=nn.BatchNorm2d(4))


def _aliased() -> nn.Module:
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    return Apply(lambda m, v: m.again(m.twin(v)) + m.bn(m.conv(v)), conv=conv, twin=conv, bn=bn, again=bn)


def _frozen_in_training() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    net[1].eval()
    return net


def _control_flow() -> nn.Module:
    def forward(m: Any, v: Tensor) -> Tensor:
        y = m.bn(m.conv(v))
        return y * 2 if y.sum() > 1e9 else y

    return Apply(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def changed(build: Callable[[], nn.Module], change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    """A builder of a network whose BatchNorms are changed after they have been seasoned."""

    def built() -> nn.Module:
        net = build()
        first = getattr(net, "after_seasoning", None)

        def after() -> None:
            if first is not None:
                first()
            for module in net.modules():
                if isinstance(getattr(module, "running_mean", None), Tensor):
                    change(module)

        net.after_seasoning = after
        return net

    return built


def finished(model: nn.Module) -> nn.Module:
    """The network with what is to be changed after seasoning."""
    after = vars(model).pop("after_seasoning", None)
    if after is not None:
        with torch.no_grad():
            after()
    return model


def positive(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """No γ is below zero."""
    return changed(build, lambda bn: bn.weight.data.abs_())


def _still(bn: Any) -> None:
    bn.running_mean.zero_()
    bn.bias.data.zero_()


def unshifted(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """No β and no μ, so that zeros stay zeros."""
    return changed(build, _still)


def _dead(bn: Any) -> None:
    bn.weight.data[1] = 0


def pruned(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """One γ is zero."""
    return changed(build, _dead)


def forward(function: Callable[..., Any], **children: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A builder of `Apply` that makes its children anew."""
    return lambda: Apply(function, **{name: child() for name, child in children.items()})


def conv(i: int, o: int, k: int = 1, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(i, o, k, **options)


def bn2d(c: int) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(c)


def a_square() -> Callable[[], nn.Module]:
    """A BatchNorm without a shift behind the square of what a convolution makes."""
    return unshifted(forward(lambda m, v: m.bn((y := m.a(v)) * y).tanh(), a=conv(3, 4), bn=bn2d(4)))


def beside_itself(channels: int) -> Callable[[], nn.Module]:
    """What is normalised beside what it was, along the width; then another BatchNorm, and a layer over it."""
    return forward(
        lambda m, v: m.out(m.bn(torch.cat((m.n(v := m.a(v)), v), -1))).tanh(),
        a=conv(3, channels),
        n=bn2d(channels),
        bn=bn2d(channels),
        out=lambda: nn.Linear(12, 5),
    )


def _twice(y: Tensor) -> Tensor:
    return y + y.flip(2)


def _attention(m: Any, v: Tensor) -> Tensor:
    """Values that are normalised, averaged with weights that add up to one, and projected."""
    values = m.bn(v.transpose(1, 2)).transpose(1, 2)
    q, k, w = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (m.q(v), m.k(v), values))
    return m.out(F.scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2))


def _half_head() -> nn.Module:
    """A cast between the two."""
    return Apply(lambda m, v: m.bn(m.fc(v).double().float()), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4))


CASES = [
    # hosts
    *(
        Case(
            f"{conv.__name__}-{'bias' if bias else 'no-bias'}",
            sequential(lambda c=conv, b=bias: c(3, 5, 3, bias=b), norm(5)),
            x(2, 3, *space),
            1,
        )
        for conv, norm, space in (
            (nn.Conv1d, lambda c: lambda: nn.BatchNorm1d(c), (9,)),
            (nn.Conv2d, lambda c: lambda: nn.BatchNorm2d(c), (7, 6)),
            (nn.Conv3d, lambda c: lambda: nn.BatchNorm3d(c), (5, 6, 4)),
        )
        for bias in (True, False)
    ),
    Case("square-conv", sequential(lambda: nn.Conv2d(4, 4, 3), lambda: nn.BatchNorm2d(4)), x(4, 4, 6, 4), 1),
    Case(
        "grouped-conv",
        sequential(lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6)),
        x(2, 4, 6, 5),
        1,
    ),
    Case(
        "depthwise-conv",
        sequential(lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), lambda: nn.BatchNorm2d(8)),
        x(2, 4, 6, 5),
        1,
    ),
    Case(
        "padded-conv",
        sequential(
            lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), lambda: nn.BatchNorm2d(4)
        ),
        x(2, 3, 6, 5),
        1,
    ),
    *(
        Case(
            f"transposed-{i}-{o}-groups-{g}-{'bias' if bias else 'no-bias'}",
            sequential(
                lambda i=i, o=o, g=g, b=bias: nn.ConvTranspose2d(i, o, 3, stride=2, groups=g, bias=b),
                lambda o=o: nn.BatchNorm2d(o),
            ),
            x(2, i, 5, 4),
            1,
        )
        for i, o, g in ((3, 5, 1), (4, 4, 1), (4, 6, 2), (4, 4, 2), (4, 4, 4), (4, 8, 4), (6, 2, 2))
        for bias in (True, False)
    ),
    Case(
        "transposed-1d",
        sequential(lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6)),
        x(2, 4, 7),
        1,
    ),
    Case(
        "transposed-3d",
        sequential(lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), lambda: nn.BatchNorm3d(6)),
        x(2, 4, 3, 4, 3),
        1,
    ),
    Case("linear", sequential(lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4)), x(5, 6), 1),
    Case(
        "linear-no-bias",
        sequential(lambda: nn.Linear(4, 4, bias=False), lambda: nn.BatchNorm1d(4)),
        x(4, 4),
        1,
    ),
    Case(
        "linear-transposed",
        lambda: Apply(lambda m, v: m.bn(m.fc(v).transpose(1, 2)), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4)),
        x(2, 4, 6),
        1,
    ),
    Case(
        "linear-permuted",
        lambda: Apply(
            lambda m, v: m.bn(m.fc(v).permute(0, 3, 1, 2)), fc=nn.Linear(6, 4), bn=nn.BatchNorm2d(4)
        ),
        x(2, 4, 4, 6),
        1,
    ),
    Case(
        "linear-flattened-as-in-levit",
        lambda: Apply(
            lambda m, v: m.bn((y := m.fc(v)).flatten(0, 1)).reshape_as(y),
            fc=nn.Linear(6, 4, bias=False),
            bn=nn.BatchNorm1d(4),
        ),
        x(2, 4, 6),
        1,
    ),
    Case(
        "channels-by-another-way-back",
        lambda: Apply(
            lambda m, v: m.bn(m.conv(v).flatten(2).movedim(1, -1).reshape(-1, 5)),
            conv=nn.Conv2d(3, 5, 3),
            bn=nn.BatchNorm1d(5),
        ),
        x(2, 3, 5, 7),
        1,
    ),
    Case(
        "embedding",
        lambda: Apply(
            lambda m, v: m.bn(m.table(v).transpose(1, 2)),
            table=nn.Embedding(9, 4, padding_idx=0),
            bn=nn.BatchNorm1d(4),
        ),
        torch.tensor([[0, 3, 1, 5], [2, 0, 8, 7]]),
        1,
    ),
    Case("group-norm", sequential(lambda: nn.GroupNorm(2, 4), lambda: nn.BatchNorm2d(4)), x(2, 4, 5, 5), 1),
    Case(
        "layer-norm",
        lambda: Apply(lambda m, v: m.bn(m.ln(v).transpose(1, 2)), ln=nn.LayerNorm(4), bn=nn.BatchNorm1d(4)),
        x(2, 4, 4),
        1,
    ),
    Case(
        "own-forward",
        sequential(lambda: SamePad(3, 4, 2, bias=False), lambda: nn.BatchNorm2d(4)),
        x(2, 3, 5, 5),
        1,
    ),
    # another BatchNorm
    Case(
        "conv-bn-bn",
        sequential(
            lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4, affine=False)
        ),
        x(2, 3, 6, 6),
        2,
    ),
    Case(
        "relu-bn-bn",
        sequential(nn.ReLU(), lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3)),
        x(2, 3, 6, 6),
        1,
        stay=1,
    ),
    Case(
        "relu-bn-bn-without-affine",
        sequential(nn.ReLU(), lambda: nn.BatchNorm2d(3, affine=False), lambda: nn.BatchNorm2d(3)),
        x(2, 3, 6, 6),
        1,
        stay=1,
    ),
    Case(
        "bn-twice-in-a-row",
        lambda: Apply(lambda m, v: m.bn(m.bn(m.conv(v))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)),
        x(2, 3, 6, 6),
        2,
    ),
    # through what carries a map, from in front of it
    *(
        Case(f"behind-{name}", forward(function, conv=conv(3, 4, 3), bn=bn2d(c)), x(2, 3, 8, 8), 1)
        for name, c, function in (
            ("average-pooling", 4, lambda m, v: m.bn(F.avg_pool2d(m.conv(v), 2))),
            (
                "uncounted-padding",
                4,
                lambda m, v: m.bn(F.avg_pool2d(m.conv(v), 3, 1, 1, count_include_pad=False)),
            ),
            ("upsampling", 4, lambda m, v: m.bn(F.interpolate(m.conv(v), scale_factor=2, mode="bilinear"))),
            ("reflection", 4, lambda m, v: m.bn(F.pad(m.conv(v), (1, 1, 1, 1), mode="reflect"))),
            ("channel-shuffle", 4, lambda m, v: m.bn(F.channel_shuffle(m.conv(v), 2))),
            ("a-roll", 4, lambda m, v: m.bn(m.conv(v).roll((1, 2), (1, 2)))),
            ("a-slice", 2, lambda m, v: m.bn(m.conv(v)[:, 1:3])),
            ("a-sum-with-itself", 4, lambda m, v: m.bn(_twice(m.conv(v)))),
            ("a-factor", 4, lambda m, v: m.bn(m.conv(v) * -0.5)),
        )
    ),
    Case(
        "behind-max-pooling",
        positive(forward(lambda m, v: m.bn(F.max_pool2d(m.conv(v), 2)), conv=conv(3, 4, 3), bn=bn2d(4))),
        x(2, 3, 8, 8),
        1,
    ),
    Case(
        "behind-a-pooled-head",
        forward(
            lambda m, v: m.bn(F.adaptive_avg_pool2d(m.conv(v), 1).flatten(1)),
            conv=conv(3, 4, 3),
            bn=lambda: nn.BatchNorm1d(4),
        ),
        x(2, 3, 8, 8),
        1,
    ),
    Case(
        "over-cat",
        forward(
            lambda m, v: m.bn(torch.cat((m.a(v), m.b(v)), 1)), a=conv(3, 4, 3), b=conv(3, 2, 3), bn=bn2d(6)
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "over-cat-along-the-width",
        forward(
            lambda m, v: m.bn(torch.cat((m.a(v), m.b(v)), 3)), a=conv(3, 4, 3), b=conv(3, 4, 3), bn=bn2d(4)
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "over-a-sum",
        forward(lambda m, v: m.bn(m.a(v) - m.b(v)), a=conv(3, 4, 3), b=conv(3, 4, 3, bias=False), bn=bn2d(4)),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "split-between-two",
        forward(
            lambda m, v: m.n(m.conv(v).chunk(2, 1)[0]) * torch.sigmoid(m.k(m.conv(v).chunk(2, 1)[1])),
            conv=conv(3, 4, 3),
            n=bn2d(2),
            k=bn2d(2),
        ),
        x(2, 3, 6, 6),
        2,
    ),
    Case(
        "pixel-shuffle",
        forward(lambda m, v: m.bn(F.pixel_shuffle(m.conv(v), 2)), conv=conv(3, 8, 3, groups=1), bn=bn2d(2)),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "gated",
        unshifted(
            forward(
                lambda m, v: m.bn(m.conv(v) * torch.sigmoid(m.gate(v))),
                conv=conv(3, 4),
                gate=conv(3, 4),
                bn=bn2d(4),
            )
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "negative-slopes",
        positive(
            unshifted(
                forward(lambda m, v: m.bn(F.leaky_relu(m.conv(v), 0.2)), conv=conv(3, 4, 3), bn=bn2d(4))
            )
        ),
        x(2, 3, 6, 6),
        1,
    ),
    # into what reads it
    Case("conv-behind", sequential(nn.Tanh(), bn2d(3), conv(3, 4, 3)), x(2, 3, 6, 6), 1),
    Case("first-in-the-model", sequential(bn2d(3), conv(3, 4, 3)), x(2, 3, 6, 6), 1),
    Case("grouped-conv-behind", sequential(nn.Tanh(), bn2d(4), conv(4, 6, 3, groups=2)), x(2, 4, 6, 6), 1),
    Case(
        "depthwise-conv-behind",
        sequential(nn.Tanh(), bn2d(4), conv(4, 8, 3, groups=4, bias=False)),
        x(2, 4, 6, 6),
        1,
    ),
    *(
        Case(
            f"{mode}-conv-behind",
            sequential(nn.Tanh(), bn2d(3), conv(3, 4, 3, padding=1, padding_mode=mode)),
            x(2, 3, 6, 6),
            1,
        )
        for mode in ("reflect", "replicate", "circular")
    ),
    Case(
        "padded-conv-behind",
        unshifted(sequential(nn.Tanh(), bn2d(3), conv(3, 4, 3, padding=1))),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "transposed-conv-behind",
        unshifted(sequential(nn.Tanh(), bn2d(4), lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2))),
        x(2, 4, 5, 5),
        1,
    ),
    Case(
        "small-transposed-conv-behind",
        sequential(nn.Tanh(), bn2d(4), lambda: nn.ConvTranspose2d(4, 6, 1, groups=2)),
        x(2, 4, 5, 5),
        1,
    ),
    Case(
        "linear-behind", sequential(nn.Tanh(), lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 4)), x(5, 6), 1
    ),
    Case(
        "linear-behind-a-flatten",
        sequential(nn.Tanh(), bn2d(3), nn.Flatten(), lambda: nn.Linear(48, 4)),
        x(2, 3, 4, 4),
        1,
    ),
    Case(
        "linear-behind-a-pooled-head",
        sequential(nn.Tanh(), bn2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), lambda: nn.Linear(3, 4)),
        x(2, 3, 4, 4),
        1,
    ),
    Case(
        "max-pooling-behind",
        positive(sequential(nn.Tanh(), bn2d(3), nn.MaxPool2d(2), conv(3, 4))),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "relu-behind",
        positive(unshifted(sequential(nn.Tanh(), bn2d(3), nn.ReLU(), conv(3, 4, 3, padding=1)))),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "several-readers",
        forward(
            lambda m, v: m.a(y := m.bn(v.tanh())).sum() + m.b(y[:, :2]),
            bn=bn2d(3),
            a=conv(3, 4, 3),
            b=conv(2, 4, 3),
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "attention-behind",
        forward(
            lambda m, v: _attention(m, v),
            bn=lambda: nn.BatchNorm1d(6),
            q=lambda: nn.Linear(6, 4),
            k=lambda: nn.Linear(6, 4),
            out=lambda: nn.Linear(6, 5),
        ),
        x(2, 5, 6),
        1,
    ),
    Case(
        "norm-behind",
        sequential(nn.Tanh(), bn2d(3), lambda: nn.BatchNorm2d(3, affine=False), nn.Sigmoid()),
        x(2, 3, 6, 6),
        1,
        stay=1,
    ),
    # both ways
    Case(
        "two-on-one-conv",
        forward(lambda m, v: (m.n(y := m.conv(v)), m.k(y)), conv=conv(3, 4, 3), n=bn2d(4), k=bn2d(4)),
        x(2, 3, 6, 6),
        1,
        stay=1,
    ),
    Case(
        "a-conv-with-another-reader",
        forward(
            lambda m, v: m.bn(y := m.conv(v)).tanh() + m.next(y),
            conv=conv(3, 4, 3),
            bn=bn2d(4),
            next=conv(4, 4),
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "on-a-residual-stream",
        forward(
            lambda m, v: m.out((y := m.a(v)) + m.c(m.b(m.bn(y)).tanh())),
            a=conv(3, 4, 3),
            bn=bn2d(4),
            b=conv(4, 6),
            c=conv(6, 4),
            out=conv(4, 2),
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "preactivation-with-positive-scales",
        positive(
            forward(
                lambda m, v: m.out((y := m.a(v)) + m.c(F.relu(m.bn(y)))),
                a=conv(3, 4, 3),
                bn=bn2d(4),
                c=conv(4, 4, 3, padding=1),
                out=conv(4, 2),
            )
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "skip-with-positive-scales",
        positive(
            forward(
                lambda m, v: F.relu(m.n(m.a(y := F.relu(m.first(v)))) + m.skip(y)),
                first=conv(3, 4, 3),
                a=conv(4, 4, 3, padding=1),
                n=bn2d(4),
                skip=bn2d(4),
            )
        ),
        x(2, 3, 6, 6),
        2,
    ),
    # products of values that both move
    Case(
        "both-factors",
        unshifted(forward(lambda m, v: m.out(m.a(v) * m.b(v)), a=bn2d(3), b=bn2d(3), out=conv(3, 4, 3))),
        x(2, 3, 6, 6),
        2,
    ),
    Case(
        "both-factors-and-their-product",
        unshifted(
            forward(lambda m, v: F.relu(m.bn(m.a(v).relu() * m.b(v))), a=conv(3, 4), b=conv(3, 4), bn=bn2d(4))
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case("a-square-with-positive-scales", positive(a_square()), x(2, 3, 6, 6), 1),
    # several maps in one channel
    Case("beside-itself", beside_itself(1), x(2, 3, 6, 6), 2),
    Case(
        "into-one-that-stays",
        forward(
            lambda m, v: m.bn(m.n(m.a(v).clone())).tanh(),
            a=lambda: nn.Linear(6, 5),
            n=lambda: nn.BatchNorm1d(3),
            bn=lambda: nn.BatchNorm1d(3),
        ),
        x(2, 3, 6),
        1,
        stay=1,
    ),
    # channels without a scale
    Case("pruned", pruned(sequential(conv(3, 4, 3), bn2d(4), nn.ReLU())), x(2, 3, 6, 6), 1),
    Case("pruned-twice", pruned(sequential(conv(3, 4, 3), bn2d(4), bn2d(4), nn.ReLU())), x(2, 3, 6, 6), 2),
    Case(
        "pruned-in-front-of-a-conv", pruned(sequential(nn.Tanh(), bn2d(3), conv(3, 4, 3))), x(2, 3, 6, 6), 1
    ),
    Case(
        "pruned-over-a-sum",
        pruned(forward(lambda m, v: m.bn(m.a(v) + m.b(v)), a=conv(3, 4, 3), b=conv(3, 4, 3), bn=bn2d(4))),
        x(2, 3, 6, 6),
        1,
    ),
    # the BatchNorm
    Case(
        "no-affine",
        sequential(lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4, affine=False)),
        x(2, 3, 6, 6),
        1,
    ),
    Case("bn-no-bias", sequential(lambda: nn.Conv2d(3, 4, 3), lambda: _without_bias()), x(2, 3, 6, 6), 1),
    Case(
        "large-eps",
        sequential(lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4, eps=0.5)),
        x(2, 3, 6, 6),
        1,
    ),
    Case("sync-bn", sequential(lambda: nn.Conv2d(3, 4, 3), lambda: nn.SyncBatchNorm(4)), x(2, 3, 6, 6), 1),
    Case(
        "instance-norm-that-tracks",
        sequential(
            lambda: nn.Conv2d(3, 4, 3), lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "frozen-bn",
        sequential(lambda: nn.Conv2d(3, 4, 3, bias=False), lambda: FrozenBatchNorm(4)),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "bn-behind-frozen-bn",
        sequential(nn.ReLU(), lambda: FrozenBatchNorm(3), lambda: nn.BatchNorm2d(3)),
        x(2, 3, 6, 6),
        1,
        stay=1,
    ),
    Case(
        "subclass-with-act-child",
        sequential(lambda: nn.Conv2d(3, 4, 3), lambda: BatchNormAct(4)),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "subclass-with-act-function",
        sequential(lambda: nn.Conv2d(3, 4, 3), lambda: BatchNormReLU(4)),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "instancenorm-without-affine-then-bn",
        sequential(
            lambda: nn.Conv2d(3, 4, 3),
            lambda: nn.InstanceNorm2d(4, track_running_stats=True),
            lambda: nn.BatchNorm2d(4),
        ),
        x(2, 3, 6, 6),
        2,
    ),
    Case("frozen-bn-in-training-model", _frozen_in_training, x(2, 3, 6, 6), 1),
    # between them
    Case(
        "identity-dropout-contiguous",
        sequential(
            lambda: nn.Conv2d(3, 4, 3),
            nn.Identity(),
            nn.Dropout(0.5),
            nn.Dropout2d(0.5),
            lambda: Apply(lambda m, v: v.contiguous().clone()),
            lambda: nn.BatchNorm2d(4),
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case("cast", _half_head, x(5, 6), 1),
    Case(
        "squeeze",
        lambda: Apply(
            lambda m, v: m.bn(m.conv(v).mul(1).squeeze(-1) if False else m.conv(v).squeeze(-1)),
            conv=nn.Conv2d(3, 4, (3, 1)),
            bn=nn.BatchNorm1d(4),
        ),
        x(2, 3, 6, 1),
        1,
    ),
    Case(
        "flatten-of-one-pixel",
        sequential(lambda: nn.Conv2d(3, 4, 5), nn.Flatten(), lambda: nn.BatchNorm1d(4)),
        x(2, 3, 5, 5),
        1,
    ),
    # how they are called
    Case(
        "by-keyword",
        lambda: Apply(
            lambda m, v: m.bn(input=m.conv(input=v)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case("slices-of-one-vector", lambda: flat_vector(lambda m, v: m.bn(m.conv(v))), x(2, 3, 6, 6), 1),
    Case(
        "spelt-out-on-features",
        lambda: nn.Sequential(nn.Linear(6, 4), Spelt(4, (-1,))),
        x(5, 6),
        1,
    ),
    Case(
        "spelt-out-on-maps", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Spelt(4, (4, 1, 1))), x(2, 3, 6, 6), 1
    ),
    Case(
        "one-token-squeezed",
        lambda: Apply(
            lambda m, v: m.bn(m.fc(v).reshape(v.shape[0], 4)), fc=nn.Linear(6, 4), bn=nn.BatchNorm1d(4)
        ),
        x(2, 1, 6),
        1,
    ),
    Case(
        "reshaped-where-a-view-needs-the-layout",
        lambda: Apply(
            lambda m, v: F.relu(m.bn(m.fc(v).transpose(1, 2))).reshape(len(v), -1),
            fc=nn.Linear(6, 4),
            bn=nn.BatchNorm1d(4),
        ),
        x(2, 5, 6),
        1,
    ),
    Case(
        "gamma-shared-with-a-bn-that-stays",
        lambda: _shared_gamma(),
        x(2, 3, 6, 6),
        1,
        stay=1,
    ),
    Case(
        "functional-conv",
        lambda: Apply(
            lambda m, v: m.bn(F.conv2d(v, m.conv.weight, m.conv.bias)),
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm2d(4),
        ),
        x(2, 3, 6, 6),
        1,
    ),
    Case(
        "dict-in-and-out",
        lambda: Apply(
            lambda m, batch: {"y": m.bn(m.conv(batch["image"]))},
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm2d(4),
        ),
        ({"image": x(2, 3, 6, 6)},),
        1,
    ),
    Case(
        "keyword-inputs",
        lambda: Apply(
            lambda m, *, image, scale: m.bn(m.conv(image)) * scale,
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm2d(4),
        ),
        {"image": x(2, 3, 6, 6), "scale": torch.tensor([[[[2.0]]]] * 2)},
        1,
    ),
    Case(
        "data-parallel",
        lambda: nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
        x(2, 3, 6, 6),
        1,
    ),
    Case("control-flow-on-data", _control_flow, x(2, 3, 6, 6), 1),
    Case("pair-called-twice", _pairs, x(2, 3, 6, 6), 2),
    Case("one-bn-for-two-convs", _one_bn_two_convs, x(2, 3, 6, 6), 2),
    Case("tied-weight-same-bn", _tied_weight_same_bn, x(2, 3, 6, 6), 2),
    Case("aliases", _aliased, x(2, 3, 6, 6), 2),
    # parametrised hosts, baked
    Case(
        "weight-norm-old-baked",
        sequential(lambda: _quiet_weight_norm(nn.Conv2d(3, 4, 3)), lambda: nn.BatchNorm2d(4)),
        x(2, 3, 6, 6),
        1,
        bake=True,
    ),
    Case(
        "weight-norm-baked",
        sequential(
            lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), lambda: nn.BatchNorm2d(4)
        ),
        x(2, 3, 6, 6),
        1,
        bake=True,
    ),
    Case(
        "spectral-norm-old-baked",
        sequential(lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), lambda: nn.BatchNorm2d(4)),
        x(2, 3, 6, 6),
        1,
        bake=True,
    ),
    Case(
        "spectral-norm-baked",
        sequential(
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), lambda: nn.BatchNorm1d(4)
        ),
        x(5, 6),
        1,
        bake=True,
    ),
]


def flat_vector(forward: Callable[..., Any]) -> nn.Module:
    """As a merged model has it: each parameter is a slice of one vector."""
    net = Apply(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    vector = nn.utils.parameters_to_vector(net.parameters()).detach()
    nn.utils.vector_to_parameters(vector, net.parameters())
    net.vector = vector
    return net


def _shared_gamma() -> nn.Module:
    bn, other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    other.weight = bn.weight
    return Apply(lambda m, v: m.other(F.relu(m.bn(m.conv(v)))), conv=nn.Conv2d(3, 4, 3), bn=bn, other=other)


def _without_bias() -> nn.Module:
    bn = nn.BatchNorm2d(4)
    bn.bias = None
    return bn


def _quiet_weight_norm(module: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)
