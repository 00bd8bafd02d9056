"""bn.verify: what is equal passes, a fault is found and its place named, and nothing dies."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import serve
from bntools.core.bisect import Check, Step, first_divergence
from bntools.core.child import CrashError, RefusalError, Runtime
from tests.planted import KINDS, plant
from tests.verbs.test_export import Residual, Two, made, pre_activation, small, x

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


class Square(nn.Module):
    """Layers that can carry every kind of fault: a norm that stays, square kernels, pads, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)
        self.after = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, image: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.stem(image)))
        y = torch.nn.functional.silu(y)
        y = torch.relu(self.after(self.left(y)) + self.right(y))
        out: Tensor = self.fc(y.mean((2, 3)))
        return out


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "square": (Square, (2, 3, 8, 8)),
    "residual": (Residual, (2, 3, 8, 8)),
    "pre-activation": (pre_activation, (2, 3, 8, 8)),
}
FOUND = {
    "square": {*KINDS},
    "residual": {"a weight channel zeroed", "a bias dropped", "a pad changed", "axes transposed"},
    "pre-activation": {*KINDS} - {"a pad changed"},
}


@cache
def exported(name: str, *, fold: bool = True) -> bytes:
    """The bytes of a right file; each is made once."""
    import tempfile

    build, shape = NETS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        bn.export(made(build()), x(*shape), path, fold=fold, compare=False)
        return path.read_bytes()


def written(content: bytes, folder: Path, name: str = "m.onnx") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def changed(content: bytes, change: Callable[[Any], None]) -> bytes:
    proto = onnx.load_from_string(content)
    change(proto)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_a_clean_file_passes(name: str, fold: bool, tmp_path: Path) -> None:
    build, shape = NETS[name]
    path = written(exported(name, fold=fold), tmp_path)
    report = bn.verify(made(build()), path, x(*shape))
    assert report.verdict is bn.Verdict.PASSED, report
    assert len(report.inputs) == 3
    assert "ONNX Runtime" in report.runtime
    assert report.noise is not None
    assert 0 < report.noise < 1e-4
    assert bn.verify(path, path, x(*shape)).verdict is bn.Verdict.PASSED
    assert bn.verify(path, made(build()), x(*shape)).verdict is bn.Verdict.PASSED


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in NETS for kind in KINDS if kind in FOUND[name]]
)
def test_a_planted_fault_is_found_and_its_layer_named(name: str, kind: str, tmp_path: Path) -> None:
    build, shape = NETS[name]
    planted = plant(exported(name), kind, random.Random(1))
    assert planted is not None
    content, fault = planted
    report = bn.verify(made(build()), written(content, tmp_path), x(*shape))
    assert report.verdict is bn.Verdict.FAILED, report
    assert report.place is not None, report.notes
    assert fault.module in report.place.between, report.place
    assert len(report.place.between) <= 2
    assert report.place.error > report.place.limit >= 10 * report.place.noise
    assert report.broken == (report.place.module or report.place.value)
    assert fault.node in report.place.node


