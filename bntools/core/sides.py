"""What can be held against each other: a torch model, or a file that ONNX Runtime runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bntools.core.child import Runtime, Session
from bntools.core.exact import copied, exact_copy
from bntools.core.example import Example
from bntools.core.external import ensure_weights, read_proto
from bntools.core.observe import observe
from bntools.errors import CaptureError

Outputs = Sequence[Tensor]

_TYPES = {
    "float": np.float32,
    "float16": np.float16,
    "double": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


class ModuleSide:
    """A torch model, in its own type and in float64.

    Args:
        model: left alone.
        program: that it was made of, if it is one of ``torch.export``.
    """

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram | None = None) -> None:
        self.model, self.program = model, program
        self.what = "a module" if program is None else "an exported program"
        self.dtype = _type_of(t.dtype for t in (*model.parameters(), *model.buffers()))
        self._exact: nn.Module | None = None
        self._narrow: dict[torch.dtype, nn.Module] = {}

    def exact(self, example: Example) -> Outputs:
        """What it computes in float64."""
        if self._exact is None:
            self._exact = exact_copy(self.model)
        return observe(self._exact, example).outputs

    def own(self, example: Example, dtype: torch.dtype | None = None) -> Outputs:
        """What it computes in its own type, or in a narrower one that something else has."""
        if dtype is None or dtype == self.dtype:
            return observe(self.model, example, double=False).outputs
        if dtype not in self._narrow:
            self._narrow[dtype] = copied(self.model).to(dtype)
        return observe(self._narrow[dtype], in_type(example, dtype), double=False).outputs

    def narrowed(self, dtype: torch.dtype, model: nn.Module) -> None:
        """Let *model* be what it is in that type."""
        self._narrow[dtype] = model


class FileSide:
    """An ONNX file, run with the runtime's optimisations off and on.

    Args:
        path: the file; its weights must lie beside it.
        runtime: where it runs.
    """

    what = "an ONNX file"

    def __init__(self, path: Path, runtime: Runtime) -> None:
        self.path, self.runtime = path, runtime
        ensure_weights(path)
        self.proto = read_proto(path)
        given = {each.name for each in self.proto.graph.initializer}
        self.inputs = [each for each in self.proto.graph.input if each.name not in given]
        self.dtype = self._dtype()
        self._sessions: dict[bool, Session] = {}

    def _dtype(self) -> torch.dtype:
        """That of most of its weights, which says how finely it computes."""
        import onnx

        names = {
            onnx.TensorProto.FLOAT: torch.float32,
            onnx.TensorProto.FLOAT16: torch.float16,
            onnx.TensorProto.BFLOAT16: torch.bfloat16,
            onnx.TensorProto.DOUBLE: torch.float64,
        }
        counted: Counter[torch.dtype] = Counter()
        for tensor in self.proto.graph.initializer:
            if tensor.data_type in names:
                counted[names[tensor.data_type]] += max(0, math.prod(tensor.dims)) + 1
        for value in (*self.inputs, *self.proto.graph.output):
            if not counted and value.type.tensor_type.elem_type in names:
                counted[names[value.type.tensor_type.elem_type]] += 1
        return counted.most_common(1)[0][0] if counted else torch.float32

    def session(self, *, optimise: bool) -> Session:
        """The loaded file; errors of `bntools.core.child` where it does not load."""
        if optimise not in self._sessions:
            self._sessions[optimise] = self.runtime.open(self.path, optimise=optimise)
        return self._sessions[optimise]

    def run(self, example: Example, *, optimise: bool) -> Outputs:
        """What it computes."""
        session = self.session(optimise=optimise)
        return [torch.from_numpy(out) for out in self.runtime.run(session, self.feeds(example))]

    def takes(self, example: Example) -> bool:
        """Whether the file is made for shapes like these."""
        return all(
            not size or size == there
            for shape, array in zip(self.shapes, self.feeds(example).values(), strict=True)
            for size, there in zip(shape, array.shape, strict=False)
        )

    @property
    def shapes(self) -> list[list[int]]:
        """The sizes of each input, 0 for an open one; one below 0 is open too, as the runtime sees it."""
        shapes = [each.type.tensor_type.shape.dim for each in self.inputs]
        return [[max(0, dim.dim_value) for dim in dims] for dims in shapes]

    @property
    def input_types(self) -> list[torch.dtype]:
        """The type of each input, float32 where torch and numpy share none."""
        kinds = [self._kind(each) for each in self.inputs]
        return [torch.from_numpy(np.zeros(0, kind)).dtype if kind else torch.float32 for kind in kinds]

    def feeds(self, example: Example) -> dict[str, np.ndarray]:
        """The arrays of a call by the names of the file's inputs: by name where those agree, else in order.

        Raises:
            CaptureError: if the call has more or fewer tensors.
        """
        names = [each.name for each in self.inputs]
        tensors = example.tensors
        keyed = {k: v for k, v in example.kwargs.items() if isinstance(v, Tensor)}
        if not example.args and keyed.keys() == set(names):
            tensors = [keyed[name] for name in names]
        if len(tensors) != len(names):
            raise CaptureError(
                f"{self.path.name} takes {len(names)} tensors ({', '.join(names)}), there are {len(tensors)}",
                todo="give as many with --input or --inputs",
            )
        arrays = {}
        for value, tensor in zip(self.inputs, tensors, strict=True):
            kind = self._kind(value)
            array = tensor.detach().cpu()
            array = array.float() if array.dtype is torch.bfloat16 else array
            plain = array.numpy()
            floating = kind is not None and np.dtype(kind).kind == "f" and plain.dtype.kind == "f"
            arrays[value.name] = plain.astype(kind) if floating else plain
        return arrays

    @staticmethod
    def _kind(value: Any) -> Any:
        import onnx

        kinds, number = onnx.TensorProto.DataType, value.type.tensor_type.elem_type
        return _TYPES.get(kinds.Name(number).lower()) if number in kinds.values() else None

    def stand_in(self) -> nn.Module:
        """A module that takes what the file takes, to read or to guess inputs for."""
        return StandIn(self.dtype if self.dtype is not torch.bfloat16 else torch.float32)


Side = ModuleSide | FileSide


class StandIn(nn.Module):
    """Takes anything, computes nothing: what inputs are read or guessed for where there is no module."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros((), dtype=dtype))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> None:
        """Nothing is computed."""


def in_type(example: Example, dtype: torch.dtype) -> Example:
    """A call with its floating tensors in that type."""
    return example.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _type_of(dtypes: Any) -> torch.dtype:
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)
