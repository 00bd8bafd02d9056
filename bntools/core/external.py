"""An ONNX model on disk: in one file, or with its weights in a second one that lies beside it.

The second one is named after its content, so a file that names it is never beside weights of another: whoever
is killed half-way leaves the old pair or the new one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bntools.core.atomic import replacing_with
from bntools.core.headers import is_onnx
from bntools.errors import SourceError, UnsafeError

LARGE = 3 << 29
"""From 1.5 GiB on the weights lie beside the file: one file of ONNX holds less than 2 GiB."""
_SMALL = 1024
_ALIGNED = 4096


def size_of(proto: Any) -> int:
    """How many bytes a model takes, with its weights; beyond 2 GiB protobuf itself cannot tell."""
    weights = sum(len(tensor.raw_data) for tensor in _tensors(proto.graph))
    if weights < LARGE:
        return int(proto.ByteSize())
    return int(weights + sum(node.ByteSize() for node in proto.graph.node))


def lay_out(proto: Any, folder: Path, name: str, external: bool | None) -> tuple[Path, Path | None]:
    """Write a model into a folder.

    Args:
        proto: loses its weights where they are external.
        folder: an empty one.
        name: of the file.
        external: whether the weights get a file of their own; None for where they are large.

    Returns:
        the file, and that of its weights.
    """
    weights = None
    if external if external is not None else size_of(proto) >= LARGE:
        weights = _write_weights(proto, folder, name)
    path = folder / name
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path, weights


def put_in_place(
    proto: Any, path: Path, external: bool | None, *, force: bool, judge: Callable[[Path], bool]
) -> tuple[Path | None, bool]:
    """Write a model where it cannot be seen, and move it to its place if it is good.

    Args:
        proto: loses its weights where they are external.
        path: where to.
        external: as for `lay_out`.
        force: replace a file that is there, and the weights that it named if bntools gave them their name.
        judge: gets the file with its weights beside it, and says whether it may go; what it raises goes on.

    Returns:
        the path of its weights, None if they are inside; and whether it went.

    Raises:
        UsageError: if the file is there already.
    """
    before, weights, went = weights_before(path), None, True
    try:
        with replacing_with(path, force=force) as folder:
            file, weights = lay_out(proto, folder, path.name, external)
            if not judge(file):
                raise _HeldBack
    except _HeldBack:
        went = False
    else:
        forget_old(path, before, weights)
    return path.with_name(weights.name) if weights else None, went


class _HeldBack(Exception):  # noqa: N818  (it is no error, but the way out of a block that would write)
    pass


def read_proto(path: Path) -> Any:
    """What stands in an ONNX file, without the weights that lie beside it.

    Raises:
        SourceError: if it cannot be read.
    """
    import onnx

    try:
        return onnx.load(path, format="protobuf", load_external_data=False)  # whatever its name ends in
    except Exception as error:  # of protobuf, of the system
        raise SourceError(
            f"{path}: a damaged ONNX file ({type(error).__name__})", todo="export or download it again"
        ) from error


def weights_of(path: Path) -> list[Path]:
    """The files that hold the weights of an ONNX file, each of them beside it.

    Raises:
        UnsafeError: if it names one anywhere else, or something that is no ordinary file.
    """
    proto = read_proto(path)
    found: dict[str, Path] = {}
    for tensor in _anywhere(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                found[entry.value] = _beside(path, entry.value)
    return list(found.values())


def ensure_weights(path: Path) -> list[Path]:
    """`weights_of`, each of them there.

    Raises:
        SourceError: if one is not; other errors as for `weights_of`.
    """
    found = weights_of(path)
    for weights in found:
        if not weights.exists():
            raise SourceError(f"{path}: its weights are not there: {weights.name}", todo="copy both files")
    return found


def forget_old(path: Path, before: list[Path], kept: Path | None) -> None:
    """Remove the weights that a file named before it was replaced, if bntools gave them their name."""
    own = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    for old in before:
        if own.fullmatch(old.name) and (kept is None or old.name != kept.name):
            with suppress(OSError):
                old.unlink()


def weights_before(path: Path) -> list[Path]:
    """`weights_of` for a file that is about to be replaced, and that may be anything."""
    try:
        # A pipe would never end, and what is no ONNX file may be larger than the memory.
        return weights_of(path) if path.is_file() and is_onnx(path) else []
    except Exception:  # no ONNX file, then
        return []


def _write_weights(proto: Any, folder: Path, name: str) -> Path | None:
    import onnx

    large = [
        each for each in _tensors(proto.graph) if each.HasField("raw_data") and len(each.raw_data) >= _SMALL
    ]
    if not large:
        return None
    part, hashed, places = folder / "weights.part", hashlib.sha256(), []
    with part.open("wb") as file:
        for tensor in large:
            gap = -file.tell() % _ALIGNED
            for piece in (bytes(gap), tensor.raw_data):
                file.write(piece)
                hashed.update(piece)
            places.append((file.tell() - len(tensor.raw_data), len(tensor.raw_data)))
    weights = part.rename(folder / f"{name}.{hashed.hexdigest()[:12]}.data")
    for tensor, (offset, length) in zip(large, places, strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", offset), ("length", length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    return weights


def _tensors(graph: Any) -> list[Any]:
    """Every tensor that a graph holds, also inside its nodes."""
    found = [*graph.initializer]
    for sparse in graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    return found + _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for attribute in (each for node in nodes for each in node.attribute):
        found += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            found += [sparse.values, sparse.indices]
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            found += _tensors(inner)
    return found


def _anywhere(proto: Any) -> list[Any]:
    """Every tensor of a file, also in its functions and in what is for training."""
    training = [graph for part in proto.training_info for graph in (part.initialization, part.algorithm)]
    nodes = [node for function in proto.functions for node in function.node]
    return [each for graph in (proto.graph, *training) for each in _tensors(graph)] + _of_nodes(nodes)


def _beside(path: Path, location: str | bytes) -> Path:
    try:
        if isinstance(location, str) and _is_name(location) and not (path.parent / location).is_symlink():
            return _ordinary(path, path.parent / location)
    except OSError as error:
        raise SourceError(
            f"{path}: its weights cannot be looked for: {error.strerror}", todo="export it again"
        ) from error
    raise UnsafeError(
        f"{path}: its weights are said to lie at {ascii(location)[:80]}, which is not beside it",
        todo="put both files into one folder and export again",
    )


def _is_name(location: str) -> bool:
    """Whether it is the name of a file, in any system."""
    return location not in ("", ".", "..") and not set(location) & {"/", "\\", "\0"}


def _ordinary(path: Path, weights: Path) -> Path:
    if weights.exists() and (not weights.is_file() or weights.stat().st_nlink > 1):
        raise UnsafeError(f"{path}: {weights.name} is no ordinary file of its own", todo="copy it")
    return weights