def test_a_file_that_torch_exported_is_verified_and_bisected(tmp_path: Path) -> None:
    """Its nodes have other names than those of ours: the program is captured as torch captures it."""
    model, given = made(Square()), x(2, 3, 8, 8)
    torch.onnx.export(model, (given,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    assert bn.verify(model, tmp_path / "m.onnx", given).verdict is bn.Verdict.PASSED
    content = onnx.load(tmp_path / "m.onnx").SerializeToString()
    for seed in range(2):
        planted = plant(content, "a weight channel zeroed", random.Random(seed))
        assert planted is not None
        report = bn.verify(model, written(planted[0], tmp_path, "bad.onnx"), given)
        assert report.place is not None
        assert planted[1].module in report.place.between


def test_between_two_files_the_place_is_found_by_their_names(tmp_path: Path) -> None:
    for kind in ("a weight channel zeroed", "γ and β swapped", "a pad changed"):
        planted = plant(exported("square"), kind, random.Random(2))
        assert planted is not None
        good, bad = written(exported("square"), tmp_path), written(planted[0], tmp_path, "bad.onnx")
        report = bn.verify(good, bad, x(2, 3, 8, 8))
        assert report.verdict is bn.Verdict.FAILED
        assert report.place is not None
        assert report.place.module == planted[1].module


def faulty(fault: Callable[[Square], None]) -> nn.Module:
    model = made(Square())
    assert isinstance(model, Square)
    with torch.no_grad():
        fault(model)
    return model


MODULE_FAULTS: dict[str, tuple[Callable[[Square], Any], str]] = {
    "channel": (lambda m: m.left.weight[2].zero_(), "left"),
    "gamma-beta": (
        lambda m: (keep := m.norm.weight.clone(), m.norm.weight.copy_(m.norm.bias), m.norm.bias.copy_(keep)),
        "norm",
    ),
    "eps": (lambda m: setattr(m.after, "eps", 1e-3), "after"),
    "bias": (lambda m: m.fc.bias.zero_(), "fc"),
    "pad": (lambda m: (setattr(m.right, "padding", (1, 2)), setattr(m.left, "padding", (0, 1)), 0), "left"),
    "transposed": (lambda m: m.right.weight.copy_(m.right.weight.transpose(2, 3).clone()), "right"),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", MODULE_FAULTS)
def test_between_two_modules_the_boundary_is_named(name: str, exact: bool) -> None:
    fault, module = MODULE_FAULTS[name]
    report = bn.verify(made(Square()), faulty(fault), x(2, 3, 8, 8), exact=exact)
    assert report.verdict is bn.Verdict.FAILED
    assert report.place is not None, report.notes
    assert report.place.module == module
    clean = bn.verify(made(Square()), made(Square()), x(2, 3, 8, 8), exact=exact)
    assert clean.verdict is bn.Verdict.PASSED
    assert clean.place is None


def test_a_layer_that_took_a_batchnorm_in_is_not_named() -> None:
    """Folding changes what convolutions return; behind the BatchNorm all is as it was."""
    folded = bn.fold(made(Square()), x(2, 3, 8, 8)).model
    assert bn.verify(made(Square()), folded, x(2, 3, 8, 8), exact=False).verdict is bn.Verdict.PASSED
    with torch.no_grad():
        folded.get_parameter("fc.weight")[1] = 0
    report = bn.verify(made(Square()), folded, x(2, 3, 8, 8), exact=False)
    assert report.place is not None
    assert report.place.module == "fc"


def test_two_modules_are_compared_in_float64_unless_told_otherwise(tmp_path: Path) -> None:
    other = made(Square())
    with torch.no_grad():
        other.get_parameter("fc.weight").mul_(1 + 3e-7)
    assert bn.verify(made(Square()), other, x(2, 3, 8, 8)).verdict is bn.Verdict.FAILED
    assert bn.verify(made(Square()), other, x(2, 3, 8, 8), exact=False).verdict is bn.Verdict.PASSED
    with pytest.raises(bn.UsageError, match="exact"):
        bn.verify(made(Square()), written(exported("square"), tmp_path), exact=True)


def test_a_program_from_a_file_is_verified(tmp_path: Path) -> None:
    model, given = made(Square()), x(2, 3, 8, 8)
    surgery = bn.fold(model, given, level="program")
    bn.save(surgery, tmp_path / "m.pt2")
    for unsafe in (False, True):
        report = bn.verify(model, tmp_path / "m.pt2", given, unsafe=unsafe)
        assert report.verdict is bn.Verdict.PASSED
    bad = made(Square())
    with torch.no_grad():
        bad.get_parameter("right.weight")[3] = 0
    report = bn.verify(bad, tmp_path / "m.pt2", given)
    assert report.verdict is bn.Verdict.FAILED
    assert report.place is not None, report.notes
    assert report.place.module == "right"
    fixed = bn.verify(model, torch.export.export(model, (given,), strict=False), given)
    assert fixed.verdict is bn.Verdict.PASSED
    assert len(fixed.inputs) == 1, "it is made for one batch size"
    assert "does not run" in " ".join(fixed.notes)


def nan_bias(proto: Any) -> None:
    bias = next(each for each in proto.graph.initializer if each.name == "fc.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] = np.nan
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))


def test_nan_never_passes_in_silence(tmp_path: Path) -> None:
    given = x(2, 3, 8, 8)
    bad = written(changed(exported("square"), nan_bias), tmp_path)
    report = bn.verify(made(Square()), bad, given)
    assert report.verdict is bn.Verdict.FAILED
    assert report.place is not None
    assert report.place.module == "fc"
    both = made(Square())
    with torch.no_grad():
        both.get_parameter("fc.bias")[0] = torch.nan
    equal = bn.verify(both, bad, given)
    assert equal.verdict is bn.Verdict.PASSED
    assert "not finite" in " ".join(equal.notes)
    infinite = made(Square())
    with torch.no_grad():
        infinite.get_parameter("fc.bias")[0] = torch.inf
    assert bn.verify(infinite, bad, given).verdict is bn.Verdict.FAILED, "NaN is not infinity"
    with torch.no_grad():
        both.get_parameter("fc.bias").fill_(torch.nan)

    def all_nan(proto: Any) -> None:
        bias = next(each for each in proto.graph.initializer if each.name == "fc.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(8, np.nan, np.float32), bias.name))

    nothing = written(changed(exported("square"), all_nan), tmp_path, "nan.onnx")
    assert bn.verify(both, nothing, given).verdict is bn.Verdict.INCONCLUSIVE


def test_inputs_out_of_range_are_inconclusive(tmp_path: Path) -> None:
    class Chaotic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)

        def forward(self, v: Tensor) -> Tensor:
            return torch.sin(self.fc(v) * 1e6)

    model = made(Chaotic())
    done = bn.export(model, x(2, 4), tmp_path / "m.onnx")
    assert done.check.verdict is bn.Verdict.INCONCLUSIVE
    assert "give inputs" in done.check.why
    assert bn.verify(model, tmp_path / "m.onnx", x(2, 4) * 1e-6).verdict is bn.Verdict.PASSED


def test_another_shape_type_or_count_of_outputs_fails(tmp_path: Path) -> None:
    def fewer(proto: Any) -> None:
        del proto.graph.output[0]
        proto.graph.output.append(onnx.ValueInfoProto(name=proto.graph.node[0].output[0]))

    def more(proto: Any) -> None:
        proto.graph.output.append(onnx.ValueInfoProto(name=proto.graph.node[0].output[0]))

    def cast(proto: Any) -> None:
        name = proto.graph.output[0].name
        proto.graph.node.append(onnx.helper.make_node("Cast", [name], ["cast"], name="cast", to=11))
        del proto.graph.output[0]
        proto.graph.output.append(onnx.ValueInfoProto(name="cast"))

    for change, words in ((fewer, "shape"), (more, "returns 2 values"), (cast, "float64")):
        path = written(changed(exported("square"), change), tmp_path)
        report = bn.verify(made(Square()), path, x(2, 3, 8, 8))
        assert report.verdict is bn.Verdict.FAILED
        assert words in report.why


def test_where_the_file_does_not_run_the_node_is_named(tmp_path: Path) -> None:
    """Every module boundary runs up to the one that does not."""

    def shrink(proto: Any) -> None:
        node = next(node for node in proto.graph.node if "right.weight" in node.input)
        next(each for each in node.attribute if each.name == "pads").ints[:] = [1, 1, 1, 1]

    path = written(changed(exported("square", fold=False), shrink), tmp_path)
    report = bn.verify(made(Square()), path, x(2, 3, 8, 8))
    assert report.verdict is bn.Verdict.FAILED
    assert "does not" in report.why
    assert report.place is not None, report.notes
    assert "right" in report.place.between
    assert report.place.node.startswith("Add")


def test_data_is_run_batch_by_batch(tmp_path: Path) -> None:
    path = written(exported("square"), tmp_path)
    data = [(x(4, 3, 8, 8, seed=n), torch.zeros(4)) for n in range(12)]
    report = bn.verify(made(Square()), path, data=data)
    assert report.verdict is bn.Verdict.PASSED
    assert report.inputs == tuple(f"4x3x8x8 float32 (batch {n} of the data)" for n in range(8))
    data[7] = (data[7][0] * 1e30, data[7][1])
    assert bn.verify(made(Square()), path, data=data).verdict is not bn.Verdict.FAILED
    with pytest.raises(bn.UsageError, match="no batch"):
        bn.verify(made(Square()), path, data=[])


def test_keywords_go_by_the_names_of_the_file(tmp_path: Path) -> None:
    model = made(Two())
    inputs = {"image": x(2, 3, 6, 6), "scale": torch.full((2, 1, 1, 1), 0.5)}
    bn.export(model, inputs, tmp_path / "m.onnx", compare=False)
    turned = dict(reversed(inputs.items()))
    assert bn.verify(model, tmp_path / "m.onnx", turned).verdict is bn.Verdict.PASSED
    with pytest.raises(bn.CaptureError, match="takes 2 tensors"):
        bn.verify(tmp_path / "m.onnx", tmp_path / "m.onnx", x(2, 3, 6, 6))


def test_half_precision_is_held_against_its_own_rounding(tmp_path: Path) -> None:
    model = small()
    bn.export(model, x(2, 3, 8, 8), tmp_path / "half.onnx", fp16=True, compare=False)
    report = bn.verify(model, tmp_path / "half.onnx", x(2, 3, 8, 8))
    assert report.verdict is bn.Verdict.PASSED, report
    assert report.error > 1e-5, "this is no float32"
    content = onnx.load(tmp_path / "half.onnx").SerializeToString()
    planted = plant(content, "a weight channel zeroed", random.Random(0))
    assert planted is not None
    bad = bn.verify(model, written(planted[0], tmp_path, "bad.onnx"), x(2, 3, 8, 8))
    assert bad.verdict is bn.Verdict.FAILED
    assert bad.place is not None
    assert planted[1].module in bad.place.between


def test_types_without_kernels_are_unverified(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, path = small().to(dtype), tmp_path / f"{dtype}.onnx"
        bn.export(model, x(2, 3, 8, 8).to(dtype), path, opset=22, compare=False, verify=False)
        report = bn.verify(model, path, x(2, 3, 8, 8).to(dtype))
        assert report.verdict is bn.Verdict.UNVERIFIED, report
        assert report.why


CRASHES = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
HANGS = "import time\ntime.sleep(600)\n"


@pytest.fixture
def spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let the runtime's process do something else when it is asked to run a file."""
    source = Path(serve.__file__).read_text("utf-8")

    def spoil(code: str) -> None:
        path = tmp_path / "serve.py"
        body = "        ".join(f"{line}\n" for line in code.splitlines())
        assert "        session = self._sessions" in source
        path.write_text(
            source.replace(
                "        session = self._sessions", f"        {body}        session = self._sessions"
            ),
            "utf-8",
        )
        monkeypatch.setattr(serve, "__file__", str(path))

    yield spoil
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)


def test_a_runtime_that_crashes_takes_nobody_along(spoilt: Callable[[str], None], tmp_path: Path) -> None:
    path = written(exported("square"), tmp_path)
    spoilt(CRASHES)
    report = bn.verify(made(Square()), path, x(2, 3, 8, 8), bisect=False)
    assert report.verdict is bn.Verdict.FAILED
    assert "signal 11" in report.why


def test_a_runtime_that_hangs_is_ended(spoilt: Callable[[str], None], tmp_path: Path) -> None:
    path = written(exported("square"), tmp_path)
    spoilt(HANGS)
    report = bn.verify(made(Square()), path, x(2, 3, 8, 8), limit=3)
    assert report.verdict is bn.Verdict.UNVERIFIED
    assert "within 3 s" in report.why


def test_the_process_of_the_runtime_ends_with_it(tmp_path: Path) -> None:
    path = written(exported("square"), tmp_path)
    with Runtime() as runtime:
        session = runtime.open(path, optimise=True)
        with pytest.raises(RefusalError):
            runtime.run(session, {"nothing": np.zeros(1, np.float32)})
        process = runtime._process
        assert process is not None
        assert process.poll() is None
        process.kill()
        with pytest.raises(CrashError):
            runtime.open(path, optimise=True)
        second = runtime.open(path, optimise=True)  # it starts again
        assert second.number == 0
        process = runtime._process
        assert process is not None
    assert process.poll() is not None


def test_a_file_in_the_working_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with Runtime() as runtime:
        assert runtime.name.startswith("ONNX Runtime")


def test_values_come_through_the_pipe_as_they_are() -> None:
    import io

    arrays = [
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.array(1.5, np.float16),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
    ]
    stream = io.BytesIO()
    serve.write(stream, {"x": "é"}, arrays)
    stream.seek(0)
    head, back = serve.read(stream)
    assert head == {"x": "é"}
    for one, two in zip(arrays, back, strict=True):
        assert one.dtype == two.dtype
        assert np.array_equal(one, two)
        assert one.shape == two.shape
    with pytest.raises(EOFError):
        serve.read(stream)


@pytest.mark.parametrize("location", ["../w.data", "/etc/passwd", "a/w.data", "", "..", "w\\x.data"])
def test_weights_anywhere_else_are_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    proto = onnx.load_from_string(exported("square"))
    (tmp_path / "w.data").write_bytes(bytes(1 << 16))

    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path = tmp_path / "in" / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(bn.UnsafeError, match="not beside it"):
        bn.verify(path, path, x(2, 3, 8, 8))


def test_links_are_no_weights_and_missing_ones_are_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    done = bn.export(made(model), x(2, 3, 8, 8), tmp_path / "m.onnx", external_data=True, compare=False)
    assert done.weights is not None
    assert bn.verify(made(model), tmp_path / "m.onnx", x(2, 3, 8, 8)).verdict is bn.Verdict.PASSED
    away = done.weights.rename(tmp_path / "away")
    with pytest.raises(bn.SourceError, match="its weights are not there"):
        bn.verify(made(model), tmp_path / "m.onnx", x(2, 3, 8, 8))
    done.weights.symlink_to(away)
    with pytest.raises(bn.UnsafeError):
        bn.verify(made(model), tmp_path / "m.onnx", x(2, 3, 8, 8))
    done.weights.unlink()
    done.weights.hardlink_to(away)
    with pytest.raises(bn.UnsafeError, match="no ordinary file of its own"):
        bn.verify(made(model), tmp_path / "m.onnx", x(2, 3, 8, 8))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    content = exported("square")
    path = written(content[: len(content) // 2], tmp_path)
    with pytest.raises(bn.SourceError):
        bn.verify(path, path, x(2, 3, 8, 8))

    def missing(proto: Any) -> None:
        del proto.graph.initializer[0]

    report = bn.verify(made(Square()), written(changed(content, missing), tmp_path), x(2, 3, 8, 8))
    assert report.verdict is bn.Verdict.FAILED
    assert "does not load" in report.why


def test_huge_declared_shapes_are_not_drawn(tmp_path: Path) -> None:
    def huge(proto: Any) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40

    path = written(changed(exported("square"), huge), tmp_path)
    with pytest.raises(bn.UsageError, match="very large"):
        bn.verify(path, path)


STEPS = [
    Step("a", (), "m.a"),
    Step("b", ("a",), "m.b"),
    Step("c", ("a",), "m.c"),
    Step("d", ("b", "c"), "m.d"),
    Step("e", ("d",), "m.e"),
]
GOOD, BAD = Check(1e-9, 1e-9, 1e-6), Check(1e-2, 1e-9, 1e-6)


@pytest.mark.parametrize(
    ("bad", "checked", "place", "between"),
    [
        ("", "abcde", None, ()),
        ("abcde", "abcde", "a", ("m.a",)),
        ("bde", "abcde", "b", ("m.b",)),  # c runs after it, and agrees
        ("cde", "abcde", "c", ("m.c",)),
        ("bcde", "abcde", "b", ("m.b",)),  # two faults: the first
        ("ae", "abcde", "e", ("m.e",)),  # a took something in: all behind it agrees
        ("de", "ade", "d", ("m.b", "m.c", "m.d")),  # b and c have no counterpart
        ("e", "ae", "e", ("m.b", "m.c", "m.d", "m.e")),
    ],
)
def test_the_first_divergence(bad: str, checked: str, place: str | None, between: tuple[str, ...]) -> None:
    checks = {name: BAD if name in bad else GOOD for name in checked}
    found = first_divergence(STEPS, checks, ["e"])
    assert (found.value if found else None) == place
    if found:
        assert found.between == between


def test_a_name_that_is_too_long_for_a_path_is_a_source_that_is_not_there() -> None:
    with pytest.raises(bn.SourceError, match="no path and no architecture"):
        bn.verify(f"tests.cli.nets:{'n' * 300}", made(Square()), x(2, 3, 8, 8))


def test_nan_is_bad() -> None:
    assert Check(float("nan"), 0.0, 1.0).bad
    assert Check(float("inf"), 0.0, 1.0).bad
    assert not Check(1.0, 0.0, 1.0).bad


def test_noise_is_the_model_s_own_and_no_more(tmp_path: Path) -> None:
    """A hundred times the model's rounding is found, a difference below the floor is none."""
    given = x(2, 3, 8, 8)

    def scaled(factor: float) -> Callable[[Any], None]:
        def change(proto: Any) -> None:
            weight = next(each for each in proto.graph.initializer if each.name == "fc.weight")
            values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))

        return change

    clean = bn.verify(made(Square()), written(exported("square"), tmp_path), given)
    assert clean.noise is not None
    path = written(changed(exported("square"), scaled(1 + clean.noise * 100)), tmp_path)
    assert bn.verify(made(Square()), path, given).verdict is bn.Verdict.FAILED
    path = written(changed(exported("square"), scaled(1 + 2e-7)), tmp_path)
    assert bn.verify(made(Square()), path, given).verdict is bn.Verdict.PASSED
