"""SwitchableNorm against its equations, in the place of a BatchNorm, and wherever a layer has to go."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import bntools as bn
from bntools.core.quiet import quiet
from bntools.norms import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d
from tests.season import season

C = 3
SHAPES: Mapping[str, tuple[int, ...]] = {
    "1d": (5, C),
    "1d-length": (4, C, 6),
    "2d": (4, C, 5, 3),
    "3d": (3, C, 2, 4, 3),
    "1d-length-1": (4, C, 1),
    "2d-1x1": (4, C, 1, 1),
}
OURS = {"1d": SwitchableNorm1d, "2d": SwitchableNorm2d, "3d": SwitchableNorm3d}
TORCHS = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}

every_shape = pytest.mark.parametrize("kind", SHAPES)
either_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def made(kind: str, **options: Any) -> Any:
    """Seasoned, in float64, with six weights of its own."""
    norm = season(OURS[kind[:2]](C, **options)).double()
    with torch.no_grad():
        norm.mean_weight.copy_(torch.tensor([0.3, -0.9, 0.5]))
        norm.var_weight.copy_(torch.tensor([-0.4, 0.8, 0.1]))
    return norm


def drawn(kind: str) -> Tensor:
    """Channels, and samples, of different means and variances."""
    shape = SHAPES[kind]
    a, b, c, d = (torch.rand(n, dtype=torch.float64) + 0.5 for n in (C, C, shape[0], shape[0]))
    x = torch.randn(shape, dtype=torch.float64).movedim((0, 1), (-2, -1))
    return ((x * a + 3 * b).movedim(-1, 0) * c + 2 * d).movedim((-1, 0), (0, 1))


def softmax(logits: Any) -> Any:
    return np.exp(logits) / np.exp(logits).sum()


def of_the_batch(x: Any) -> tuple[Any, Any]:
    """μ and σ² of each channel, from those of each sample's, as the paper writes it; shape (1, C, 1)."""
    mean, var = x.mean(2, keepdims=True), x.var(2, keepdims=True)
    whole = mean.mean(0, keepdims=True)
    return whole, (var + mean**2).mean(0, keepdims=True) - whole**2


def by_hand(norm: nn.Module, x: Tensor) -> Any:
    """The equations of the paper, in NumPy."""
    own = {name: t.detach().numpy() for name, t in norm.state_dict().items()}
    flat = x.numpy().reshape(*x.shape[:2], -1)
    mean_in, var_in = flat.mean(2, keepdims=True), flat.var(2, keepdims=True)
    mean_ln = mean_in.mean(1, keepdims=True)
    var_ln = (var_in + mean_in**2).mean(1, keepdims=True) - mean_ln**2
    if norm.training:
        mean_bn, var_bn = of_the_batch(flat)
    else:
        mean_bn, var_bn = (own[f"running_{name}"].reshape(1, C, 1) for name in ("mean", "var"))
    kinds = slice(1 if flat.shape[2] == 1 else 0, 3)  # an instance of one value is left out
    means, variances = [mean_in, mean_ln, mean_bn][kinds], [var_in, var_ln, var_bn][kinds]
    w, v = softmax(own["mean_weight"][kinds]), softmax(own["var_weight"][kinds])
    mean = sum(each * part for each, part in zip(w, means, strict=True))
    var = sum(each * part for each, part in zip(v, variances, strict=True))
    y = (flat - mean) / np.sqrt(var + norm.eps)
    y = y * own.get("weight", np.ones(C)).reshape(1, C, 1) + own.get("bias", np.zeros(C)).reshape(1, C, 1)
    return y.reshape(x.shape)


# The equations


@every_shape
@either_mode
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"affine": False}, {"eps": 0.1}], ids=str)
def test_it_computes_the_equations(kind: str, training: bool, options: dict[str, Any]) -> None:
    norm, x = made(kind, **options).train(training), drawn(kind)
    assert abs(norm(x).detach().numpy() - by_hand(norm, x)).max() <= 1e-10


