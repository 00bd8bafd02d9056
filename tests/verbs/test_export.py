"""bn.export: what stands in the file, what is refused, and what happens to model and folder."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import atomic, programfile
from bntools.core import external as beside
from bntools.core.names import named_tensors
from bntools.norms import SwitchableNorm2d
from tests.season import season

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def x(*sizes: int, seed: int = 3) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def made(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that do not vanish, BatchNorms as trained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return season(model.eval())


def small() -> nn.Module:
    return made(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    )


class Residual(nn.Module):
    """A sum, a strided branch, a pooled head behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.na, self.nb, self.nc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        y = torch.relu(self.na(self.a(image)))
        y = torch.relu(y + self.nb(self.b(y)))
        out: Tensor = self.fc(self.nc(y.mean((2, 3))))
        return out


class Levit(nn.Module):
    """Linear, flatten, BatchNorm: what torch's exporter leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.linear(tokens)
        out: Tensor = self.bn(y.flatten(0, 1)).reshape_as(y)
        return out


class Two(nn.Module):
    """Keywords in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        y = self.bn(self.conv(image)) * scale
        return {"map": y, "mean": y.mean((2, 3))}


class Pairs(nn.Module):
    """conv + BN side by side, of which a program makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, v: Tensor) -> Tensor:
        return torch.nn.functional.silu(self.bn(self.conv(v)) + self.skip(v))


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), nn.Hardswish(), nn.Conv2d(4, 6, 1)
    )


def up() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Sigmoid())


def pre_activation() -> nn.Module:
    """Its BatchNorm stays."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3))


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.ELU())


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int | None]] = {
    # what builds it, the input, BatchNorms in the file, and what the exporter alone leaves
    "chain": (small, (2, 3, 8, 8), 0, 0),
    "residual": (Residual, (2, 3, 8, 8), 0, 1),
    "linear-flatten": (Levit, (2, 5, 6), 0, 1),
    "siblings": (Pairs, (2, 4, 6, 6), 0, 1),
    "depthwise": (depthwise, (2, 4, 6, 6), 0, 0),
    "transposed": (up, (2, 3, 5, 5), 0, 0),
    "pre-activation": (pre_activation, (2, 3, 6, 6), 1, None),
    "volume": (volume, (2, 2, 4, 4, 4), 0, 0),
}


