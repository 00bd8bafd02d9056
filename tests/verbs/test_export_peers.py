"""What other exporters and checks get wrong, each time with the proof that they do."""

from __future__ import annotations

import re
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
from bntools.__main__ import main
from tests.verbs.test_export import Levit, made, pre_activation, ran, small, wide, x

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def count(path: Path, *kinds: str) -> int:
    return sum(node.op_type in kinds for node in onnx.load(path, load_external_data=False).graph.node)


def norms(path: Path) -> int:
    return count(path, "BatchNormalization")


def alone(model: nn.Module, given: Tensor, path: Path, **options: Any) -> Path:
    """What torch's exporter writes by itself."""
    torch.onnx.export(model, (given,), path, dynamo=True, verbose=False, **options)
    return path


class Pooled(nn.Module):
    """A head: a mean over space, BatchNorm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.fc(self.bn(torch.relu(self.conv(image)).mean((2, 3))))
        return out


def before_conv(padding: int = 0) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=padding)
    )


def before_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3))


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear, flatten, norm": (Levit, (2, 5, 6), 0),
    "norm, convolution": (before_conv, (2, 3, 8, 8), 0),
    "norm, linear": (before_linear, (4, 6), 0),
    "pooled head": (Pooled, (2, 3, 8, 8), 0),
    "norm, padded convolution": (lambda: before_conv(1), (2, 3, 8, 8), 1),
    "norm, activation": (pre_activation, (2, 3, 6, 6), 1),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if at in (0, 4) else pytest.mark.zoo) for at, name in enumerate(LEFT)],
)
def test_what_the_exporter_leaves_the_runtime_does_not_fuse(name: str, tmp_path: Path) -> None:
    """What can go is gone from the file of bntools, and what cannot stays in both.

    The runtime may write a BatchNorm as a convolution of its own; it is one operator more all the same.
    """
    build, shape, left = LEFT[name]
    model, given = made(build()), x(*shape)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    by_torch = alone(model, given, tmp_path / "torch.onnx")
    onnxruntime.InferenceSession(str(by_torch), options, providers=["CPUExecutionProvider"])
    kinds = ("BatchNormalization", "Conv", "Gemm", "MatMul")
    assert norms(by_torch) == 1
    assert count(tmp_path / "optimised.onnx", *kinds, "FusedConv", "FusedGemm") == count(by_torch, *kinds)
    done = bn.export(model, given, tmp_path / "m.onnx", compare=False)
    assert (done.graph.norms, norms(tmp_path / "m.onnx")) == (left, left)
    assert done.check.verdict is bn.Verdict.PASSED


def shifted(path: Path, by: float) -> Path:
    """Another file, whose last bias is off."""
    proto = onnx.load(path)
    bias = next(each for each in proto.graph.initializer if each.name == "3.bias")
    values = onnx.numpy_helper.to_array(bias) + np.float32(by)
    bias.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), bias.name))
    onnx.save(proto, path.with_name("bad.onnx"))
    return path.with_name("bad.onnx")


@pytest.mark.parametrize("by", [3.6, 1923.9, float("nan")])
def test_a_difference_ends_with_an_exit_code(
    by: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others write a line, say that all went well, or return 0; NaN is not greater than their tolerance."""
    torch.save(small(), tmp_path / "m.pt")
    bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    bad = shifted(tmp_path / "m.onnx", by)
    code = main(["verify", str(tmp_path / "m.pt"), str(bad), "--input", "2x3x8x8"])
    assert code == 1
    said = capsys.readouterr()
    assert "failed" in said.out
    assert "do not compute the same" in said.err
    assert main(["verify", str(tmp_path / "m.pt"), str(tmp_path / "m.onnx"), "--input", "2x3x8x8"]) == 0


