"""Random networks: a recipe of steps over earlier values, drawn so that every shape fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.must_fold import BatchNormAct, BatchNormReLU, FrozenBatchNorm
from tests.season import season

Shape = tuple[int, ...]
HOSTS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Step:
    """One step: what it does to which earlier values, by which child, if any."""

    op: str
    inputs: tuple[int, ...]
    child: str = ""


@dataclass(frozen=True)
class Recipe:
    """A network: its children by name, its steps, and the values that it returns besides the last."""

    start: Shape
    children: tuple[tuple[str, str, tuple[Any, ...], tuple[tuple[str, Any], ...]], ...]
    steps: tuple[Step, ...]
    returned: tuple[int, ...] = ()


_OPS: dict[str, Any] = {
    "relu": torch.relu,
    "leaky": lambda v: F.leaky_relu(v, 0.2),
    "sigmoid": torch.sigmoid,
    "clone": torch.clone,
    "detach": torch.detach,
    "contiguous": lambda v: v.contiguous(),
    "swap": lambda v: v.transpose(-1, -2),
    "channels last": lambda v: v.movedim(1, -1),
    "channels first": lambda v: v.movedim(-1, 1),
    "flatten": lambda v: v.flatten(1),
    "rows": lambda v: v.flatten(2),
    "merge": lambda v: v.flatten(0, 1),
    "there and back": lambda v: v.flatten(1).view_as(v),
    "first half": lambda v: v[:, : (v.shape[1] + 1) // 2],
    "mean": lambda v: v.mean(-1),
    "pool": lambda v: F.avg_pool2d(v, 2),
    "double": lambda v: v * 2,
    "relu_": torch.relu_,
    "mul_": lambda v: v.mul_(1.5),
    "add": torch.add,
    "mul": torch.mul,
    "cat": lambda a, b: torch.cat((a, b), 1),
    "add_": lambda a, b: a.add_(b.clone()),
    "copy_": lambda a, b: a.clone().copy_(b),
    "sub": torch.sub,
    "cat width": lambda a, b: torch.cat((a, b), -1),
    "max pool": lambda v: F.max_pool2d(v, 2),
    "counted pool": lambda v: F.avg_pool2d(v, 3, 1, 1),
    "global pool": lambda v: F.adaptive_avg_pool2d(v, 1),
    "larger": lambda v: F.interpolate(v, scale_factor=2),
    "shuffle": lambda v: F.channel_shuffle(v, 2),
    "roll": lambda v: v.roll(1, 1),
    "reflect": lambda v: F.pad(v, (1, 1, 0, 0), mode="reflect"),
    "zeros": lambda v: F.pad(v, (0, 1)),
    "second half": lambda v: v.chunk(2, 1)[-1],
    "gated": lambda v: v * v.mean(1, keepdim=True).sigmoid(),
    "swap halves": lambda v: torch.cat(v.chunk(2, 1)[::-1], 1),
}
UNARY = [
    *("relu", "relu", "leaky", "sigmoid", "clone", "detach", "contiguous", "swap", "channels last"),
    *("channels first", "flatten", "rows", "merge", "there and back", "first half", "mean", "pool"),
    *("double", "relu_", "mul_", "swap halves"),
]
BINARY = ["add", "mul", "cat", "add_", "copy_"]
CARRYING = [
    *("relu", "leaky", "clone", "contiguous", "channels last", "channels first", "flatten", "rows", "merge"),
    *(
        "first half",
        "second half",
        "mean",
        "pool",
        "double",
        "swap halves",
        "max pool",
        "counted pool",
        "global pool",
    ),
    *("larger", "shuffle", "roll", "reflect", "zeros", "gated", "sigmoid"),
]
JOINING = ["add", "add", "add", "sub", "cat", "cat width", "mul"]


class Graph(nn.Module):
    """Carries out a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        for name, kind, args, kwargs in recipe.children:
            layer = KINDS[kind]
            self.add_module(name, layer(*args, **dict(kwargs)))

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.recipe.steps:
            inputs = [values[i] for i in step.inputs]
            if step.op == "functional":
                host = self.get_submodule(step.child)
                values.append(F.linear(inputs[0], host.weight, host.bias))  # type: ignore[arg-type]
            elif step.child:
                values.append(self.get_submodule(step.child)(*inputs))
            else:
                values.append(_OPS[step.op](*inputs))
        return (*(values[i] for i in self.recipe.returned), values[-1])