def ran(path: Path, **feeds: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    out: list[np.ndarray] = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    return out


def hashed(model: nn.Module) -> dict[str, str]:
    return {
        key: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for key, t in named_tensors(model)
    } | {path: str(module.training) for path, module in model.named_modules()}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    build, shape, left, alone = MODELS[name]
    model = made(build())
    before = hashed(model)
    done = bn.export(model, x(*shape), tmp_path / "m.onnx")
    assert hashed(model) == before
    assert done.check.verdict is bn.Verdict.PASSED, done.check
    assert done.proof.verdict in (bn.Verdict.PASSED, bn.Verdict.SKIPPED)
    assert done.graph.norms == left
    assert (done.alone.norms if done.alone else None) == alone
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert sum(node.op_type == "BatchNormalization" for node in proto.graph.node) == left
    (given,) = [each.name for each in proto.graph.input]
    for batch in (1, 2, 5):
        value = x(batch, *shape[1:], seed=batch)
        with torch.no_grad():
            expected = model(value).numpy()
        (got,) = ran(tmp_path / "m.onnx", **{given: value})
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_without_a_fold_the_exporter_is_alone(tmp_path: Path) -> None:
    done = bn.export(made(Levit()), x(2, 5, 6), tmp_path / "m.onnx", fold=False)
    assert done.plan is None
    assert done.alone is None
    assert done.graph.norms == 1
    assert done.check.verdict is bn.Verdict.PASSED


@pytest.mark.parametrize("asked", [18, 20, 21])
def test_the_opset_is_the_one_that_was_asked_for(asked: int, tmp_path: Path) -> None:
    done = bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", opset=asked, compare=False)
    assert done.graph.opset == asked
    assert [each.version for each in onnx.load(tmp_path / "m.onnx").opset_import] == [asked]


def test_another_opset_than_was_asked_for_is_an_error(tmp_path: Path) -> None:
    """torch gives 18 for 12, and says nothing."""
    with pytest.raises(bn.CaptureError, match="asked for 12, torch's exporter gives 18"):
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", opset=12)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_mode_is_an_error(tmp_path: Path) -> None:
    model = small().train()
    before = hashed(model)
    with pytest.raises(bn.UsageError, match="training mode"):
        bn.export(model, x(2, 3, 8, 8), tmp_path / "m.onnx")
    assert hashed(model) == before


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("which", ["1", "dropout"])
def test_a_layer_in_training_mode_is_an_error_that_names_it(which: str, fold: bool, tmp_path: Path) -> None:
    model = small()
    model.add_module("dropout", nn.Dropout())
    model.eval().get_submodule(which).train()
    before = hashed(model)
    with pytest.raises(bn.CaptureError, match=f"^{which}"):
        bn.export(model, x(2, 3, 8, 8), tmp_path / "m.onnx", fold=fold)
    assert hashed(model) == before
    assert bn.export(model.eval(), x(2, 3, 8, 8), tmp_path / "m.onnx", fold=fold).path is not None


def test_the_batch_is_open_unless_it_is_to_be_fixed(tmp_path: Path) -> None:
    done = bn.export(small(), x(1, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    assert done.graph.inputs == ("input: batch×3×8×8 float",)
    assert done.graph.outputs[0].endswith(": batch×5×6×6 float")
    assert {text.split("x")[0] for text in done.check.inputs} == {"1", "2"}
    fixed = bn.export(small(), x(2, 3, 8, 8), tmp_path / "f.onnx", dynamic_batch=False, compare=False)
    assert fixed.graph.inputs == ("input: 2×3×8×8 float",)
    assert fixed.check.verdict is bn.Verdict.PASSED
    assert "made for other shapes" in " ".join(fixed.check.notes)


def test_other_axes_are_open_by_name_and_tried_at_another_size(tmp_path: Path) -> None:
    done = bn.export(
        small(), x(2, 3, 8, 8), tmp_path / "m.onnx", dynamic={"": {2: "height", 3: "width"}}, compare=False
    )
    assert done.graph.inputs == ("input: batch×3×height×width float",)
    assert any("16x16" in text for text in done.check.inputs)
    value = x(3, 3, 11, 7)
    with torch.no_grad():
        expected = small()(value).numpy()
    np.testing.assert_allclose(ran(tmp_path / "m.onnx", input=value)[0], expected, atol=1e-5)


class Fixed(nn.Module):
    """Asks for its width, so no other fits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 2)

    def forward(self, v: Tensor) -> Tensor:
        out: Tensor = self.fc(v)
        return out


def test_an_axis_that_cannot_stay_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(bn.CaptureError, match="axis 1 of v cannot stay open"):
        bn.export(Fixed().eval(), x(2, 8), tmp_path / "m.onnx", dynamic={"v": {1: "width"}})
    for axes, what in (({"w": {1: "a"}}, "no input"), ({"v": {2: "a"}}, "no axis 2")):
        with pytest.raises(bn.UsageError, match=what):
            bn.export(Fixed().eval(), x(2, 8), tmp_path / "m.onnx", dynamic=axes)
    assert list(tmp_path.iterdir()) == []


def test_names_are_those_that_were_asked_for(tmp_path: Path) -> None:
    done = bn.export(
        made(Two()),
        {"image": x(2, 3, 6, 6), "scale": torch.full((2, 1, 1, 1), 0.5)},
        tmp_path / "m.onnx",
        input_names=["picture", "factor"],
        output_names=["features", "pooled"],
        compare=False,
    )
    names = [text.split(":")[0] for text in (*done.graph.inputs, *done.graph.outputs)]
    assert names == ["picture", "factor", "features", "pooled"]
    assert done.check.verdict is bn.Verdict.PASSED
    feeds = {"picture": x(3, 3, 6, 6), "factor": torch.full((3, 1, 1, 1), 2.0)}
    with torch.no_grad():
        expected = made(Two())(image=feeds["picture"], scale=feeds["factor"])
    for got, name in zip(ran(tmp_path / "m.onnx", **feeds), ("map", "mean"), strict=True):
        np.testing.assert_allclose(got, expected[name].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        {"input_names": ["a", "b"]},
        {"output_names": ["a", "b"]},
        {"output_names": [""]},
        {"output_names": ["input"]},
    ],
    ids=str,
)
def test_a_wrong_number_of_names_is_an_error(names: dict[str, list[str]], tmp_path: Path) -> None:
    """torch drops what is too much without a word."""
    with pytest.raises(bn.UsageError, match=next(iter(names)).split("_")[0]):
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", **names)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_half_precision_rounds_the_exact_weights_once(tmp_path: Path) -> None:
    model = made(nn.Sequential(nn.Conv2d(64, 256, 3), nn.BatchNorm2d(256)))
    done = bn.export(model, x(2, 64, 4, 4), tmp_path / "m.onnx", fp16=True, compare=False)
    assert done.check.verdict is bn.Verdict.PASSED
    assert done.graph.inputs == ("input: batch×64×4×4 float16",)
    weights = {
        each.name: onnx.numpy_helper.to_array(each)
        for each in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    conv, norm = model.get_submodule("0").double(), model.get_submodule("1").double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    exact = conv.weight.detach() * scale.reshape(-1, 1, 1, 1)
    once = exact.numpy().astype(np.float16)  # torch itself goes by float32
    assert not np.array_equal(exact.float().half().numpy(), once), "rounding twice would not show"
    assert np.array_equal(weights["0.weight"], once)


def test_a_weight_too_large_for_half_precision_is_an_error(tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        model.get_parameter("3.weight")[0, 0] = 1e6
    with pytest.raises(bn.CaptureError, match=r"3\.weight: its values are too large for float16"):
        bn.export(model, x(2, 3, 8, 8), tmp_path / "m.onnx", fp16=True)


def wide() -> nn.Module:
    return made(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3)))


def test_external_weights_lie_beside_the_file_under_the_name_that_it_says(tmp_path: Path) -> None:
    done = bn.export(wide(), x(2, 3, 8, 8), tmp_path / "m.onnx", external_data=True, compare=False)
    assert done.weights is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["m.onnx", done.weights.name])
    named = {
        entry.value
        for each in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
        for entry in each.external_data
        if entry.key == "location"
    }
    assert named == {done.weights.name}
    (tmp_path / "m.onnx").rename(tmp_path / "renamed.onnx")
    with torch.no_grad():
        expected = wide()(x(2, 3, 8, 8)).numpy()
    np.testing.assert_allclose(ran(tmp_path / "renamed.onnx", input=x(2, 3, 8, 8))[0], expected, atol=1e-4)


def test_an_existing_pair_is_replaced_and_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    first = bn.export(wide(), x(2, 3, 8, 8), path, external_data=True, compare=False)
    assert first.weights is not None
    size = first.weights.stat().st_size
    again = bn.export(wide(), x(2, 3, 8, 8), path, external_data=True, compare=False, force=True)
    assert again.weights is not None
    assert again.weights == first.weights
    assert again.weights.stat().st_size == size
    other = made(copy.deepcopy(wide()), seed=1)
    third = bn.export(other, x(2, 3, 8, 8), path, external_data=True, compare=False, force=True)
    assert third.weights is not None
    assert third.weights != first.weights
    assert sorted(tmp_path.iterdir()) == sorted([path, third.weights]), "the old weights stayed"
    bn.export(other, x(2, 3, 8, 8), path, compare=False, force=True)
    assert sorted(tmp_path.iterdir()) == [path]


def test_somebody_elses_weights_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = onnx.load_from_string(_content(wide(), tmp_path))
    onnx.save(proto, path, save_as_external_data=True, location="shared.data", size_threshold=0)
    bn.export(wide(), x(2, 3, 8, 8), path, compare=False, force=True)
    assert (tmp_path / "shared.data").exists()


def _content(model: nn.Module, folder: Path) -> bytes:
    bn.export(model, x(2, 3, 8, 8), folder / "content.onnx", compare=False)
    content = (folder / "content.onnx").read_bytes()
    (folder / "content.onnx").unlink()
    return content


def test_a_link_is_no_place_for_external_weights(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "m.onnx").symlink_to(tmp_path / "other" / "real.onnx")
    with pytest.raises(bn.UsageError, match="a link"):
        bn.export(wide(), x(2, 3, 8, 8), tmp_path / "m.onnx", external_data=True, compare=False)
    assert list((tmp_path / "other").iterdir()) == []
    bn.export(wide(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    assert (tmp_path / "other" / "real.onnx").is_file()


def test_no_path_of_this_machine_stands_in_the_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bn.export(made(Residual()), x(2, 3, 8, 8), tmp_path / name / "m.onnx", compare=False)
    one, two = (tmp_path / name / "m.onnx" for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()
    for text in (Path(bn.__file__).parent, Path(torch.__file__).parent, tmp_path, Path(__file__).parent):
        assert str(text).encode() not in one.read_bytes()
    proto = onnx.load(one)
    assert not any(node.metadata_props for node in proto.graph.node)


def test_bytes_are_the_same_from_another_process_and_folder(tmp_path: Path) -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from tests.verbs.test_export import *\n"
        "bn.export(made(Residual()), x(2, 3, 8, 8), Path(sys.argv[1]), compare=False, verify=False)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.onnx")], cwd=tmp_path, env=environment, check=True
    )
    bn.export(made(Residual()), x(2, 3, 8, 8), tmp_path / "b.onnx", compare=False, verify=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_debug_info_is_kept_on_demand_without_paths(tmp_path: Path) -> None:
    bn.export(made(Residual()), x(2, 3, 8, 8), tmp_path / "m.onnx", keep_debug_info=True, compare=False)
    proto = onnx.load(tmp_path / "m.onnx")
    props = {each.key: each.value for node in proto.graph.node for each in node.metadata_props}
    assert "pkg.torch.onnx.name_scopes" in props
    assert str(Path(torch.__file__).parent).encode() not in (tmp_path / "m.onnx").read_bytes()


def test_the_file_does_not_hang_on_the_live_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's program aliases the parameters: a model that is changed before it is saved changes the file."""
    model = small()
    expected = copy.deepcopy(model)
    translate = programfile.translate

    def meanwhile(*args: Any) -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return translate(*args)

    monkeypatch.setattr(programfile, "translate", meanwhile)
    bn.export(model, x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False, verify=False)
    with torch.no_grad():
        reference = expected(x(2, 3, 8, 8)).numpy()
    np.testing.assert_allclose(ran(tmp_path / "m.onnx", input=x(2, 3, 8, 8))[0], reference, atol=1e-5)


def wrong(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let the exporter make a mistake."""
    polish = programfile.polish_

    def spoil(proto: Any, *args: Any) -> None:
        polish(proto, *args)
        change(proto)

    monkeypatch.setattr(programfile, "polish_", spoil)


def zero(proto: Any) -> None:
    weight = next(each for each in proto.graph.initializer if each.name == "3.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[1] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize("external", [None, True])
def test_a_wrong_file_is_not_written_and_the_place_is_named(
    external: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"mine")
    wrong(monkeypatch, zero)
    with pytest.raises(bn.PromiseError, match=r"computes something else.*from 3 on") as caught:
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", external_data=external, force=True)
    assert caught.value.report.verdict is bn.Verdict.FAILED
    assert caught.value.report.place.module == "3"
    assert "3.weight" in caught.value.report.place.node
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"


def test_torch_s_own_check_never_fails(tmp_path: Path) -> None:
    """The twin: what ``verify=True`` calls sees the same fault, and reports a number that nobody reads."""
    from torch.onnx.verification import verify_onnx_program

    bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    bad = onnx.load(tmp_path / "m.onnx")
    zero(bad)
    onnx.save(bad, tmp_path / "bad.onnx")
    program = torch.onnx.export(small(), (x(2, 3, 8, 8),), dynamo=True, verbose=False)
    assert program is not None
    import onnx_ir

    program.model = onnx_ir.serde.deserialize_model(bad)
    program.release()
    (info,) = verify_onnx_program(program, (x(2, 3, 8, 8),))  # no exception
    assert info.max_abs_diff > 0.1
    assert bn.verify(small(), tmp_path / "bad.onnx", x(2, 3, 8, 8)).verdict is bn.Verdict.FAILED


def _nan(proto: Any) -> None:
    bias = next(each for each in proto.graph.initializer if each.name == "3.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] = np.nan
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))


def _more_norms(proto: Any) -> None:
    for number in range(2):
        last = proto.graph.node[-1].output[0]
        ones = onnx.numpy_helper.from_array(np.ones(5, np.float32), f"ones{number}")
        proto.graph.initializer.append(ones)
        name = f"norm{number}"
        node = onnx.helper.make_node("BatchNormalization", [last, *[ones.name] * 4], [name], name=name)
        proto.graph.node.append(node)
    proto.graph.output[0].name = "norm1"


def _two_names(proto: Any) -> None:
    proto.graph.node[1].name = proto.graph.node[0].name


def _invalid(proto: Any) -> None:
    proto.graph.node[0].op_type = "Convolution"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_nan, bn.PromiseError, "off by inf"),
        (_more_norms, bn.CaptureError, "2 BatchNorms, its program 0"),
        (_two_names, bn.CaptureError, "two nodes of the name"),
        (_invalid, bn.CaptureError, "not valid ONNX"),
    ],
    ids=["nan", "norms", "names", "operator"],
)
def test_what_is_unsound_is_not_written(
    change: Callable[[Any], None],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong(monkeypatch, change)
    with pytest.raises(error, match=words):
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(bn.UsageError, match="exists"):
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"
    with pytest.raises(bn.UsageError, match="ONNX"):
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.pt")


def test_strict_wants_every_batchnorm_gone_and_the_file_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(bn.PromiseError, match="1 of 1 BatchNorms stay"):
        bn.export(made(pre_activation()), x(2, 3, 6, 6), tmp_path / "m.onnx", strict=True)
    doubt = bn.Report(bn.Verdict.UNVERIFIED, why="no kernels")
    monkeypatch.setattr(programfile, "check", lambda *args: doubt)
    done = bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", strict=True, compare=False)
    assert done.path is None
    assert list(tmp_path.iterdir()) == []
    assert bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False).path is not None


def test_types_without_kernels_are_unverified(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, path = small().to(dtype), tmp_path / f"{dtype}.onnx"
        done = bn.export(model, x(2, 3, 8, 8).to(dtype), path, opset=22, compare=False)
        assert done.check.verdict is bn.Verdict.UNVERIFIED, done.check
        assert done.path is not None


class Images(nn.Module):
    """Two convolutions and their BatchNorms, on maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.b, self.nb = nn.Conv2d(32, 32, 3, groups=2), nn.BatchNorm2d(32)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.nb(self.b(torch.relu(self.na(self.a(image))))))
        return out


def mixed(model: nn.Module) -> nn.Module:
    """Each SwitchableNorm as training would leave it: some of every statistic."""
    generator = torch.Generator().manual_seed(5)
    switchable = [m for m in model.modules() if isinstance(m, SwitchableNorm2d)]
    assert switchable
    with torch.no_grad():
        for module in switchable:
            for name, parameter in module.named_parameters():
                if name not in ("weight", "bias"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


MADE: dict[str, Callable[[], nn.Module]] = {
    "group": lambda: bn.swap(made(Images()), to="group").model,
    "layer": lambda: bn.swap(made(Images()), to="layer").model,
    "instance": lambda: bn.swap(made(Images()), to="instance").model,
    "switchable": lambda: mixed(bn.swap(made(Images()), to="switchable").model),
    "standardised": lambda: bn.swap(made(Images()), to="group", weight_standardization=True).model,
    "frozen": lambda: bn.freeze(made(Images())).model,
    "recalibrated": lambda: bn.recalibrate(made(Images()), [x(4, 3, 8, 8) * 3 + 1]).model,
}


@pytest.mark.parametrize("name", MADE)
def test_what_other_verbs_made_is_exported(name: str, tmp_path: Path) -> None:
    path = tmp_path / "made.onnx"
    model = MADE[name]().eval()
    done = bn.export(model, x(2, 3, 8, 8), path, compare=False)
    assert done.check.verdict is bn.Verdict.PASSED, done.check
    folded = len(done.plan.edits) if done.plan is not None else 0
    assert folded == (2 if name in ("frozen", "recalibrated") else 0)
    # The model that it was made of is another function, but for a freeze.
    other = bn.verify(made(Images()), path, x(2, 3, 8, 8), bisect=False)
    assert (other.verdict is bn.Verdict.PASSED) == (name == "frozen")


def test_torch_s_chatter_goes_nowhere(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = set(Path.cwd().iterdir())
    bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", opset=18)
    assert capfd.readouterr() == ("", "")
    assert set(Path.cwd().iterdir()) == here, "the working folder was littered"


def test_an_ascii_stdout_is_no_obstacle(tmp_path: Path) -> None:
    """torch prints emoji unless it is told not to."""
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as narrow:
        before, sys.stdout = sys.stdout, narrow
        try:
            bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", opset=18)
        finally:
            sys.stdout = before


def test_what_is_killed_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "m.onnx", made(wide(), seed=1)
    bn.export(wide(), x(2, 3, 8, 8), path, external_data=True, compare=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    for home, name in ((programfile, "check"), (programfile, "ensure_sound"), (beside, "lay_out")):
        with monkeypatch.context() as patch:
            patch.setattr(home, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                bn.export(other, x(2, 3, 8, 8), path, external_data=True, compare=False, force=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_weights_are_in_their_place_before_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settle = tmp_path / "m.onnx", atomic._settle
    bn.export(wide(), x(2, 3, 8, 8), path, external_data=True, compare=False)
    before = path.read_bytes()

    def killed(part: Path, place: Path) -> None:
        if place.suffix == ".onnx":
            raise KeyboardInterrupt
        settle(part, place)

    monkeypatch.setattr(atomic, "_settle", killed)
    with pytest.raises(KeyboardInterrupt):
        bn.export(made(wide(), seed=1), x(2, 3, 8, 8), path, external_data=True, compare=False, force=True)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3, "the new weights were not there first"
    with torch.no_grad():
        expected = wide()(x(2, 3, 8, 8)).numpy()
    np.testing.assert_allclose(ran(path, input=x(2, 3, 8, 8))[0], expected, atol=1e-4)