@every_shape
@pytest.mark.parametrize("momentum", [0.1, 0.7, 0.0, 1.0, None])
def test_the_running_statistics_are_those_of_torchs_batch_norm(kind: str, momentum: float | None) -> None:
    norm, twin = made(kind, momentum=momentum), TORCHS[kind[:2]](C, momentum=momentum).double()
    norm.reset_running_stats()
    mean, var = np.zeros(C), np.ones(C)
    for number in range(1, 4):
        x = drawn(kind)
        norm(x), twin(x)
        flat = x.numpy().reshape(*x.shape[:2], -1)
        count, m = flat.size / C, 1 / number if momentum is None else momentum
        new_mean, new_var = (each.reshape(C) for each in of_the_batch(flat))
        mean = (1 - m) * mean + m * new_mean
        var = (1 - m) * var + m * new_var * count / (count - 1)
        assert abs(norm.running_mean.numpy() - mean).max() <= 1e-10
        assert abs(norm.running_var.numpy() - var).max() <= 1e-10
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer, rtol=0, atol=1e-10)


def test_in_eval_they_stay() -> None:
    norm, before = made("2d").eval(), made("2d").state_dict()
    norm(drawn("2d"))
    assert all(torch.equal(before[name], t) for name, t in norm.state_dict().items())


@every_shape
@either_mode
def test_gradients(kind: str, training: bool) -> None:
    norm, x = made(kind).train(training), drawn(kind)[:3]
    names, own = zip(*norm.named_parameters(), strict=True)
    assert set(names) == {"weight", "bias", "mean_weight", "var_weight"}

    def run(x: Tensor, *own: Tensor) -> Any:
        return functional_call(norm, dict(zip(names, own, strict=True)), (x,))

    given = [t.detach().clone().requires_grad_() for t in (x, *own)]
    assert torch.autograd.gradcheck(run, given)


# Numbers


@either_mode
@pytest.mark.parametrize("mean", [1000.0, -1000.0])
def test_digits_survive_a_mean_far_from_0(training: bool, mean: float) -> None:
    """x is a multiple of 6e-5 there, which is 6e-4 of its σ; the square of the mean has 0.06 to the next."""
    x = mean + 0.1 * torch.randn(8, C, 9, 9)
    norm = made("2d").float().train(training)
    norm.running_mean.fill_(mean), norm.running_var.fill_(0.01)
    exact = by_hand(norm, x.double())
    assert abs(norm(x).detach().numpy() - exact).max() <= 2e-3 * abs(exact).max()


@either_mode
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False], ids=["module-too", "input-only"])
def test_half_precision_is_computed_in_float32(training: bool, dtype: torch.dtype, whole: bool) -> None:
    """Squares of 300 are beyond float16, and means of 16 000 values beyond the digits of bfloat16."""
    x = (300 + 40 * torch.randn(4, C, 64, 64)).to(dtype)
    norm = made("2d").float().train(training)
    norm.running_mean.fill_(300), norm.running_var.fill_(1600)
    norm = norm.to(dtype) if whole else norm
    twin = copy.deepcopy(norm).double()
    y, exact = norm(x).detach(), twin(x.double()).detach()
    assert y.dtype == dtype
    assert float((y - exact).abs().max() / exact.abs().max()) <= torch.finfo(dtype).eps
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name).double(), buffer.double(), rtol=8e-3, atol=1e-3)


def test_autocast_does_not_narrow_it() -> None:
    norm, x = made("2d").float(), drawn("2d").float()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.float32
    assert abs(y.detach().numpy() - by_hand(norm, x)).max() <= 1e-5


