"""An ONNX file in, an ONNX file out: what folds, what must not, and that nothing else is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import bntools as bn
from bntools.core import onnxmodel
from tests.onnx_by_hand import Draw, Line, model, norm, types, written

IMAGE = {"x": ["N", 4, 9, 8]}
ROWS = {"x": ["N", 6]}
TOKENS = {"x": ["N", 5, 6]}


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's answer, not optimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return list(onnxruntime.InferenceSession(path, options).run(None, dict(feeds)))


def folded(path: Path, inputs: Any = None) -> tuple[Path, bn.Surgery[Any]]:
    """Fold a file, and hold both against each other with numbers that bntools did not draw."""
    surgery = bn.fold(bn.load(path), inputs, level="program")
    out = bn.save(surgery, path.with_name("folded.onnx"), force=True)
    shapes = {
        v.name: [d.dim_value or 3 for d in v.type.tensor_type.shape.dim] for v in onnx.load(path).graph.input
    }
    held = {i.name for i in onnx.load(path).graph.initializer}
    random = np.random.default_rng(7)
    feeds = {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items() if k not in held}
    before, after = onnx.load(path).graph, onnx.load(out).graph
    assert [v.name for v in after.output] == [v.name for v in before.output]
    for one, two in zip(run(path, feeds), run(out, feeds), strict=True):
        assert one.shape == two.shape
        scale = float(np.abs(one).max()) or 1.0
        assert np.abs(one - two).max() / scale < 1e-5
    return out, surgery


def conv(x: str, y: str, w: str = "w", b: str | None = None, **attributes: Any) -> Line:
    """A convolution."""
    return ("Conv", [x, w, *([b] if b else [])], [y], attributes)


d = Draw()
C8 = {"w": d.weight(8, 4, 3, 3), **d.norm("bn", 8)}
L6 = {"w": d.weight(6, 5), **d.norm("bn", 5)}
SPELT = {"s": d.weight(8, 1, 1) + np.float32(1.5), "t": d.weight(8, 1, 1)}

FOLDS: dict[str, tuple[Sequence[Line], dict[str, np.ndarray], Mapping[str, Sequence[Any]]]] = {
    "conv": ([conv("x", "h"), norm("h", "y", "bn")], C8, IMAGE),
    "conv with a bias": ([conv("x", "h", b="b"), norm("h", "y", "bn")], {**C8, "b": d.weight(8)}, IMAGE),
    "strided, padded, dilated": (
        [conv("x", "h", strides=[2, 1], pads=[1, 2, 1, 2], dilations=[1, 2]), norm("h", "y", "bn")],
        C8,
        IMAGE,
    ),
    "padded on one side": (
        [conv("x", "h", strides=[2, 2], pads=[0, 1, 2, 0]), norm("h", "y", "bn")],
        C8,
        IMAGE,
    ),
    "padded by the size": (
        [conv("x", "h", strides=[2, 2], auto_pad="SAME_UPPER"), norm("h", "y", "bn")],
        C8,
        IMAGE,
    ),
    "padded to the same size": (
        [conv("x", "h", auto_pad="SAME_LOWER"), norm("h", "y", "bn")],
        C8,
        IMAGE,
    ),
    "grouped conv": (
        [conv("x", "h", group=2), norm("h", "y", "bn")],
        {**C8, "w": d.weight(8, 2, 3, 3)},
        IMAGE,
    ),
    "depthwise conv": (
        [conv("x", "h", group=4), norm("h", "y", "bn")],
        {"w": d.weight(4, 1, 3, 3), **d.norm("bn", 4)},
        IMAGE,
    ),
    "conv of one axis": (
        [conv("x", "h"), norm("h", "y", "bn")],
        {"w": d.weight(8, 4, 3), **d.norm("bn", 8)},
        {"x": ["N", 4, 9]},
    ),
    "conv of three axes": (
        [conv("x", "h"), norm("h", "y", "bn")],
        {"w": d.weight(8, 4, 2, 2, 2), **d.norm("bn", 8)},
        {"x": ["N", 4, 4, 5, 3]},
    ),
    "transposed conv": (
        [("ConvTranspose", ["x", "w"], ["h"], {"strides": [2, 2]}), norm("h", "y", "bn")],
        {"w": d.weight(4, 8, 3, 3), **d.norm("bn", 8)},
        IMAGE,
    ),
    "transposed grouped conv, as many channels in as out": (
        [("ConvTranspose", ["x", "w"], ["h"], {"group": 2, "pads": [1, 1, 1, 1]}), norm("h", "y", "bn")],
        {"w": d.weight(4, 2, 3, 3), **d.norm("bn", 4)},
        IMAGE,
    ),
    "gemm": ([("Gemm", ["x", "w"], ["h"], {}), norm("h", "y", "bn")], L6, ROWS),
    "gemm, turned, with a bias": (
        [("Gemm", ["x", "w", "b"], ["h"], {"transB": 1}), norm("h", "y", "bn")],
        {**L6, "w": d.weight(5, 6), "b": d.weight(5)},
        ROWS,
    ),
    "gemm with alpha and beta": (
        [("Gemm", ["x", "w", "b"], ["h"], {"alpha": 0.5, "beta": -2.0}), norm("h", "y", "bn")],
        {**L6, "b": d.weight(1, 5)},
        ROWS,
    ),
    "gemm with one number as a bias": (
        [("Gemm", ["x", "w", "b"], ["h"], {"beta": 0.5}), norm("h", "y", "bn")],
        {**L6, "b": np.float32([0.75])},
        ROWS,
    ),
    "matmul": ([("MatMul", ["x", "w"], ["h"], {}), norm("h", "y", "bn")], L6, ROWS),
    "matmul and add": (
        [("MatMul", ["x", "w"], ["h"], {}), ("Add", ["b", "h"], ["i"], {}), norm("i", "y", "bn")],
        {**L6, "b": d.weight(5)},
        ROWS,
    ),
    "matmul of tokens, the channels moved": (
        [
            ("MatMul", ["x", "w"], ["h"], {}),
            ("Add", ["h", "b"], ["i"], {}),
            ("Transpose", ["i"], ["j"], {"perm": [0, 2, 1]}),
            norm("j", "y", "bn"),
        ],
        {**L6, "b": d.weight(5)},
        TOKENS,
    ),
    "matmul of tokens, flattened": (
        [
            ("MatMul", ["x", "w"], ["h"], {}),
            ("Reshape", ["h", "shape"], ["i"], {}),
            norm("i", "y", "bn"),
        ],
        {**L6, "shape": np.int64([-1, 5])},
        TOKENS,
    ),
    "spelt out": (
        [conv("x", "h"), ("Mul", ["h", "s"], ["i"], {}), ("Add", ["t", "i"], ["y"], {})],
        {"w": C8["w"], **SPELT},
        IMAGE,
    ),
    "spelt out as it is trained": (
        [
            conv("x", "h"),
            ("Sub", ["h", "m"], ["i"], {}),
            ("Add", ["v", "e"], ["v1"], {}),
            ("Sqrt", ["v1"], ["v2"], {}),
            ("Div", ["i", "v2"], ["j"], {}),
            ("Mul", ["j", "s"], ["k"], {}),
            ("Add", ["k", "t"], ["y"], {}),
        ],
        {
            "w": C8["w"],
            **SPELT,
            "m": d.weight(1, 8, 1, 1),
            "v": np.abs(d.weight(1, 8, 1, 1)) + np.float32(0.3),
            "e": np.float32(1e-3),
        },
        IMAGE,
    ),
    "through relu's neighbours": (
        [
            conv("x", "h"),
            ("Dropout", ["h"], ["i"], {}),
            ("Identity", ["i"], ["j"], {}),
            norm("j", "k", "bn"),
            ("Relu", ["k"], ["y"], {}),
        ],
        C8,
        IMAGE,
    ),
    "through average pooling and a join": (
        [
            conv("x", "a"),
            conv("x", "b", "w2"),
            ("Concat", ["a", "b"], ["c"], {"axis": 1}),
            ("AveragePool", ["c"], ["e"], {"kernel_shape": [2, 2]}),
            norm("e", "y", "bn"),
        ],
        {"w": C8["w"], "w2": d.weight(3, 4, 3, 3), **d.norm("bn", 11)},
        IMAGE,
    ),
    "into a reader": (
        [norm("x", "h", "bn"), conv("h", "y")],
        {"w": C8["w"], **d.norm("bn", 4)},
        IMAGE,
    ),
    "into a gemm behind a pool": (
        [
            ("Relu", ["x"], ["r"], {}),
            norm("r", "h", "bn"),
            ("GlobalAveragePool", ["h"], ["i"], {}),
            ("Flatten", ["i"], ["j"], {}),
            ("Gemm", ["j", "w"], ["y"], {}),
        ],
        {"w": d.weight(4, 7), **d.norm("bn", 4)},
        IMAGE,
    ),
    "two in a row": (
        [conv("x", "h"), norm("h", "i", "bn"), norm("i", "y", "bn2")],
        {**C8, **d.norm("bn2", 8)},
        IMAGE,
    ),
    "siblings": (
        [
            conv("x", "a", pads=[1, 1, 1, 1]),
            norm("a", "b", "bn"),
            norm("x", "c", "bn2"),
            ("Add", ["b", "c"], ["y"], {}),
        ],
        {"w": d.weight(4, 4, 3, 3), **d.norm("bn", 4), **d.norm("bn2", 4)},
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_it_folds(name: str, tmp_path: Path) -> None:
    lines, weights, inputs = FOLDS[name]
    path = written(model(lines, weights, inputs), tmp_path)
    out, surgery = folded(path)
    assert surgery.report.verdict.value == "passed"
    assert not surgery.plan.refusals
    assert surgery.plan.edits
    assert "BatchNormalization" not in types(out)
    onnx.checker.check_model(str(out), full_check=True)


STAYS: dict[str, tuple[Sequence[Line], dict[str, np.ndarray], Mapping[str, Sequence[Any]], str]] = {
    "relu between": (
        [conv("x", "h"), ("Relu", ["h"], ["i"], {}), norm("i", "y", "bn")],
        C8,
        IMAGE,
        "blocked",
    ),
    "the conv is read elsewhere": (
        [conv("x", "h"), norm("h", "i", "bn"), ("Sigmoid", ["h"], ["j"], {}), ("Mul", ["i", "j"], ["y"], {})],
        C8,
        IMAGE,
        "read-elsewhere",
    ),
    "matmul of as many tokens as channels": (
        [("MatMul", ["x", "w"], ["h"], {}), norm("h", "y", "bn")],
        L6,
        TOKENS,
        "other-axis",
    ),
    "in training": (
        [
            conv("x", "h"),
            (
                "BatchNormalization",
                ["h", *(f"bn.{k}" for k in "gbmv")],
                ["y", "m2", "v2"],
                {"name": "bn", "training_mode": 1},
            ),
        ],
        C8,
        IMAGE,
        "training",
    ),
    "a padded reader": (
        [norm("x", "h", "bn"), conv("h", "y", pads=[1, 1, 1, 1])],
        {"w": C8["w"], **d.norm("bn", 4)},
        IMAGE,
        "no-host",
    ),
    "a weight that is an input": (
        [("Conv", ["x", "k"], ["h"], {}), norm("h", "y", "bn")],
        d.norm("bn", 8),
        {**IMAGE, "k": [8, 4, 3, 3]},
        "computed-weight",
    ),
    "a quantised weight": (
        [("DequantizeLinear", ["q", "f"], ["k"], {}), conv("x", "h", "k"), norm("h", "y", "bn")],
        {"q": np.int8(d.weight(8, 4, 3, 3) * 40), "f": np.float32(0.05), **d.norm("bn", 8)},
        IMAGE,
        "computed-weight",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_it_stays(name: str, tmp_path: Path) -> None:
    lines, weights, inputs, reason = STAYS[name]
    path = written(model(lines, weights, inputs), tmp_path)
    plan = bn.fold(bn.load(path), level="program").plan
    assert [refusal.reason.value for refusal in plan.refusals] == [reason]
    assert not plan.edits


def test_a_product_along_another_axis_is_no_norm(tmp_path: Path) -> None:
    """Conv → Mul by a constant along W where W is the number of channels."""
    lines = [conv("x", "h"), ("Mul", ["h", "s"], ["i"], {}), ("Add", ["i", "t"], ["y"], {})]
    weights = {"w": d.weight(6, 4, 3, 3), "s": d.weight(6) + np.float32(1), "t": d.weight(6)}
    path = written(model(lines, weights, IMAGE), tmp_path)
    assert (
        onnx.shape_inference.infer_shapes(onnx.load(path))
        .graph.value_info[0]
        .type.tensor_type.shape.dim[3]
        .dim_value
        == 6
    )
    plan = bn.fold(bn.load(path), level="program").plan
    assert not plan.edits
    assert not plan.refusals


@pytest.mark.parametrize("at", ["product", "row"])
def test_what_others_read_is_no_part_of_a_layer(at: str, tmp_path: Path) -> None:
    """A value between a product and its sum that somebody else reads too keeps both apart."""
    if at == "product":
        lines = [conv("x", "h"), ("Mul", ["h", "s"], ["i"], {}), ("Add", ["i", "t"], ["j"], {})]
        weights, inputs = {"w": C8["w"], **SPELT}, IMAGE
    else:
        lines = [("MatMul", ["x", "w"], ["i"], {}), ("Add", ["i", "b"], ["h"], {}), norm("h", "j", "bn")]
        weights, inputs = {**L6, "b": d.weight(5)}, ROWS
    lines += [("Sigmoid", ["i"], ["k"], {}), ("Add", ["j", "k"], ["y"], {})]
    path = written(model(lines, weights, inputs), tmp_path)
    _, surgery = folded(path)
    assert not surgery.plan.edits
    assert len(surgery.plan.refusals) == (at == "row")


def test_what_is_left_keeps_its_names_and_its_bytes(tmp_path: Path) -> None:
    lines = [
        conv("x", "h"),
        norm("h", "i", "bn"),
        ("Relu", ["i"], ["j"], {}),
        norm("j", "k", "stays"),
        ("Conv", ["k", "w2"], ["y"], {"pads": [1, 1, 1, 1]}),
    ]
    weights = {**C8, **d.norm("stays", 8), "w2": d.weight(3, 8, 3, 3)}
    path = written(model(lines, weights, IMAGE), tmp_path)
    out, surgery = folded(path)
    before, after = onnx.load(path).graph, onnx.load(out).graph
    assert [n.op_type for n in after.node] == ["Conv", "Relu", "BatchNormalization", "Conv"]
    assert [v.name for v in after.output] == ["y"]
    assert after.input == before.input
    old = {i.name: numpy_helper.to_array(i) for i in before.initializer}
    new = {i.name: numpy_helper.to_array(i) for i in after.initializer}
    assert {"stays.g", "stays.b", "stays.m", "stays.v", "w2"} <= new.keys()
    assert not {"bn.g", "bn.b", "bn.m", "bn.v"} & new.keys()
    for name in ("stays.g", "stays.b", "stays.m", "stays.v", "w2"):
        assert np.array_equal(old[name], new[name])
    assert [r.site.name for r in surgery.plan.refusals] == ["stays"]
    # By hand: W' = s·W.
    s = old["bn.g"].astype(np.float64) / np.sqrt(
        old["bn.v"].astype(np.float64) + np.float64(np.float32(1e-5))
    )
    assert np.allclose(new["w"], s[:, None, None, None] * old["w"], rtol=1e-7, atol=0)


def test_a_weight_of_two_nodes_is_two_weights(tmp_path: Path) -> None:
    lines = [
        conv("x", "a"),
        norm("a", "b", "bn"),
        conv("x", "c"),
        norm("c", "e", "bn2"),
        conv("x", "f"),
        ("Sum", ["b", "e", "f"], ["g"], {}),
        ("Sigmoid", ["g"], ["y"], {}),
    ]
    path = written(
        model(
            [*lines[:4], conv("x", "f"), ("Concat", ["b", "e", "f"], ["y"], {"axis": 1})],
            {**C8, **d.norm("bn2", 8)},
            IMAGE,
        ),
        tmp_path,
    )
    out, surgery = folded(path)
    assert len(surgery.plan.edits) == 2
    after = onnx.load(out).graph
    convs = [node.input[1] for node in after.node if node.op_type == "Conv"]
    assert len(set(convs)) == 3
    assert "w" in convs


def test_a_norm_that_two_nodes_read(tmp_path: Path) -> None:
    lines = [
        conv("x", "a"),
        norm("a", "b", "bn"),
        conv("x", "c", "w2"),
        ("BatchNormalization", ["c", *(f"bn.{k}" for k in "gbmv")], ["e"], {"name": "again"}),
        ("Concat", ["b", "e"], ["y"], {"axis": 1}),
    ]
    path = written(model(lines, {**C8, "w2": d.weight(8, 4, 3, 3)}, IMAGE), tmp_path)
    out, surgery = folded(path)
    assert len(surgery.plan.edits) == 2
    assert types(out) == ["Conv", "Conv", "Concat"]


def test_an_initializer_that_a_caller_may_replace(tmp_path: Path) -> None:
    path = written(model([conv("x", "h"), norm("h", "y", "bn")], C8, IMAGE, given=["bn.g"]), tmp_path)
    surgery = bn.fold(bn.load(path), level="program")
    assert [r.reason.value for r in surgery.plan.refusals] == ["computed-weight"]
    assert any("bn.g" in note for note in surgery.plan.notes)


def test_before_version_4_every_initializer_is_an_input(tmp_path: Path) -> None:
    proto = model([conv("x", "h"), norm("h", "y", "bn")], C8, IMAGE, given=list(C8), ir_version=3, opset=8)
    path = written(proto, tmp_path)
    out, surgery = folded(path)
    assert len(surgery.plan.edits) == 1
    graph = onnx.load(out).graph
    assert {i.name for i in graph.initializer} == {i.name for i in graph.input} - {"x"}


def test_a_norm_in_a_subgraph_is_refused_by_name(tmp_path: Path) -> None:
    inner = helper.make_node("BatchNormalization", ["h", *(f"bn.{k}" for k in "gbmv")], ["z"], name="inside")
    then = helper.make_graph(
        [inner], "then", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, list("NCHW"))]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["z2"])],
        "else",
        [],
        [helper.make_tensor_value_info("z2", TensorProto.FLOAT, list("NCHW"))],
    )
    lines = [
        conv("x", "a"),
        norm("a", "h", "bn2"),
        ("ReduceMax", ["x"], ["top"], {"keepdims": 0}),
        ("Greater", ["top", "zero"], ["flag"], {}),
        ("If", ["flag"], ["y"], {"then_branch": then, "else_branch": other, "name": "choice"}),
    ]
    path = written(model(lines, {**C8, **d.norm("bn2", 8), "zero": np.float32(0)}, IMAGE), tmp_path)
    out, surgery = folded(path)
    (refusal,) = surgery.plan.refusals
    assert refusal.site.name == "inside"
    assert "choice" in refusal.detail
    assert [edit.site.name for edit in surgery.plan.edits] == ["bn2"]
    assert "BatchNormalization" not in types(out)


def test_a_function_with_a_norm_is_taken_apart(tmp_path: Path) -> None:
    body = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "g", "b", "m", "v"], ["y"], name="bn"),
    ]
    block = helper.make_function(
        "own", "Block", ["x", "w", "g", "b", "m", "v"], ["y"], body, [helper.make_opsetid("", 17)]
    )
    square = helper.make_function(
        "own",
        "Square",
        ["x"],
        ["y"],
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    lines: list[Line] = [
        ("Block", ["x", "w", *(f"bn.{k}" for k in "gbmv")], ["h"], {"domain": "own"}),
        ("Square", ["h"], ["y"], {"domain": "own"}),
    ]
    proto = model(lines, C8, IMAGE, functions=[block, square], domains={"own": 1})
    path = written(proto, tmp_path)
    out, surgery = folded(path)
    assert len(surgery.plan.edits) == 1
    assert any("Block" in note for note in surgery.plan.notes)
    assert types(out) == ["Conv", "Square"]
    assert [f.name for f in onnx.load(out).functions] == ["Square"]


def test_weights_beside_the_file_stay_beside_it(tmp_path: Path) -> None:
    weights = {**C8, "w": d.weight(8, 4, 7, 7)}
    proto = model([conv("x", "h"), norm("h", "y", "bn")], weights, IMAGE)
    path = written(proto, tmp_path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    before = (tmp_path / "weights.bin").read_bytes()
    out, _ = folded(path)
    assert (tmp_path / "weights.bin").read_bytes() == before
    (held,) = {
        e.value
        for i in onnx.load(out, load_external_data=False).graph.initializer
        for e in i.external_data
        if e.key == "location"
    }
    assert held != "weights.bin"
    assert (tmp_path / held).exists()


def test_a_norm_that_nothing_depends_on(tmp_path: Path) -> None:
    lines = [conv("x", "h"), norm("h", "y", "bn"), norm("h", "unread", "dead")]
    path = written(model(lines, {**C8, **d.norm("dead", 8)}, IMAGE), tmp_path)
    out, surgery = folded(path)
    assert {r.site.name: r.reason.value for r in surgery.plan.refusals} == {"dead": "unreached"}
    assert [edit.site.name for edit in surgery.plan.edits] == ["bn"]
    assert types(out) == ["Conv", "BatchNormalization"]


def test_an_output_keeps_its_name_whoever_makes_it(tmp_path: Path) -> None:
    lines = [conv("x", "h"), norm("h", "y", "bn"), ("Relu", ["y"], ["z"], {})]
    path = written(model(lines, C8, IMAGE, outputs=["y", "z"]), tmp_path)
    out, surgery = folded(path)
    assert len(surgery.plan.edits) == 1
    assert types(out) == ["Conv", "Relu"]


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    lines: list[Line] = [
        conv("x", "h"),
        ("Wonder", ["h"], ["i"], {"domain": "elsewhere", "name": "w1"}),
        norm("i", "y", "bn"),
    ]
    path = written(model(lines, C8, IMAGE, domains={"elsewhere": 1}), tmp_path)
    with pytest.raises(bn.CaptureError, match="Wonder w1"):
        bn.fold(bn.load(path))
    (refusal,) = bn.inspect(bn.load(path)).plan.refusals  # type: ignore[union-attr]
    assert refusal.reason.value == "not-captured"


def test_only_a_fold_is_written_back(tmp_path: Path) -> None:
    """The graph of the file would be written as it was, and nobody would notice."""
    program = bn.load(written(model(*FOLDS["conv"]), tmp_path))
    surgery = bn.recalibrate(program, [torch.randn(4, 4, 9, 8) * 3])
    with pytest.raises(bn.UsageError, match="only a fold"):
        bn.save(surgery, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    path = written(model([conv("x", "h"), norm("h", "y", "bn")], C8, IMAGE), tmp_path)
    saved = []
    for name in ("a.onnx", "b.onnx"):
        surgery = bn.fold(bn.load(path), level="program")
        saved.append(bn.save(surgery, tmp_path / name).read_bytes())
    assert saved[0] == saved[1]


def test_a_surgery_can_be_saved_twice(tmp_path: Path) -> None:
    path = written(model([conv("x", "h"), norm("h", "y", "bn")], C8, IMAGE), tmp_path)
    surgery = bn.fold(bn.load(path), level="program")
    one, two = (bn.save(surgery, tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert one == two


def test_a_wrong_fold_is_not_written(tmp_path: Path) -> None:
    path = written(model([conv("x", "h"), norm("h", "y", "bn")], C8, IMAGE), tmp_path)
    surgery = bn.fold(bn.load(path), level="program")
    with torch.no_grad():
        surgery.model.get_submodule("h").weight[0] *= 1.001  # type: ignore[index,operator,union-attr]
    with pytest.raises(bn.PromiseError, match="computes something else"):
        bn.save(surgery, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_the_loaded_file_computes_what_the_runtime_computes(tmp_path: Path) -> None:
    lines, weights, inputs = FOLDS["siblings"]
    path = written(model(lines, weights, inputs), tmp_path)
    x = torch.randn(3, 4, 9, 8)
    (known,) = run(path, {"x": x.numpy()})
    assert torch.allclose(bn.load(path)(x), torch.from_numpy(known), atol=1e-5)


def test_a_graph_that_was_not_understood_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [conv("x", "h"), norm("h", "i", "bn"), ("Relu", ["i"], ["y"], {})]
    path = written(model(lines, C8, IMAGE), tmp_path)
    monkeypatch.setitem(onnxmodel.RULES, "Relu", lambda a, x: torch.nn.functional.leaky_relu(x))  # type: ignore[index]
    surgery = bn.fold(bn.load(path))
    assert surgery.report.verdict.value == "passed"  # the algebra holds for what it was taken for
    with pytest.raises(bn.PromiseError, match="does not compute what its graph says"):
        bn.save(surgery, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
