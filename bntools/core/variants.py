"""Changed copies of an ONNX file, for as long as they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bntools.core.external import size_of
from bntools.errors import SourceError, first_line

_LARGE = 1 << 30


@contextmanager
def variant(path: Path, change: Callable[[Any], None]) -> Iterator[Path]:
    """A copy of a file with something changed; it goes with the block.

    Args:
        path: an ONNX file, with its weights beside it.
        change: done to its model.

    Raises:
        SourceError: if the file cannot be read, changed or copied.
    """
    import onnx

    try:
        proto = onnx.load(path, format="protobuf")
        change(proto)
    except Exception as error:  # of protobuf, of weights that are cut off, or are no numbers
        raise SourceError(f"{path}: cannot be read whole: {first_line(error)}") from error
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bntools-"))
            copy = Path(folder) / "copy.onnx"
            large = size_of(proto) >= _LARGE
            onnx.save(proto, copy, save_as_external_data=large, location="copy.data" if large else None)
        except OSError as error:
            raise SourceError(
                f"{path}: a changed copy of it cannot be written: {error.strerror or error}",
                todo="make room where temporary files go, or set TMPDIR",
            ) from error
        yield copy


def jitter_(proto: Any) -> None:
    """Move every floating weight to a neighbour: how far rounding carries, where nothing is wider."""
    import onnx

    draw = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype in (np.float16, np.float32, np.float64):
            away = np.where(draw.random(values.shape) < 0.5, -np.inf, np.inf).astype(values.dtype)
            moved = np.where(values == 0, values, np.nextafter(values, away)).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))


def showing(names: Sequence[str], count: int | None = None) -> Callable[[Any], None]:
    """Return these values and nothing else, of the first *count* nodes only.

    Args:
        names: of values in the graph.
        count: of nodes to keep; all if None.
    """
    import onnx

    def change(proto: Any) -> None:
        graph = proto.graph
        if count is not None:
            del graph.node[count:]
        made = {name for node in graph.node for name in node.output}
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in made)

    return change