@either_mode
@pytest.mark.parametrize("channels", [1, C])
@pytest.mark.parametrize("kind", ["1d", "1d-length-1", "2d-1x1"])
def test_single_values_are_finite_and_tell_samples_apart(kind: str, training: bool, channels: int) -> None:
    norm = season(OURS[kind[:2]](channels)).train(training)
    x = drawn(kind)[:, :channels].float().requires_grad_()
    y = norm(x)
    y.square().sum().backward()
    assert bool(y.isfinite().all())
    assert float(y.detach().std(0).min()) > 0.05
    for tensor in (x, *norm.parameters()):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
    if channels == 1:  # nothing but the batch is left: a BatchNorm
        twin = season(TORCHS[kind[:2]](1)).train(training)
        torch.testing.assert_close(season(norm)(x), twin(x))


@pytest.mark.parametrize(("kind", "shape"), [("1d", (1, C)), ("1d", (1, C, 1)), ("2d", (1, C, 1, 1))])
def test_one_value_a_channel_cannot_train(kind: str, shape: tuple[int, ...]) -> None:
    norm, x = made(kind), torch.ones(shape, dtype=torch.float64)
    before = copy.deepcopy(norm.state_dict())
    for layer in (norm, TORCHS[kind](C).double()):
        with pytest.raises(ValueError, match=r"(?i)^expected more than 1 value per channel when training"):
            layer(x)
    assert all(torch.equal(before[name], t) for name, t in norm.state_dict().items())
    assert bool(norm.eval()(x).isfinite().all())


def test_one_sample_of_several_values_trains() -> None:
    norm, x = made("2d"), drawn("2d")[:1]
    assert abs(norm(x).detach().numpy() - by_hand(norm, x)).max() <= 1e-10


@either_mode
def test_an_empty_batch_moves_nothing(training: bool) -> None:
    norm = made("2d").train(training)
    before = copy.deepcopy(norm.state_dict())
    assert norm(drawn("2d")[:0]).shape == (0, *SHAPES["2d"][1:])
    assert all(torch.equal(before[name], t) for name, t in norm.state_dict().items())


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5, 6])
def test_it_takes_what_torchs_takes(kind: str, ndim: int) -> None:
    x = torch.randn((4, C, 2, 2, 2, 2)[:ndim])
    try:
        TORCHS[kind](C)(x)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error).replace("(", r"\(").replace(")", r"\)")):
            OURS[kind](C)(x)
    else:
        assert OURS[kind](C)(x).shape == x.shape


@pytest.mark.parametrize(("ours", "given"), [(C, 1), (1, C), (C, C + 1)])
def test_other_channels_are_refused(ours: int, given: int) -> None:
    """One channel would be broadcast over three."""
    with pytest.raises(ValueError, match=rf"expected {ours} channels along axis 1 \(got {given}\)"):
        SwitchableNorm2d(ours)(torch.randn(2, given, 4, 4))


def test_the_layout_in_memory_stays() -> None:
    x = torch.randn(2, C, 4, 4).to(memory_format=torch.channels_last)
    assert SwitchableNorm2d(C)(x).is_contiguous(memory_format=torch.channels_last)


# In the place of a BatchNorm


@pytest.mark.parametrize("options", [{}, {"affine": False}], ids=str)
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("kind", [k for k in SHAPES if k not in ("1d-length-1", "2d-1x1")])
def test_it_loads_a_batch_norm_and_computes_what_that_did(
    kind: str, options: dict[str, Any], assign: bool
) -> None:
    old = season(nn.Sequential(TORCHS[kind[:2]](C, **options))).eval()
    new = nn.Sequential(OURS[kind[:2]](C, **options)).eval()
    given = old.state_dict()
    keys = [*given]
    assert str(new.load_state_dict(given, assign=assign)) == "<All keys matched successfully>"
    assert [*given] == keys
    for key, tensor in given.items():
        assert torch.equal(new.state_dict()[key], tensor)
    x = drawn(kind).float()
    with torch.no_grad():
        expected, fresh = old(x), season(OURS[kind[:2]](C, **options)).eval()(x)
        assert float((new(x) - expected).abs().max()) <= 1e-3 * float(expected.abs().max())
        assert float((fresh - expected).abs().max()) > 0.05 * float(expected.abs().max())
    for shares in new[0].weights().values():
        assert shares["batch"] >= 1 - 1e-4
    assert all(p.requires_grad for p in new.parameters())


