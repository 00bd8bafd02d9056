"""ONNX's own cases for each operator that is put in torch's words: the same values, shapes and types."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import fx

from bntools.core import onnxnode
from bntools.core.onnxhosts import MAKERS
from bntools.core.onnxmodel import load_onnx
from bntools.core.onnxops import RULES
from bntools.core.onnxshapes import DTYPES

MOST = 3
"""The nodes of a case: longer ones are functions written out."""


def cases() -> Iterator[tuple[Any, list[np.ndarray | None], list[np.ndarray]]]:
    """A model, what goes in and what comes out, for every case of our operators that numpy can hold."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        graph = case.model.graph
        values = [*graph.input, *graph.output]
        tensors = all(
            v.type.HasField("tensor_type") and v.type.tensor_type.elem_type in DTYPES for v in values
        )
        ops = {node.op_type for node in graph.node}
        random = any(op.startswith(("Random", "Bernoulli")) for op in ops)
        old = case.model.opset_import[0].version < 7
        if not tensors or random or old or len(graph.node) > MOST or not ops & (RULES.keys() | MAKERS.keys()):
            continue
        for inputs, outputs in case.data_sets:
            if all(x is None or isinstance(x, np.ndarray | np.generic) for x in (*inputs, *outputs)):
                yield case.model, inputs, outputs


def test_onnx_own_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: Counter[str] = Counter()
    here = ""

    def counted(*args: Any) -> Any:
        left[here] += 1
        return run(*args)

    run = onnxnode.run_packed
    monkeypatch.setattr(onnxnode, "run_packed", counted)
    wrong, ran = [], 0
    for model, inputs, outputs in cases():
        here = model.graph.node[0].op_type
        path = tmp_path / "case.onnx"
        onnx.save(model, path)
        program = load_onnx(path)
        assert isinstance(program, fx.GraphModule)
        with torch.no_grad():
            made = program(*(torch.from_numpy(np.array(x)) for x in inputs if x is not None))
        ran += 1
        for one, two in zip([made] if isinstance(made, torch.Tensor) else made, outputs, strict=False):
            wrong += [model.graph.name] if not same(one.numpy(), np.asarray(two)) else []
    assert not wrong
    assert ran > 380
    # The reference runs what has too many dialects, and what numpy can say as well.
    assert sum(left.values()) < ran / 3
    assert not {
        "BatchNormalization",
        "MatMul",
        "Reshape",
        "Transpose",
        "Concat",
        "Add",
        "Relu",
    } & left.keys() - {"BatchNormalization"}


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Of one shape and type, and equal but for rounding; some of what is expected was rounded itself."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.dtype.kind != "f":
        return bool((one == two).all())
    half = one.dtype == np.float16
    return bool(
        np.allclose(one, two, rtol=3e-3 if half else 3e-4, atol=1e-2 if half else 1e-5, equal_nan=True)
    )