KINDS: dict[str, Any] = {
    **{f"Conv{n}d": getattr(nn, f"Conv{n}d") for n in (1, 2)},
    **{f"ConvTranspose{n}d": getattr(nn, f"ConvTranspose{n}d") for n in (1, 2)},
    **{f"BatchNorm{n}d": getattr(nn, f"BatchNorm{n}d") for n in (1, 2)},
    "InstanceNorm2d": nn.InstanceNorm2d,
    "Linear": nn.Linear,
    "LayerNorm": nn.LayerNorm,
    "GroupNorm": nn.GroupNorm,
    "Identity": nn.Identity,
    "Dropout": nn.Dropout,
    "FrozenBatchNorm": FrozenBatchNorm,
    "BatchNormReLU": BatchNormReLU,
    "BatchNormAct": BatchNormAct,
}


class _Drawing:
    """What is known while a recipe is drawn: the shape of each value, and what each child takes."""

    def __init__(self, draw: Any, start: Shape) -> None:
        self.draw, self.start = draw, start
        self.shapes = [start]
        self.steps: list[Step] = []
        self.children: list[tuple[str, str, tuple[Any, ...], tuple[tuple[str, Any], ...]]] = []
        self.models: dict[str, nn.Module] = {}

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def value(self) -> int:
        """Mostly the last one, so that there are chains."""
        back = self.pick(0, 0, 0, 0, 0, 0, 1, 2, 3)
        return max(0, len(self.shapes) - 1 - int(back))

    def add(self, op: str, inputs: tuple[int, ...], child: str = "") -> bool:
        """Append a step if it runs on its inputs and the result is small."""
        with torch.no_grad():
            given = [torch.zeros(self.shapes[i]) for i in inputs]
            try:
                if op == "functional":
                    host = self.models[child]
                    out = F.linear(given[0], host.weight, host.bias)  # type: ignore[arg-type]
                else:
                    out = self.models[child](*given) if child else _OPS[op](*given)
            except (RuntimeError, ValueError, IndexError, UserWarning):
                return False
        if out.ndim < 2 or not 0 < out.numel() <= 3000:
            return False
        self.steps.append(Step(op, inputs, child))
        self.shapes.append(tuple(out.shape))
        return True

    def child(self, kind: str, *args: Any, **kwargs: Any) -> str:
        name = f"{kind.lower()}{len(self.children)}"
        self.children.append((name, kind, args, tuple(kwargs.items())))
        self.models[name] = KINDS[kind](*args, **kwargs).eval()
        return name

    def host(self, at: int) -> None:
        shape, out, bias = self.shapes[at], self.pick(1, 2, 3, 4), self.pick(True, False)
        if len(shape) == 2 or self.pick(*range(6)) == 0:
            self.add("host", (at,), self.child("Linear", shape[-1], out, bias=bias))
            return
        if len(shape) > 4:
            return
        groups = self.pick(1, 1, math.gcd(shape[1], out))
        kind = self.pick("Conv", "Conv", "ConvTranspose")
        options = {"stride": self.pick(1, 1, 2), "groups": groups, "bias": bias, "padding": self.pick(0, 1)}
        name = self.child(f"{kind}{len(shape) - 2}d", shape[1], out, self.pick(1, 3), **options)
        self.add("host", (at,), name)

    def norm(self, at: int) -> None:
        shape = self.shapes[at]
        if len(shape) > 4:
            return
        if len(shape) < 4:
            kinds = ["BatchNorm1d"]
        else:
            kinds = ["BatchNorm2d"] * 5 + [
                "BatchNormReLU",
                "BatchNormAct",
                "FrozenBatchNorm",
                "InstanceNorm2d",
            ]
        kind, options = self.pick(*kinds), {}
        if kind.startswith("BatchNorm") and kind[-1] == "d":
            options = {"affine": self.pick(True, True, False), "eps": self.pick(1e-5, 1e-3, 0.1)}
        if kind == "InstanceNorm2d":
            options = {"affine": self.pick(True, False), "track_running_stats": True}
        self.add("norm", (at,), self.child(kind, shape[1], **options))

    def other(self, at: int) -> None:
        shape = self.shapes[at]
        kind, args = self.pick(
            ("Identity", ()), ("Dropout", ()), ("LayerNorm", (shape[-1],)), ("GroupNorm", (1, shape[1]))
        )
        self.add("other", (at,), self.child(kind, *args))

    def again(self, at: int) -> None:
        """Call a child once more, or read its weights by a function."""
        if self.children:
            name = self.pick(*[c[0] for c in self.children])
            functional = isinstance(self.models[name], nn.Linear) and self.pick(True, False)
            self.add("functional" if functional else "again", (at,), name)

    def binary(self, at: int) -> None:
        fitting = [i for i, s in enumerate(self.shapes) if s == self.shapes[at]]
        self.add(self.pick(*BINARY), (at, self.pick(*fitting)))


STARTS: tuple[Shape, ...] = ((2, 3, 5, 4), (2, 4, 4, 4), (3, 4), (2, 3, 6))