def test_a_network_of_them_computes_what_it_did() -> None:
    def net(norm: Any) -> nn.Module:
        pairs = [(nn.Conv2d(a, b, 3), norm(b), nn.ReLU()) for a, b in ((3, 8), (8, 16), (16, 16), (16, 8))]
        return nn.Sequential(*(layer for pair in pairs for layer in pair)).eval()

    x = torch.randn(4, 3, 20, 20)
    old, new = season(net(nn.BatchNorm2d), example=x), net(SwitchableNorm2d)
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        expected = old(x)
        assert float((new(x) - expected).abs().max()) <= 1e-3 * float(expected.abs().max())


def test_it_loads_from_a_file_of_tensors_alone() -> None:
    """Without metadata, and from before batches were counted."""
    old = season(nn.BatchNorm2d(C))
    given = {k: v for k, v in old.state_dict().items() if k != "num_batches_tracked"}
    new = SwitchableNorm2d(C)
    new.load_state_dict(given)
    assert new.weights()["mean"]["batch"] > 0.999
    assert torch.equal(new.running_var, old.running_var)


def test_its_own_state_goes_round() -> None:
    one, two = made("2d"), SwitchableNorm2d(C).double()
    two.load_state_dict(one.state_dict())
    assert [*one.state_dict()] == [
        *("weight", "bias", "mean_weight", "var_weight"),
        *("running_mean", "running_var", "num_batches_tracked"),
    ]
    assert all(torch.equal(two.state_dict()[name], t) for name, t in one.state_dict().items())
    assert torch.equal(one.eval()(x := drawn("2d")), two.eval()(x))


@pytest.mark.parametrize("gone", ["mean_weight", "var_weight", "running_var"])
def test_half_a_state_does_not_load(gone: str) -> None:
    given = {k: v for k, v in made("2d").state_dict().items() if k != gone}
    with pytest.raises(RuntimeError, match=f'Missing key.*"{gone}"'):
        SwitchableNorm2d(C).load_state_dict(given)


def test_nothing_to_load_leaves_the_weights() -> None:
    norm = made("2d")
    norm.load_state_dict({}, strict=False)
    assert torch.equal(norm.mean_weight, made("2d").mean_weight)


def test_the_weights_by_name() -> None:
    thirds = {"instance": 1 / 3, "layer": 1 / 3, "batch": 1 / 3}
    norm = SwitchableNorm2d(C)
    assert norm.weights() == {"mean": pytest.approx(thirds), "var": pytest.approx(thirds)}
    with torch.no_grad():
        norm.var_weight.copy_(torch.tensor([1.0, 2.0, 5.0]).log())
    assert norm.weights()["mean"] == pytest.approx(thirds)
    assert norm.weights()["var"] == pytest.approx({"instance": 1 / 8, "layer": 2 / 8, "batch": 5 / 8})
    norm.bn_dominant_(0.1)
    tenths = {"instance": 0.1, "layer": 0.1, "batch": 0.8}
    assert norm.weights() == {"mean": pytest.approx(tenths), "var": pytest.approx(tenths)}
    season(norm).reset_parameters()
    assert all(torch.equal(norm.state_dict()[k], v) for k, v in SwitchableNorm2d(C).state_dict().items())
    for wrong in (0.0, 1 / 3, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1/3"):
            norm.bn_dominant_(wrong)


def test_it_says_what_it_is() -> None:
    norm = SwitchableNorm3d(C, momentum=None, bias=False)
    assert repr(norm) == "SwitchableNorm3d(3, eps=1e-05, momentum=None, affine=True, bias=False)"
    assert norm.bias is None
    assert not isinstance(norm, nn.modules.batchnorm._BatchNorm)


# Wherever a layer goes


class Net(nn.Sequential):
    """A layer that is to stay, with a convolution in front and behind, and a BatchNorm that folds."""

    def __init__(self, *, dominant: bool = False) -> None:
        norm = SwitchableNorm2d(4)
        super().__init__(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
        if dominant:
            norm.bn_dominant_()
        season(self).eval()


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 9, 9) * 2 + 1


def test_copies_and_files(tmp_path: Path) -> None:
    norm, x = made("2d", momentum=None).eval(), drawn("2d")
    torch.save(norm, tmp_path / "norm.pt")
    copies = [copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), bn.load(tmp_path / "norm.pt")]
    for each in copies:
        assert type(each) is SwitchableNorm2d
        assert torch.equal(each(x), norm(x))
        assert torch.equal(each.train()(x), copy.deepcopy(norm).train()(x))


