"""What a file is, told from its content and never from its name. Standard library only: no torch here."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bntools.core.headers import is_onnx, safetensors_header
from bntools.core.opcodes import Global, Made, Reading, Shape, read_pickles
from bntools.core.zips import Archive, read_directory
from bntools.errors import SourceError

ARTEFACT_KEY = "bntools"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_AGAIN = "download it again"


class Kind(StrEnum):
    """The kinds of model file."""

    MODULE = "pickled module"
    STATE_DICT = "state dict"
    SAFETENSORS = "safetensors"
    ARTEFACT = "bntools artefact"
    PROGRAM = "torch.export program"
    TORCHSCRIPT = "TorchScript archive"
    ONNX = "ONNX model"
    SPEC = "architecture"
    """No file at all: a name that builds a model, such as ``timm:resnet18``."""


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What a file is.

    Args:
        path: the file.
        kind: one of a closed list.
        detail: a phrase for people, such as ``a pickled module (zip, 62 records)``.
        reading: what opening its pickle would do, for the two kinds that torch.save writes.
        legacy: whether it is in the format from before PyTorch 1.6.
    """

    path: Path
    kind: Kind
    detail: str
    reading: Reading | None = field(default=None, repr=False)
    legacy: bool = False


def sniff(path: str | Path) -> Sniffed:
    """Tell what *path* is by reading as little of it as that takes.

    Args:
        path: a file.

    Returns:
        Its kind, if it is one that a model comes in.

    Raises:
        SourceError: it is missing, damaged, or no model; the message says what it is instead.
        UnsafeError: it is a zip that no writer of models makes.

    Example:
        >>> sniff("no-such-file.pt")
        Traceback (most recent call last):
        ...
        bntools.errors.SourceError: no-such-file.pt: there is no such file; check the path
    """
    path = Path(path)
    try:
        return _sniff(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror or error})", todo="check its permissions"
        ) from error


def _sniff(path: Path) -> Sniffed:
    if not path.exists():
        bare = path.parent == Path() and not path.suffix and path.name.isidentifier()
        what = f", or write timm:{path} or torchvision:{path} for an architecture" if bare else ""
        raise SourceError(f"{path}: there is no such file", todo=f"check the path{what}")
    if path.is_dir():
        raise SourceError(f"{path}: a directory, not a model file", todo="name the model file in it")
    if not path.is_file():
        raise SourceError(f"{path}: not a regular file", todo="save the model to a file first")
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise SourceError(
            f"{path}: an empty file, not a model", todo="the save or download failed: do it again"
        )
    if head.startswith(b"PK"):
        return _zip(path)
    if head.startswith(_LEGACY):
        return _legacy(path)
    if (header := safetensors_header(path)) is not None:
        metadata = header.pop("__metadata__", None)
        if isinstance(metadata, dict) and ARTEFACT_KEY in metadata:
            return Sniffed(path, Kind.ARTEFACT, f"a bntools artefact ({len(header)} tensors)")
        return Sniffed(path, Kind.SAFETENSORS, f"a safetensors file ({len(header)} tensors)")
    what, todo = _other(head)
    if not what and is_onnx(path):
        return Sniffed(path, Kind.ONNX, "an ONNX model")
    what = what or ("plain text" if _is_text(head) else "a file of unknown content")
    raise SourceError(
        f"{path}: {what}, not a model", todo=todo or "give a file that torch.save or safetensors wrote"
    )


def _zip(path: Path) -> Sniffed:
    archive = read_directory(path)
    names = archive.records
    count = f"{len(names)} records"
    if "constants.pkl" in names:  # torch.load's own rule
        return Sniffed(path, Kind.TORCHSCRIPT, f"a TorchScript archive (zip, {count})")
    if "data.pkl" in names and archive.root:
        archive.ensure_stored("a torch zip")
        return _pickled(path, io.BytesIO(archive.read("data.pkl")), 1, f"zip, {count}")
    if "archive_format" in names or "serialized_exported_program.json" in {n.rsplit("/")[-1] for n in names}:
        archive.ensure_stored("a torch.export program")
        return Sniffed(path, Kind.PROGRAM, f"a torch.export program (zip, {count})")
    raise SourceError(
        f"{path}: {_zip_of(archive)}, not a model", todo="give a file that torch.save or safetensors wrote"
    )