@st.composite
def recipes(draw: Any) -> Recipe:
    """Networks of up to 14 steps; most BatchNorms stand behind a host."""
    d = _Drawing(draw, draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(2, 9))):
        kind = d.pick("pair", "pair", "host", "norm", "unary", "unary", "binary", "again", "other")
        at = d.value()
        if kind == "pair":
            before = len(d.steps)
            d.host(at)
            if len(d.steps) > before:
                d.norm(len(d.shapes) - 1)
        elif kind == "unary":
            d.add(d.pick(*UNARY), (at,))
        else:
            getattr(d, kind)(at)
    used = {s.child for s in d.steps}
    keep = tuple(c for c in d.children if c[0] in used or d.pick(*range(8)) == 0)
    count = len(d.shapes)
    returned = (
        draw(st.lists(st.integers(1, count - 1), max_size=1)) if count > 1 and d.pick(*range(3)) == 0 else []
    )
    return Recipe(d.start, keep, tuple(d.steps), tuple(returned))


@st.composite
def chains(draw: Any) -> Recipe:
    """A row of hosts, each with its BatchNorm behind it, with activations and carriers between them."""
    d = _Drawing(draw, draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(1, 3))):
        before = len(d.steps)
        d.host(len(d.shapes) - 1)
        if len(d.steps) == before:
            continue
        if isinstance(d.models[d.steps[-1].child], nn.Linear) and len(d.shapes[-1]) > 2:
            d.add("channels first", (len(d.shapes) - 1,))
        for _ in range(draw(st.integers(0, 2))):
            carrier = d.pick("Identity", "Dropout", "clone", "contiguous")
            child = d.child(carrier) if carrier in KINDS else ""
            d.add(carrier, (len(d.shapes) - 1,), child)
        d.norm(len(d.shapes) - 1)
        d.add(d.pick("relu", "leaky", "relu_", "double"), (len(d.shapes) - 1,))
    return Recipe(d.start, tuple(c for c in d.children if c[0] in {s.child for s in d.steps}), tuple(d.steps))


@st.composite
def limits(draw: Any) -> Recipe:
    """Networks of operators that carry maps, in which BatchNorms may go in front, behind, or both; at most
    six.
    """
    d = _Drawing(draw, draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(3, 9))):
        kind = d.pick("host", "host", "norm", "norm", "norm", "carry", "carry", "join", "join", "again")
        at = d.value()
        if kind == "carry":
            d.add(d.pick(*CARRYING), (at,))
        elif kind == "join":
            fitting = [i for i, s in enumerate(d.shapes) if s == d.shapes[at]]
            d.add(d.pick(*JOINING), (at, d.pick(*fitting)))
        elif kind == "again":
            if d.pick(*range(4)) == 0:
                d.again(at)
        elif kind == "host" or sum(is_norm(d.models[s.child]) for s in d.steps if s.child) < 6:
            getattr(d, kind)(at)
    if d.pick(True, False):
        d.host(len(d.shapes) - 1)
    used = {s.child for s in d.steps}
    return Recipe(d.start, tuple(c for c in d.children if c[0] in used), tuple(d.steps))


def built(recipe: Recipe, seed: int = 0, dtype: torch.dtype = torch.float64) -> Graph:
    """The network of a recipe in eval, with seasoned BatchNorms; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Graph(recipe).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * 0.7)
    return season(model, seed).to(dtype)


def example(recipe: Recipe, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(recipe.start, generator=torch.Generator().manual_seed(1)).to(dtype)


def is_norm(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


def must_fold(recipe: Recipe, model: nn.Module) -> set[str]:
    """BatchNorms that fold beyond doubt: a host called once, read by a norm called once, by nobody else."""
    calls: dict[str, int] = {}
    readers: dict[int, int] = dict.fromkeys(recipe.returned, 1)
    for step in recipe.steps:
        calls[step.child] = calls.get(step.child, 0) + 1
        for i in step.inputs:
            readers[i] = readers.get(i, 0) + 1
    found = set()
    for step in recipe.steps:
        if not step.child or not is_norm(model.get_submodule(step.child)):
            continue
        (at,) = step.inputs
        maker = recipe.steps[at - 1] if at else None
        if maker is None or not maker.child or maker.op == "functional" or readers[at] != 1:
            continue
        host = model.get_submodule(maker.child)
        # A linear layer's channels are the last axis: a norm reads them only if there are two.
        axis = isinstance(host, nn.Linear) and not _two_axes(recipe, model, at)
        if isinstance(host, HOSTS) and not axis and calls[maker.child] == calls[step.child] == 1:
            found.add(step.child)
    return found


def _two_axes(recipe: Recipe, model: nn.Module, at: int) -> bool:
    shapes: list[int] = []
    hook = model.get_submodule(recipe.steps[at - 1].child).register_forward_hook(
        lambda m, args, out: shapes.append(out.ndim)
    )
    with torch.no_grad():
        model(example(recipe))
    hook.remove()
    return shapes == [2]
