"""``.pt2`` files as torch and bntools write them: they open as torch.export.load opens them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bntools as bn
from bntools.core.aten import ATEN, SIZES
from bntools.core.axes import Axes, asked_for, open_axes
from bntools.core.payloads import constants_of, type_of, weights_of
from bntools.core.program_safety import TYPES
from bntools.core.pt2 import read_program_file
from bntools.core.revive import revive
from bntools.core.source import load, state_of
from bntools.errors import SourceError
from tests import zoo
from tests.season import season

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),  # torch's, on copying
    pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning"),  # torch's, on saving
]
AUTO = torch.export.Dim.AUTO


def saved(path: Path, model: nn.Module, *args: Any, open_axes: Any = None, **kwargs: Any) -> Path:
    program = torch.export.export(model.eval(), args, kwargs, dynamic_shapes=open_axes, strict=False)
    torch.export.save(program, path)
    return path


def outputs(module: Any, args: Any, kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]


def check_same(path: Path) -> bn.Plan | None:
    """The same graph, weights and outputs as torch's own loader, bit for bit."""
    held, theirs = revive(path), torch.export.load(path)
    assert str(held.program.graph) == str(theirs.graph)
    assert held.program.range_constraints == theirs.range_constraints
    assert held.program.call_spec == theirs.call_spec
    for ours, reference in (
        (held.program.state_dict, theirs.state_dict),
        (held.program.constants, theirs.constants),
    ):
        assert list(ours) == list(reference)
        for key, tensor in reference.items():
            assert torch.equal(ours[key], tensor)
            assert (type(ours[key]), ours[key].stride()) == (type(tensor), tensor.stride())
            assert ours[key].requires_grad == tensor.requires_grad
    assert held.example is not None
    args, kwargs = theirs.example_inputs or ((), {})
    one, two = (outputs(m, args, kwargs) for m in (held.module, theirs.module(check_guards=False)))
    assert len(one) == len(two) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert held.example.origin == "from the file"
    return bn.Plan.from_json(held.plan) if held.plan else None


MODELS = ["torchvision:resnet18", "torchvision:shufflenet_v2_x0_5"]
MORE = [
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "torchvision:squeezenet1_1",
    "torchvision:vit_b_16",
    "torchvision:swin_t",
    "torchvision:lraspp_mobilenet_v3_large",
    "timm:efficientnet_lite0",
]
"""In `make zoo`."""


def built(name: str) -> tuple[nn.Module, Any]:
    if name in [entry.name for entry in zoo.ENTRIES]:
        model, example = zoo.build(name)
        return model, zoo.arguments(example)
    size = 224 if "vit" in name else 64
    return season(load(name).model), (torch.randn(2, 3, size, size),)


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.zoo) for name in MORE)])
def test_models_of_the_libraries_open_without_running_anything(tmp_path: Path, name: str) -> None:
    model, args = built(name)
    assert check_same(saved(tmp_path / "m.pt2", model, *args)) is None


class Odd(nn.Module):
    """All that a file can hold besides plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.embed = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.register_buffer("narrow", torch.arange(6.0).half().reshape(2, 3).t())  # not contiguous
        self.register_buffer("unsaved", torch.ones(4), persistent=False)
        self.register_buffer("empty", torch.empty(0, 3))

    def forward(
        self, x: Tensor, ids: Tensor, *, scale: float = 1.0, more: Any = None, flag: bool = True
    ) -> dict[str, Any]:
        y = self.bn(self.conv(x)).mean((2, 3)) * scale + self.unsaved + torch.tensor([0.5, 1.0, 1.5, 2.0])
        z = self.head(self.embed(ids)) if flag else ids
        w = more["a"].sum() + more["b"][0] + self.narrow.sum() + self.empty.sum()
        return {"y": y.view(x.shape[0], 2, -1), "z": [z.argmax(-1).to(torch.int32), w]}


def test_tied_half_hidden_and_nested_tensors(tmp_path: Path) -> None:
    more = {"a": torch.ones(3), "b": (torch.ones(1),)}
    given = (torch.randn(2, 3, 6, 6), torch.tensor([[1, 2], [3, 4]]))
    path = saved(tmp_path / "m.pt2", season(Odd()), *given, scale=2.0, more=more, flag=True)
    check_same(path)
    file = read_program_file(path)
    weights = weights_of(file)
    assert weights["embed.weight"].data_ptr() == weights["head.weight"].data_ptr()
    assert weights["narrow"].dtype is torch.float16
    assert "unsaved" in constants_of(file)


def asking(name: str) -> nn.Module:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            if name == "view":
                return y.view(y.shape[0], -1, y.shape[2] * y.shape[3]).mean(-1)
            return nn.functional.interpolate(y, size=(x.shape[2] // 2 + 1, x.shape[3]))

    return season(Pool())


@pytest.mark.parametrize("name", ["view", "interpolate"])
def test_open_axes_stay_open(tmp_path: Path, name: str) -> None:
    axes = ({0: AUTO, 2: AUTO, 3: AUTO},)
    path = saved(tmp_path / "m.pt2", asking(name), torch.randn(2, 3, 12, 14), open_axes=axes)
    check_same(path)
    held = revive(path)
    with torch.no_grad():
        for shape in ((1, 3, 12, 14), (3, 3, 21, 9)):
            given = torch.randn(shape)
            assert torch.equal(held.module(given), torch.export.load(path).module()(given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    model = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    check_same(saved(tmp_path / "m.pt2", model, torch.randn(2, 3, 6, 6, dtype=dtype)))


def test_what_bntools_writes_opens_and_has_its_plan(tmp_path: Path) -> None:
    model, given = season(Siblings()).eval(), torch.randn(2, 3, 6, 6)
    surgery = bn.fold(model, given, level="program")
    bn.save(surgery, tmp_path / "m.pt2")
    plan = check_same(tmp_path / "m.pt2")
    assert plan is not None
    assert len(plan.edits) == 2


class Siblings(nn.Module):
    """A convolution and a BatchNorm of the same input: one layer in a program."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.beside = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x)) + self.beside(x)
        return out