def _zip_of(archive: Archive) -> str:
    names = archive.records
    if names and all(name.endswith(".npy") for name in names):
        return "a numpy .npz archive"
    if "model.weights.h5" in names:
        return "a Keras archive"
    return "a zip archive that torch.save did not write"


def _legacy(path: Path) -> Sniffed:
    # Magic number, protocol, system, the object and the keys of its storages: five pickles in a row.
    with path.open("rb") as file:
        return _pickled(path, file, 5, "the format from before PyTorch 1.6")


def _pickled(path: Path, stream: io.BytesIO | io.BufferedReader, count: int, container: str) -> Sniffed:
    try:
        reading = read_pickles(stream, count, root=3 if count > 1 else 0)
    except ValueError as error:
        raise SourceError(
            f"{path}: a torch file ({container}) whose pickle is damaged or cut off", todo=_AGAIN
        ) from error
    size = path.stat().st_size
    if count > 1 and reading.elements > size:  # torch would take memory for them before it reads on
        raise SourceError(
            f"{path}: a torch file ({container}) of {size} bytes says it holds {reading.elements} numbers",
            todo=_AGAIN,
        )
    kind = _kind_of(path, reading)
    what = "a pickled module" if kind is Kind.MODULE else "a state dict or checkpoint"
    return Sniffed(path, kind, f"{what} ({container})", reading, legacy=count > 1)


def _kind_of(path: Path, reading: Reading) -> Kind:
    root = reading.root
    by = root.by if isinstance(root, Made) else None
    if root is Shape.DICT or by in (
        Global("collections", "OrderedDict"),
        Global("collections", "defaultdict"),
    ):
        return Kind.STATE_DICT
    if by is not None and by.module == "torch._utils":
        raise SourceError(
            f"{path}: a torch file that holds one tensor, not a model", todo="give the model or its weights"
        )
    if isinstance(root, Made | Global):
        return Kind.MODULE
    what = (
        "a tuple" if isinstance(root, tuple) else root.value if isinstance(root, Shape) else "a plain value"
    )
    raise SourceError(
        f"{path}: a torch file that holds {what}, not a model", todo="save the model or its state dict"
    )


_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "run `git lfs pull`"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"BZh", "a bzip2 archive", "unpack it first"),
    (0, b"\xfd7zXZ\0", "an xz archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (as Keras writes)", "convert it to PyTorch first"),
    (0, b"\x93NUMPY", "a numpy array", "save the model with torch.save"),
    (0, b"GGUF", "a GGUF file", "give the PyTorch weights that it was made from"),
    (4, b"TFL3", "a TFLite model", "give the PyTorch model that it was made from"),
    (0, b"%PDF", "a PDF document", ""),
    (0, b"\x89PNG", "a PNG image", ""),
    (0, b"\xff\xd8\xff", "a JPEG image", ""),
)


def _other(head: bytes) -> tuple[str, str]:
    for offset, magic, what, todo in _MAGIC:
        if head[offset:].startswith(magic):
            return what, todo
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return "an HTML page", "it may be a login or error page of a web site: download the file itself"
    if text.startswith(b"<?xml"):
        return "an XML document", "it may be an error message of a web site: download the file itself"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a plain pickle (as pickle or joblib write)", "save the model with torch.save"
    return "", ""


def _is_text(head: bytes) -> bool:
    # The cut at 1024 bytes may fall into a character.
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return printable and head.decode("utf-8", errors="ignore").encode() in (
        head,
        head[:-1],
        head[:-2],
        head[:-3],
    )
