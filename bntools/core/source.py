"""How a file, or the name of an architecture, becomes a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bntools.core.harmless import trusted_package
from bntools.core.onnxmodel import load_onnx, origin_of
from bntools.core.payloads import weights_of
from bntools.core.pickles import open_pickle
from bntools.core.pt2 import read_program_file
from bntools.core.revive import revive
from bntools.core.sniff import Kind, Sniffed, sniff
from bntools.core.specs import build, is_spec
from bntools.core.states import Picked, ensure_sane, fill, pick, unwrap
from bntools.core.tensorfile import read_safetensors, state_of_module
from bntools.errors import SourceError, UsageError

_NO_LAYERS = (
    "whose graph this verb cannot change",
    "fold, export, inspect or verify it, or load its weights into an architecture with --arch",
)
_NO_MODEL = (
    "which says nothing of the model it belongs to",
    "name its architecture: --arch timm:NAME, torchvision:NAME or package.module:factory",
)
_NOT_OPENED: Mapping[Kind, tuple[str, str]] = {
    Kind.ARTEFACT: (
        "holds a changed model's weights and its plan",
        "apply it to a fresh model with `bntools replay`",
    ),
    Kind.TORCHSCRIPT: (
        "its layers are compiled code and cannot be changed",
        "rebuild the model in Python and pass it as --arch package.module:factory with its state dict",
    ),
    Kind.ONNX: ("its graph cannot be changed by this verb", "give the PyTorch model that it was made of"),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and where it came from.

    Args:
        model: a pickled module in the mode that it was saved in, a built one in eval mode.
        kind: what the file is; `Kind.SPEC` for a name without a file.
        what: a phrase for the report: what was loaded, and how.
        path: the file, if there is one.
        spec: the architecture that was built, if one was.
        entry: the key of the checkpoint that held it.
        checkpoint: the checkpoint's other entries, to be carried over when saving.
        prefix: what a wrapper had put before each key.
        apart: entries of the state dict that belong to the wrapper and not to the model.
        pickled: whether the file holds the module itself, and not its weights only.
        unsafe: whether code from the file was allowed to run.
    """

    model: nn.Module
    kind: Kind
    what: str
    path: Path | None = None
    spec: str | None = None
    entry: str | None = None
    checkpoint: dict[str, Any] | None = field(default=None, repr=False)
    prefix: str = ""
    apart: dict[str, Any] = field(default_factory=dict, repr=False)
    pickled: bool = False
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The tensors of a file without the model that they belong to; fields as in `Loaded`."""

    tensors: dict[str, Tensor] = field(repr=False)
    kind: Kind
    what: str
    path: Path
    entry: str | None = None
    checkpoint: dict[str, Any] | None = field(default=None, repr=False)
    prefix: str = ""
    unsafe: bool = False


def load(
    path_or_spec: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    key: str | None = None,
    ema: bool = False,
    trust: Sequence[str] = (),
    unsafe: bool = False,
    graphs: bool = False,
) -> Loaded:
    """Open a model file, or build a model by its name; arguments and errors as in `bntools.load`.

    With *graphs* an ONNX file or a ``.pt2`` is opened as well, as a program.

    Example:
        >>> load("torch.nn:Linear", arch_kwargs={"in_features": 2, "out_features": 1}).what
        'torch.nn:Linear with random weights'
    """
    found = look(
        path_or_spec,
        arch=arch,
        arch_kwargs=arch_kwargs,
        key=key,
        ema=ema,
        trust=trust,
        unsafe=unsafe,
        graphs=graphs,
    )
    if isinstance(found, State):
        why, todo = _NO_LAYERS if found.kind is Kind.PROGRAM else _NO_MODEL
        raise SourceError(f"{found.path}: {found.what}, {why}", todo=todo)
    return found


def look(
    path_or_spec: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    key: str | None = None,
    ema: bool = False,
    trust: Sequence[str] = (),
    unsafe: bool = False,
    graphs: bool = False,
) -> Loaded | State:
    """`load`, but weights without an architecture are returned as they are, which is enough to look at."""
    path = _file(path_or_spec)
    if path is None:
        return _named(str(path_or_spec), arch, arch_kwargs, key, ema)
    if arch_kwargs and arch is None:
        raise UsageError("--arch-kwargs needs --arch", todo="name the architecture")
    sniffed = sniff(path)
    # The weights of a program may be loaded into an architecture, like a state dict.
    if graphs and (sniffed.kind is Kind.ONNX or (sniffed.kind is Kind.PROGRAM and arch is None)):
        return _graph(sniffed, arch, key, ema, unsafe)
    picked, classes = _opened(sniffed, key, ema, trust, unsafe)
    if isinstance(picked.value, nn.Module):
        return _whole(sniffed, picked, picked.value, classes, arch, unsafe)
    if arch is None:
        return _bare(sniffed, picked, picked.value, unsafe)
    model = build(arch, arch_kwargs)
    prefix, apart = unwrap(picked.value, set(model.state_dict()))
    types = fill(str(path), model, picked.value)
    parts = [
        _an(sniffed.kind, picked),
        prefix and f"prefix {prefix!r} stripped",
        f"into {arch}",
        types and f"in {types}",
        picked.note,
    ]
    return Loaded(
        model=model,
        kind=sniffed.kind,
        what=", ".join(filter(None, parts)),
        path=path,
        spec=arch,
        entry=picked.entry,
        checkpoint=picked.others,
        prefix=prefix,
        apart=apart,
        unsafe=unsafe,
    )


def _graph(sniffed: Sniffed, arch: str | None, key: str | None, ema: bool, unsafe: bool) -> Loaded:
    if flag := _about_weights(arch, key, ema):
        raise UsageError(f"{sniffed.path}: {sniffed.detail} needs no {flag}", todo=f"leave out {flag}")
    if sniffed.kind is Kind.PROGRAM:
        held = revive(sniffed.path, unsafe=unsafe)
        return Loaded(held.module, sniffed.kind, held.what, sniffed.path, unsafe=unsafe)
    model = load_onnx(sniffed.path)
    origin = origin_of(model)
    assert origin is not None
    what = f"an ONNX model of opset {origin.source.opset}"
    return Loaded(model=model, kind=Kind.ONNX, what=what, path=sniffed.path)


def state_of(
    path: str | Path,
    key: str | None = None,
    ema: bool = False,
    *,
    trust: Sequence[str] = (),
    unsafe: bool = False,
) -> State:
    """Open the weights in a file without an architecture, which is enough to look at them.

    Raises:
        SourceError: there is no such file, or it holds no weights.
        UnsafeError: opening it would run code or fill the memory.
    """
    sniffed = sniff(path)
    picked, _ = _opened(sniffed, key, ema, trust, unsafe)
    state = picked.value.state_dict() if isinstance(picked.value, nn.Module) else picked.value
    return _bare(sniffed, picked, state, unsafe)


def _bare(sniffed: Sniffed, picked: Picked, state: dict[str, Any], unsafe: bool) -> State:
    prefix, _ = unwrap(state)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    stripped = prefix and f"prefix {prefix!r} stripped"
    what = ", ".join(filter(None, [_an(sniffed.kind, picked), stripped, picked.note]))
    return State(tensors, sniffed.kind, what, sniffed.path, picked.entry, picked.others, prefix, unsafe)


def _file(path_or_spec: str | Path) -> Path | None:
    """The path, or None where the text is a name that builds a model; an existing file goes first."""
    path = Path(path_or_spec)
    try:
        found = path.exists()
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{ascii(str(path_or_spec))[:200]}: no path and no architecture", todo="check it"
        ) from error
    if found or isinstance(path_or_spec, Path) or not is_spec(path_or_spec):
        return path
    return None


def _named(
    spec: str, arch: str | None, arch_kwargs: Mapping[str, Any] | None, key: str | None, ema: bool
) -> Loaded:
    if flag := _about_weights(arch, key, ema):
        raise UsageError(
            f"{spec} builds a model, and {flag} is about a file", todo=f"give a file, or leave out {flag}"
        )
    model = build(spec, arch_kwargs)
    return Loaded(model=model, kind=Kind.SPEC, what=f"{spec} with random weights", spec=spec)


def _about_weights(arch: str | None, key: str | None, ema: bool) -> str:
    """The option that was given and is about weights in a file; empty if none was."""
    return "--arch" if arch is not None else "--ema" if ema else "--key" if key is not None else ""


def _opened(
    sniffed: Sniffed, key: str | None, ema: bool, trust: Sequence[str], unsafe: bool
) -> tuple[Picked, tuple[str, ...]]:
    if sniffed.kind in _NOT_OPENED:
        why, todo = _NOT_OPENED[sniffed.kind]
        raise SourceError(f"{sniffed.path}: {sniffed.detail}: {why}", todo=todo)
    where, size = str(sniffed.path), sniffed.path.stat().st_size
    if sniffed.kind is Kind.SAFETENSORS:
        return pick(where, read_safetensors(sniffed), key, ema), ()
    if sniffed.kind is Kind.PROGRAM:
        return pick(where, weights_of(read_program_file(sniffed.path)), key, ema), ()
    opened = open_pickle(sniffed, trust=trust, unsafe=unsafe)
    picked = pick(where, opened.value, key, ema)
    value = picked.value
    ensure_sane(where, state_of_module(where, value) if isinstance(value, nn.Module) else value, size)
    return picked, opened.classes


def _whole(
    sniffed: Sniffed,
    picked: Picked,
    model: nn.Module,
    classes: tuple[str, ...],
    arch: str | None,
    unsafe: bool,
) -> Loaded:
    if arch is not None:
        raise UsageError(
            f"{sniffed.path}: holds the whole model, not its weights only", todo="leave out --arch"
        )
    packages = sorted({trusted_package(name) or name.split(".")[0] for name in classes})
    made_of = (
        f"{len(classes)} class{'es' * (len(classes) != 1)} from {' and '.join(packages)}" if classes else ""
    )
    parts = [_an(Kind.MODULE, picked), made_of, "opened with --unsafe" if unsafe else "", picked.note]
    return Loaded(
        model=model,
        kind=sniffed.kind,
        what=", ".join(filter(None, parts)),
        path=sniffed.path,
        entry=picked.entry,
        checkpoint=picked.others,
        pickled=True,
        unsafe=unsafe,
    )


def _an(kind: Kind, picked: Picked) -> str:
    names = {
        Kind.MODULE: "a pickled module",
        Kind.STATE_DICT: "a state dict",
        Kind.SAFETENSORS: "a safetensors file",
        Kind.PROGRAM: "the weights of a torch.export program",
    }
    return names[kind] + (f", entry {picked.entry!r} of a checkpoint" if picked.entry is not None else "")