def test_a_program_in_memory_goes_through_every_verb(tmp_path: Path) -> None:
    model, given = season(Siblings()).eval(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (given,), dynamic_shapes=({0: AUTO, 2: AUTO, 3: AUTO},))
    surgery = bn.fold(program)
    assert {edit.site.name for edit in surgery.plan.edits} == {"bn", "beside"}
    assert surgery.report.verdict is bn.Verdict.PASSED
    census = bn.inspect(program)
    assert census.plan is not None
    assert {edit.site.name for edit in census.plan.edits} == {"bn", "beside"}
    assert {site.channels for site in census.sites} == {3}
    done = bn.export(program, None, tmp_path / "m.onnx")
    assert done.check.verdict is bn.Verdict.PASSED
    assert done.graph.inputs == ("x: batch×3×axis2×axis3 float",)
    assert bn.verify(program, tmp_path / "m.onnx").verdict is bn.Verdict.PASSED
    with pytest.raises(bn.UsageError, match="it is about modules"):
        bn.fold(program, simplify=True)
    with torch.no_grad():
        assert (bn.fold(program).model(given) - model(given)).abs().max() < 1e-5


def test_a_loaded_program_goes_through_the_verbs_as_one(tmp_path: Path) -> None:
    model, given = season(Siblings()).eval(), torch.randn(2, 3, 6, 6)
    path = saved(tmp_path / "m.pt2", model, given, open_axes=({0: AUTO},))
    loaded = bn.load(path)
    with torch.no_grad():
        assert torch.equal(loaded(given), torch.export.load(path).module()(given))
    surgery = bn.fold(loaded)
    assert {edit.site.name for edit in surgery.plan.edits} == {"bn", "beside"}, "they are siblings"
    assert bn.verify(loaded, surgery.model, exact=False).verdict is bn.Verdict.PASSED
    assert bn.inspect(loaded).plan == bn.inspect(torch.export.load(path)).plan


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_what_a_program_leaves_open_stays_open_in_what_is_saved_of_its_fold(
    tmp_path: Path, ending: str
) -> None:
    model, given = season(Siblings()).eval(), torch.randn(2, 3, 6, 6)
    path = saved(tmp_path / "m.pt2", model, given, open_axes=({0: AUTO, 2: AUTO, 3: AUTO},))
    out = bn.save(bn.fold(bn.load(path)), tmp_path / f"folded{ending}")
    other = torch.randn(3, 3, 9, 7)
    assert bn.verify(model, out, other, exact=False).verdict is bn.Verdict.PASSED
    assert bn.verify(model, out, given, exact=False).verdict is bn.Verdict.PASSED


def test_constants_of_the_code_are_in_nobodys_way(tmp_path: Path) -> None:
    """torch.export writes that it detaches them in place, and does not take that back."""
    more = {"a": torch.ones(3), "b": (torch.ones(1),)}
    given = (torch.randn(2, 3, 6, 6), torch.tensor([[1, 2], [3, 4]]))
    path = saved(tmp_path / "m.pt2", season(Odd()), *given, scale=2.0, more=more, flag=True)
    assert "detach_" in str(revive(path).program.graph)
    surgery = bn.fold(bn.load(path))
    assert [edit.site.name for edit in surgery.plan.edits] == ["bn"]
    assert surgery.report.verdict is bn.Verdict.PASSED