@either_mode
@every_shape
@pytest.mark.parametrize("momentum", [0.1, None])
def test_it_compiles_without_a_break(kind: str, training: bool, momentum: float | None) -> None:
    torch._dynamo.reset()
    norm, x = made(kind, momentum=momentum).train(training), drawn(kind)
    twin = copy.deepcopy(norm)
    with quiet():
        run = torch.compile(twin, backend="eager", fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(run(x), norm(x))
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), buffer)


@pytest.mark.parametrize("kind", ["1d", "1d-length", "2d", "3d", "2d-1x1"])
def test_onnx_runtime_computes_the_same(kind: str) -> None:
    norm, x = made(kind).float().eval(), drawn(kind).float()
    with quiet(), torch.no_grad():
        batch = torch.export.Dim.DYNAMIC
        program = torch.export.export(norm, (x,), dynamic_shapes=({0: batch},), strict=False)
        file = torch.onnx.export(program, dynamo=True, verbose=False)
        assert file is not None
        content = file.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for given in (x, torch.cat([x, -2 * x, x + 1]), x[:1]):
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        expected = norm(given).detach().numpy()
        assert abs(found - expected).max() <= 1e-6 * abs(expected).max()


@pytest.mark.parametrize("dominant", [True, False])
@pytest.mark.parametrize("level", ["module", "program"])
def test_it_is_no_batch_norm_to_fold(dominant: bool, level: Any) -> None:
    net = Net(dominant=dominant)
    surgery = bn.fold(net, images(), level=level)
    assert [edit.site.name for edit in surgery.plan.edits] == ["4"]
    assert [(r.site.name, r.reason) for r in surgery.plan.refusals] == [("1", bn.Reason.UNRECOGNISED)]
    assert surgery.report.verdict is bn.Verdict.PASSED
    x = images(2)
    torch.testing.assert_close(surgery.model(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dominant", [True, False])
def test_it_is_no_batch_norm_to_recalibrate(dominant: bool) -> None:
    net = Net(dominant=dominant)
    surgery = bn.recalibrate(net, [images()])
    assert [edit.site.name for edit in surgery.plan.edits] == ["4"]
    assert [(r.site.name, r.reason) for r in surgery.plan.refusals] == [("1", bn.Reason.UNRECOGNISED)]
    for name, tensor in net[1].state_dict().items():
        assert torch.equal(surgery.model[1].state_dict()[name], tensor)


def test_frozen_it_goes_by_its_running_statistics() -> None:
    net, x = Net(), images()
    model = bn.freeze(net).model.train()
    torch.testing.assert_close(model(x), net.eval()(x))
    for name, buffer in net[1].named_buffers():
        assert torch.equal(model[1].get_buffer(name), buffer)
    assert not any(parameter.requires_grad for parameter in model[1].parameters())
    assert all(parameter.requires_grad for parameter in bn.unfreeze(model).model[1].parameters())