def test_to_check_a_model_in_training_mode_does_not_train_it(tmp_path: Path) -> None:
    """torch's check runs the model as it is: with batch statistics, which it then stores."""
    bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    model = small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    bn.verify(model, tmp_path / "m.onnx", x(2, 3, 8, 8))
    bn.verify(model, tmp_path / "m.onnx", data=[x(4, 3, 8, 8)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    model(x(2, 3, 8, 8))
    assert not torch.equal(model.get_buffer("1.running_mean"), before["1.running_mean"]), "the twin"


class Noted(nn.Module):
    """What it says about itself goes to the nodes of torch's file."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.body(image)
        return out


def test_the_files_of_others_hold_paths_of_this_machine(tmp_path: Path) -> None:
    path = str(Path(__file__).parent).encode()
    model = Noted().eval()
    by_torch = alone(model, x(2, 3, 8, 8), tmp_path / "torch.onnx").read_bytes()
    assert path in by_torch
    bn.export(model, x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False, fold=False)
    ours = (tmp_path / "m.onnx").read_bytes()
    assert path not in ours
    assert not re.search(rb"[\w/]+\.py", ours)
    kept = bn.export(
        model, x(2, 3, 8, 8), tmp_path / "d.onnx", compare=False, fold=False, keep_debug_info=True
    )
    assert kept.path is not None
    assert len(ours) < kept.path.stat().st_size < len(by_torch)


def test_external_weights_that_others_rename_or_append_to(tmp_path: Path) -> None:
    """`onnx.save` onto weights that are there appends; a name that says what is in it does not go stale."""
    done = bn.export(wide(), x(2, 3, 8, 8), tmp_path / "m.onnx", external_data=True, compare=False)
    proto = onnx.load(tmp_path / "m.onnx")
    sizes = []
    for _ in range(2):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        onnx.save(copy, tmp_path / "o.onnx", save_as_external_data=True, location="o.data", size_threshold=0)
        sizes.append((tmp_path / "o.data").stat().st_size)
    assert sizes[1] > sizes[0], "they do no longer"
    assert done.weights is not None
    again = bn.export(
        wide(), x(2, 3, 8, 8), tmp_path / "m.onnx", external_data=True, compare=False, force=True
    )
    assert (again.weights, again.weights and again.weights.stat().st_size) == (
        done.weights,
        done.weights.stat().st_size,
    )


def one_size(path: Path) -> Path:
    """Another file, which is right for two rows and no other number of them."""
    proto = onnx.load(path)
    out = proto.graph.output[0].name
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 1, 1, 1), np.float32), "rows"))
    proto.graph.node.append(onnx.helper.make_node("Add", [out, "rows"], ["sum"], name="add"))
    proto.graph.output[0].name = "sum"
    onnx.save(proto, path.with_name("two.onnx"))
    return path.with_name("two.onnx")


def test_a_second_batch_size_is_always_run(tmp_path: Path) -> None:
    done = bn.export(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", compare=False)
    assert {text.split("x")[0] for text in done.check.inputs} == {"1", "2", "3"}
    two = one_size(tmp_path / "m.onnx")
    with torch.no_grad():
        expected = small()(x(2, 3, 8, 8)).numpy()
    np.testing.assert_allclose(ran(two, input=x(2, 3, 8, 8))[0], expected, atol=1e-5)
    report = bn.verify(small(), two, x(2, 3, 8, 8))
    assert report.verdict is bn.Verdict.FAILED
    assert "shape" in report.why


def test_what_a_file_says_of_its_sizes_the_runtime_does_not_ask_for(tmp_path: Path) -> None:
    """Bounds that torch was given are no bounds in the file: what counts is what was run."""
    shapes = ({0: torch.export.Dim("rows", min=2, max=4)},)
    path = alone(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", dynamic_shapes=shapes)
    assert ran(path, input=x(7, 3, 8, 8))[0].shape[0] == 7
    report = bn.verify(small(), path, x(2, 3, 8, 8))
    assert report.verdict is bn.Verdict.PASSED
    assert {text.split("x")[0] for text in report.inputs} == {"1", "2", "3"}


def test_torch_gives_another_opset_than_was_asked_for(tmp_path: Path) -> None:
    """The proof for `test_export.test_another_opset_than_was_asked_for_is_an_error`."""
    path = alone(small(), x(2, 3, 8, 8), tmp_path / "m.onnx", opset_version=12)
    assert [each.version for each in onnx.load(path).opset_import] == [18]
    with pytest.raises(bn.CaptureError, match="asked for 12"):
        bn.export(small(), x(2, 3, 8, 8), tmp_path / "n.onnx", opset=12)
    assert not (tmp_path / "n.onnx").exists()