def test_open_axes_of_a_program_are_told_by_its_arguments(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.sum((0, 1)) + y.sum()

    axes = {"x": {1: AUTO}, "y": {0: AUTO, 1: AUTO}}
    program = torch.export.export(Two(), (torch.ones(2, 3, 4), torch.ones(5, 6)), dynamic_shapes=axes)
    module = program.module(check_guards=False)
    found = open_axes(program, module)  # type: ignore[arg-type]
    assert not found.batch
    assert found.named == {"x": {1: "axis1"}, "y": {0: "batch", 1: "y_axis1"}}
    fixed = asked_for(found, Axes(batch=False))
    assert fixed.named == {"x": {1: "axis1"}, "y": {1: "y_axis1"}}
    more = asked_for(found, Axes(batch=True, named={"x": {2: "depth"}}))
    assert more.named["x"] == {1: "axis1", 2: "depth"}


def test_without_example_inputs_they_are_drawn_by_the_shapes(tmp_path: Path) -> None:
    given = (torch.randn(2, 3, 6, 6), torch.tensor([[1, 2], [3, 4]]))
    more = {"a": torch.ones(3), "b": (torch.ones(1),)}
    model = season(Odd()).eval()
    program = torch.export.export(model, given, {"scale": 2.0, "more": more}, strict=False)
    program.example_inputs = None
    torch.export.save(program, tmp_path / "m.pt2")
    example = revive(tmp_path / "m.pt2").example
    assert example is not None
    assert example.origin == "drawn by the file's shapes"
    assert [tuple(t.shape) for t in example.tensors] == [(2, 3, 6, 6), (2, 2), (3,), (1,)]
    assert [t.dtype for t in example.tensors][1] is torch.int64
    assert example.kwargs["scale"] == 2.0
    assert len(outputs(revive(tmp_path / "m.pt2").module, example.args, example.kwargs)) == 3


def test_weights_are_read_by_name(tmp_path: Path) -> None:
    model = season(Siblings()).eval()
    path = saved(tmp_path / "m.pt2", model, torch.randn(2, 3, 6, 6))
    state = state_of(path)
    assert state.tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(state.tensors[key], value) for key, value in model.state_dict().items())
    filled = load(path, arch="tests.core.test_pt2:Siblings").model
    assert torch.equal(filled.state_dict()["beside.running_var"], model.beside.running_var)
    with pytest.raises(SourceError, match="do not fit the model"):
        load(path, arch="tests.core.test_pt2:Odd")


def test_a_program_for_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bntools.core import revive as module

    path = saved(tmp_path / "m.pt2", season(Siblings()), torch.randn(2, 3, 6, 6))
    sound = module.harmless_program

    def moved(document: Any) -> Any:
        known = sound(document)
        for meta in known["graph_module"]["graph"]["tensor_values"].values():
            meta["device"] = {"type": "cuda", "index": 0}
        return known

    monkeypatch.setattr(module, "harmless_program", moved)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SourceError, match="a program for a GPU, and there is none here"):
        revive(path)


def test_every_operator_of_the_list_is_one_of_torch() -> None:
    packets = {name: [getattr(torch.ops.aten, n, None) for n in (name, f"{name}_")] for name in ATEN}
    assert [name for name, both in packets.items() if both == [None, None]] == []
    for name in SIZES:
        module, function = name.split(".")
        owner: Any = {"_operator": __import__("operator"), "math": __import__("math"), "torch": torch}[module]
        assert callable(getattr(owner, function))


def test_no_operator_of_the_list_takes_the_name_of_a_file() -> None:
    for name in ATEN:
        for each in (name, f"{name}_"):
            packet = getattr(torch.ops.aten, each, None)
            for overload in packet.overloads() if packet is not None else ():
                arguments = [a.name for a in getattr(packet, overload)._schema.arguments]
                assert "filename" not in arguments, (each, overload)
    assert "filename" in [a.name for a in torch.ops.aten.from_file.default._schema.arguments]


def test_the_numbers_of_types_are_those_of_torch() -> None:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    assert {int(number): dtype for number, dtype in _SERIALIZE_TO_TORCH_DTYPE.items()} == {
        number: type_of(number) for number in TYPES
    }


def test_a_stream_is_as_good_as_a_file(tmp_path: Path) -> None:
    """torch names the folder inside after the file; from a stream it is another."""
    stream = io.BytesIO()
    program = torch.export.export(season(Siblings()).eval(), (torch.randn(2, 3, 6, 6),))
    torch.export.save(program, stream)
    (tmp_path / "m.pt2").write_bytes(stream.getvalue())
    check_same(tmp_path / "m.pt2")
