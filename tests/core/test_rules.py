"""Each operator's rule against the operator itself, in float64: what it says that passes, passes.

The inputs of an operator come from layers, so that their maps are free; maps are drawn that meet what the
rule requires, and the operator is run on ``s·x + t``. Beside each rule stands what it may not let pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntools.core.calls import Value
from bntools.core.capture import capture
from bntools.core.carry import RULES, flow_of, rule_of
from bntools.core.example import Example
from bntools.core.flow import Flow, Pin
from bntools.core.forest import Forest
from bntools.core.graph import Graph
from bntools.core.lanes import GROUND
from bntools.core.sums import Sums
from tests.must_fold import Apply

Shape = tuple[int, ...]
ANY, SCALE, POSITIVE, UP, NOTHING = "any map", "a scale", "a positive scale", "s > 0 with a shift", "nothing"
MAPS = (2, 4, 6, 8)
WAYS: dict[str, tuple[int, ...]] = {"maps": MAPS, "tokens": (2, 5, 4), "features": (3, 4)}


@dataclass(frozen=True)
class Case:
    """An operator on values of some shapes, whose channels lie on axis 1 of maps and on the last of the
    others.

    Args:
        op: its name, which must have been run.
        f: how it is called.
        passes: what of a map of its first input goes through it.
        shapes: of its inputs.
        fixed: how many of them, from the last, are inputs of the model, whose values stay as they are.
        stored: the shape of a parameter that it gets besides.
    """

    op: str
    f: Callable[..., Any]
    passes: str
    shapes: tuple[Shape, ...] = (MAPS,)
    fixed: int = 0
    stored: Shape | None = None

    def __str__(self) -> str:
        return f"{self.op}-{self.passes.replace(' ', '-')}"


def _attended(v: Tensor, w: Tensor) -> Tensor:
    return (w @ w.transpose(1, 2)).softmax(-1) @ v


def _turned(v: Tensor, w: Tensor) -> Tensor:
    return v.transpose(1, 2) @ (w @ w.transpose(1, 2)).softmax(-1).transpose(1, 2)


def _heads(v: Tensor) -> Tensor:
    n, length, channels = v.shape
    return v.reshape(n, length, 2, channels // 2).permute(0, 2, 1, 3)


TOKENS, FEATURES = WAYS["tokens"], WAYS["features"]
GRID = torch.rand(2, 5, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.4 - 1.2

CASES = [
    # what moves entries
    Case("clone", torch.clone, ANY),
    Case("dropout", lambda v: F.dropout(v, 0.5, training=False), ANY),
    Case("dropout", lambda v: F.dropout(v, 0.5, training=True), NOTHING),
    Case("to", lambda v: v.to(torch.float32).double(), ANY),
    Case("to", lambda v: v.to(torch.int64).double(), NOTHING),
    Case("reshape", lambda v: v.reshape(2, 4, 48), ANY),
    Case("reshape", lambda v: v.reshape(2, 2, 2, 6, 8), ANY),
    Case("reshape", lambda v: v.reshape(2, 192), ANY),
    Case("flatten", lambda v: v.flatten(1), ANY),
    Case("flatten", lambda v: v.flatten(0, 1), ANY, (TOKENS,)),
    Case("squeeze", lambda v: v.squeeze(-1), ANY, ((2, 4, 6, 1),)),
    Case("unsqueeze", lambda v: v.unsqueeze(1), ANY),
    Case("permute", lambda v: v.permute(2, 0, 3, 1), ANY),
    Case("transpose", lambda v: v.transpose(1, -1), ANY),
    Case("movedim", lambda v: v.movedim((1, 2), (3, 0)), ANY),
    Case("t", lambda v: v.t(), ANY, (FEATURES,)),
    Case("expand", lambda v: v.expand(3, 2, 4, 6, 8), ANY),
    Case("repeat", lambda v: v.repeat(1, 2, 1, 3), ANY),
    Case("select", lambda v: v[:, 2], ANY),
    Case("select", lambda v: v[:, :, 0], ANY),
    Case("unbind", lambda v: torch.stack(_heads(v).unbind(1)[::-1], 2), ANY, (TOKENS,)),
    Case("slice", lambda v: v[:, 1::2, 1:], ANY),
    Case("narrow", lambda v: torch.narrow(v, 1, 1, 2), ANY),
    Case("split", lambda v: v.split(3, 1)[1].clone(), ANY),
    Case("split_with_sizes", lambda v: v.split([1, 3], 1)[1].clone(), ANY),
    Case("chunk", lambda v: v.chunk(2, 1)[1].clone(), ANY),
    Case("chunk", lambda v: v.chunk(2, 2)[1].clone(), ANY),
    Case("cat", lambda v, w: torch.cat((v, w, v), 1), ANY, (MAPS, (2, 3, 6, 8))),
    Case("cat", lambda v, w: torch.cat((v, w), 2), ANY, (MAPS, (2, 4, 5, 8))),
    Case("cat", lambda v, w: torch.cat((v, w), 1), ANY, (MAPS, (2, 3, 6, 8)), 1),
    Case("cat", lambda v, w: torch.cat((v, w), 2), NOTHING, (MAPS, (2, 4, 5, 8)), 1),
    Case("stack", lambda v, w: torch.stack((v, w), 1), ANY, (MAPS, MAPS)),
    Case("pad", lambda v: F.pad(v, (1, 2, 0, 1), mode="reflect"), ANY),
    Case("pad", lambda v: F.pad(v, (1, 2, 0, 1), mode="replicate"), ANY),
    Case("pad", lambda v: F.pad(v, (1, 2, 0, 1), mode="circular"), ANY),
    Case("pad", lambda v: F.pad(v, (1, 2, 0, 1)), SCALE),
    Case("pad", lambda v: F.pad(v, (1, 2, 0, 1), value=1.0), NOTHING),
    Case("pad", lambda v: F.pad(v, (0, 0, 0, 0, 1, 2)), ANY),
    Case("roll", lambda v: v.roll((1, 2), (2, 3)), ANY),
    Case("roll", lambda v: v.roll(1, 1), ANY),
    Case("flip", lambda v: v.flip(1, 2), ANY),
    Case("pixel_shuffle", lambda v: F.pixel_shuffle(v, 2), ANY, ((2, 8, 3, 5),)),
    Case("pixel_unshuffle", lambda v: F.pixel_unshuffle(v, 2), ANY),
    Case("channel_shuffle", lambda v: F.channel_shuffle(v, 2), ANY),
    Case("unfold", lambda v: v.unfold(2, 3, 2).unfold(3, 2, 1), ANY),
    Case("im2col", lambda v: F.unfold(v, 3), ANY),
    Case("im2col", lambda v: F.unfold(v, 3, padding=1), SCALE),
    # what computes
    Case("add", torch.add, ANY, (MAPS, MAPS)),
    Case("add", lambda v, w: torch.add(v, w, alpha=-0.5), ANY, (MAPS, MAPS)),
    Case("add", lambda v, w: v + w, ANY, (MAPS, (1, 4, 1, 1))),
    Case("add", lambda v, w: v + w, "a shift", (MAPS, MAPS), 1),
    Case("add", lambda v: v + 1, "a shift"),
    Case("add", lambda v: v + 0, ANY),
    Case("add_", lambda v, w: v.clone().add_(w), ANY, (MAPS, MAPS)),
    Case("sub", torch.sub, ANY, (MAPS, MAPS)),
    Case("rsub", lambda v: torch.rsub(v, 2.0), "a shift"),
    Case("neg", torch.neg, ANY),
    Case("mul", lambda v: v * -1.5, ANY),
    Case("mul", lambda v: v * 0, NOTHING),
    Case("div", lambda v: v / 4, ANY),
    Case("div", lambda v: torch.div(v, 4, rounding_mode="floor"), NOTHING),
    Case("mul", lambda v, w: v * w, SCALE, (MAPS, (2, 4, 1, 1)), 1),
    Case("mul", lambda v, w: w * v, SCALE, (MAPS, (2, 1, 6, 8)), 1),
    Case("mul", lambda v, w: v * w, SCALE, (MAPS, (2, 4, 1, 1))),
    Case("mul", lambda v, k: v * k, ANY, stored=(4, 1, 1)),
    Case("mul", lambda v, k: k * v, ANY, (TOKENS,), stored=(4,)),
    Case("mul_", lambda v, k: v.mul_(k), ANY, stored=(1, 4, 1, 1)),
    Case("mul", lambda v, k: v * k.view(1, -1, 1, 1), ANY, stored=(4,)),
    Case("mul", lambda v, k: v * k.flip(0).view(1, -1, 1, 1), SCALE, stored=(4,)),
    Case("div", lambda v, k: v / k, ANY, stored=(1, 4, 1, 1)),
    Case("mul", lambda v, k: v * k, SCALE, stored=(4, 6, 8)),
    Case("div", lambda v, w: v / (w.abs() + 1), SCALE, (MAPS, MAPS), 1),
    Case("reciprocal", lambda v: 1 / (v.abs() + 1), NOTHING),
    Case("relu", torch.relu, POSITIVE),
    Case("relu_", lambda v: v.clone().relu_(), POSITIVE),
    Case("leaky_relu", lambda v: F.leaky_relu(v, 0.3), POSITIVE),
    Case("prelu", lambda v: F.prelu(v, torch.tensor([0.2, -0.3, 0.5, 2.0], dtype=v.dtype)), POSITIVE),
    Case("abs", torch.abs, POSITIVE),
    Case("clamp", lambda v: v.clamp(min=0), POSITIVE),
    Case("clamp_min", lambda v: v.clamp_min(0), POSITIVE),
    Case("clamp", lambda v: v.clamp(min=0, max=6), NOTHING),
    Case("clamp", lambda v: v.clamp(min=-1), NOTHING),
    Case("gelu", F.gelu, NOTHING),
    Case("hardtanh", lambda v: F.hardtanh(v, 0, 6), NOTHING),
    Case("avg_pool2d", lambda v: F.avg_pool2d(v, 2), ANY),
    Case("avg_pool2d", lambda v: F.avg_pool2d(v, 4, ceil_mode=True), ANY),
    Case("avg_pool2d", lambda v: F.avg_pool2d(v, 3, 2, padding=1, count_include_pad=False), ANY),
    Case("avg_pool2d", lambda v: F.avg_pool2d(v, 3, 2, padding=1), SCALE),
    Case("avg_pool2d", lambda v: F.avg_pool2d(v, 2, divisor_override=3), SCALE),
    Case("adaptive_avg_pool2d", lambda v: F.adaptive_avg_pool2d(v, (3, 5)), ANY),
    Case("adaptive_avg_pool2d", lambda v: F.adaptive_avg_pool2d(v, 1).flatten(1), ANY),
    Case("mean", lambda v: v.mean((2, 3)), ANY),
    Case("mean", lambda v: v.mean(-1, keepdim=True), ANY),
    Case("mean", lambda v: v.mean(1), NOTHING),
    Case("mean", lambda v: v.mean(), NOTHING),
    Case("max_pool2d", lambda v: F.max_pool2d(v, 3, 2, padding=1), UP),
    Case("adaptive_max_pool2d", lambda v: F.adaptive_max_pool2d(v, 1), UP),
    Case("amax", lambda v: v.amax((2, 3)), UP),
    Case("amin", lambda v: v.amin(2), UP),
    Case("max", lambda v: v.max(2).values, UP),
    Case("amax", lambda v: v.amax(1), NOTHING),
    Case("max", lambda v, w: torch.max(v, w), NOTHING, (MAPS, MAPS)),
    Case("sum", lambda v: v.sum((2, 3)), SCALE),
    Case("upsample_nearest2d", lambda v: F.interpolate(v, scale_factor=2), ANY),
    Case(
        "upsample_bilinear2d", lambda v: F.interpolate(v, (9, 5), mode="bilinear", align_corners=False), ANY
    ),
    Case("upsample_bicubic2d", lambda v: F.interpolate(v, (9, 5), mode="bicubic", align_corners=True), ANY),
    Case(
        "_upsample_bilinear2d_aa",
        lambda v: F.interpolate(v, (3, 5), mode="bilinear", align_corners=False, antialias=True),
        ANY,
    ),
    Case("grid_sampler", lambda v: F.grid_sample(v, GRID, padding_mode="border", align_corners=True), ANY),
    Case("grid_sampler", lambda v: F.grid_sample(v, GRID, align_corners=True), SCALE),
    Case("matmul", _attended, ANY, (TOKENS, (2, 5, 3))),
    Case("matmul", _turned, ANY, (TOKENS, (2, 5, 3))),
    Case("matmul", lambda v, w: (w @ w.transpose(1, 2)) @ v, SCALE, (TOKENS, (2, 5, 3)), 1),
    Case("matmul", lambda v, w: v @ w, NOTHING, (TOKENS, (2, 4, 3)), 1),
    Case(
        "scaled_dot_product_attention",
        lambda v, w: F.scaled_dot_product_attention(_heads(w), _heads(w), _heads(v)),
        ANY,
        (TOKENS, TOKENS),
        1,
    ),
    Case(
        "scaled_dot_product_attention",
        lambda v, w: F.scaled_dot_product_attention(
            _heads(w), _heads(w), _heads(v), attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()
        ),
        SCALE,
        (TOKENS, TOKENS),
        1,
    ),
    Case(
        "scaled_dot_product_attention",
        lambda v, w: F.scaled_dot_product_attention(_heads(v), _heads(w), _heads(w)),
        NOTHING,
        (TOKENS, TOKENS),
        1,
    ),
    Case("softmax", lambda v: v.softmax(1), NOTHING),
    Case("exp", torch.exp, NOTHING),
]


def layer(shape: Shape) -> nn.Module:
    return nn.Conv2d(shape[1], shape[1], 1) if len(shape) == 4 else nn.Linear(shape[-1], shape[-1])


class Bench:
    """An operator behind layers, and the flow of its capture when nobody looks at what it returns."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        self.x = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in case.shapes]
        moved = len(case.shapes) - case.fixed
        self.layers = nn.ModuleList(layer(shape) for shape in case.shapes[:moved]).double().eval()

        def forward(m: Any, *values: Tensor) -> Any:
            return self.f(*(m.layers[i](v) if i < moved else v for i, v in enumerate(values)))

        net = Apply(forward, layers=self.layers)
        if case.stored is not None:
            net.factors = nn.Parameter(torch.randn(case.stored, generator=generator, dtype=torch.float64))
        self.net = net
        captured = replace(capture(net, Example(tuple(self.x))), outside={})
        assert case.op in {call.op for call in captured.calls}
        self.flow = flow_of(Graph(captured), {})
        made = [c for c in captured.calls if c.op in ("conv2d", "linear")]
        self.inputs: list[Value | None] = [c.outputs[0] for c in made] + [None] * case.fixed
        self.out = captured.calls[-1].outputs[0]
        with torch.no_grad():
            self.values = [self.layers[i](v) if i < moved else v for i, v in enumerate(self.x)]

    def f(self, *values: Tensor) -> Any:
        stored = () if self.case.stored is None else (self.net.factors,)
        return self.case.f(*values, *stored)

    def maps(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Random maps of all labels that meet what is required of them."""
        return draw(self.flow, np.random.default_rng(seed))

    def stands(self, value: Value | None, x: Tensor, maps: tuple[np.ndarray, np.ndarray]) -> Tensor:
        if value is None:
            return x
        lane = self.flow.lane(value)
        scale, shift = (torch.from_numpy(np.asarray(numbers[lane])) for numbers in maps)
        return x * scale + shift


def draw(flow: Flow, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scales, shifts = Forest(flow.count, 1.0), Forest(flow.count, 0.0)
    for tie in flow.ties:
        scales.tie(tie.a, tie.b, 1.0, 0.0)
        if tie.shift:
            shifts.tie(tie.a, tie.b, 1.0, 0.0)
    for total in flow.totals:
        for factor, term in total.terms:
            scales.tie(total.out, term, 1.0, 0.0)
            if len(total.terms) == 1:
                shifts.tie(total.out, term, factor, 0.0)
    positive = np.zeros(flow.count, bool)
    for pin in flow.pins:
        if pin.what & Pin.SCALE:
            scales.tie(pin.labels, GROUND, 1.0, 0.0)
        if pin.what & Pin.SHIFT:
            shifts.tie(pin.labels, GROUND, 1.0, 0.0)
    for pin in flow.pins:
        if pin.what & Pin.SIGN:
            positive[scales.find(pin.labels)[0]] = True
    labels = np.arange(flow.count)
    s = rng.uniform(0.5, 2, flow.count) * np.where(positive, 1, rng.choice([-1, 1], flow.count))
    s[GROUND] = 1
    t = rng.standard_normal(flow.count)
    t[GROUND] = 0
    _, roots, values = Sums(flow.sums).solve(shifts, t)
    t[roots] = values
    root, a, b = shifts.find(labels)
    s = s[scales.find(labels)[0]]
    for each in flow.products:
        s[each.out] = s[each.one] * s[each.two]
    return s, a * t[root] + b


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_what_a_rule_lets_pass_passes(case: Case, seed: int) -> None:
    bench = Bench(case)
    maps = bench.maps(seed)
    inputs = [bench.stands(v, x, maps) for v, x in zip(bench.inputs, bench.values, strict=True)]
    before, after = bench.f(*(v.clone() for v in bench.values)), bench.f(*inputs)
    if case.op == "dropout" and case.passes == NOTHING:
        before = after  # it draws anew each time
    expected = bench.stands(bench.out, before, maps)
    tolerance = 1e-6 if case.op == "to" else 1e-12
    assert after.shape == expected.shape
    assert (after - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_lets_pass_what_it_should_and_no_more(case: Case) -> None:
    """By what is the same however the maps are drawn."""
    bench = Bench(case)
    assert bench.inputs[0] is not None
    labels = np.unique(bench.flow.lane(bench.inputs[0]))
    draws = [bench.maps(seed) for seed in range(8)]
    s, t = (np.array([draw[i][labels] for draw in draws]) for i in (0, 1))
    scale = NOTHING if (s == 1).all() else POSITIVE if (s > 0).all() else SCALE
    shift = not (t == 0).all()
    passes = {
        (SCALE, True): ANY,
        (SCALE, False): SCALE,
        (POSITIVE, False): POSITIVE,
        (POSITIVE, True): UP,
        (NOTHING, True): "a shift",
        (NOTHING, False): NOTHING,
    }
    assert passes[scale, shift] == case.passes


def test_every_rule_has_a_case() -> None:
    """Or is another name of one that has."""
    shown = {rule_of(case.op) for case in CASES} - {None}
    assert set(RULES.values()) == shown
