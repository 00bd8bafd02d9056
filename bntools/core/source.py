"""How a file, or the name of an architecture, becomes a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bntools.core.harmless import trusted_package
from bntools.core.pickles import open_pickle
from bntools.core.sniff import Kind, Sniffed, sniff
from bntools.core.specs import build, is_spec
from bntools.core.states import Picked, ensure_sane, fill, pick, unwrap
from bntools.errors import SourceError, UsageError

_REBUILD = "rebuild the model in Python and pass it as --arch package.module:factory with its state dict"
_NOT_TODAY: Mapping[Kind, tuple[str, str]] = {
    Kind.ARTEFACT: (
        "holds a changed model's weights and its plan",
        "apply it to a fresh model with `bntools replay`",
    ),
    Kind.PROGRAM: ("torch opens its program by running pickles", _REBUILD),
    Kind.TORCHSCRIPT: ("its layers are compiled code and cannot be changed", _REBUILD),
    Kind.ONNX: (
        "its graph cannot be changed by this verb",
        "give the PyTorch model that it was exported from",
    ),
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
) -> Loaded:
    """Open a model file, or build a model by its name; arguments and errors as in `bntools.load`.

    Example:
        >>> load("torch.nn:Linear", arch_kwargs={"in_features": 2, "out_features": 1}).what
        'torch.nn:Linear with random weights'
    """
    found = look(
        path_or_spec, arch=arch, arch_kwargs=arch_kwargs, key=key, ema=ema, trust=trust, unsafe=unsafe
    )
    if isinstance(found, State):
        raise SourceError(
            f"{found.path}: {found.what}, which says nothing of the model it belongs to",
            todo="name its architecture: --arch timm:NAME, torchvision:NAME or package.module:factory",
        )
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
) -> Loaded | State:
    """`load`, but weights without an architecture are returned as they are, which is enough to look at."""
    path = _file(path_or_spec)
    if path is None:
        return _named(str(path_or_spec), arch, arch_kwargs, key, ema)
    if arch_kwargs and arch is None:
        raise UsageError("--arch-kwargs needs --arch", todo="name the architecture")
    sniffed = sniff(path)
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
        _stripped(prefix),
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
    what = ", ".join(filter(None, [_an(sniffed.kind, picked), _stripped(prefix), picked.note]))
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
    if arch is not None or key is not None or ema:
        flag = "--arch" if arch is not None else "--ema" if ema else "--key"
        raise UsageError(
            f"{spec} builds a model, and {flag} is about a file", todo=f"give a file, or leave out {flag}"
        )
    model = build(spec, arch_kwargs)
    return Loaded(model=model, kind=Kind.SPEC, what=f"{spec} with random weights", spec=spec)


def _opened(
    sniffed: Sniffed, key: str | None, ema: bool, trust: Sequence[str], unsafe: bool
) -> tuple[Picked, tuple[str, ...]]:
    if sniffed.kind in _NOT_TODAY:
        why, todo = _NOT_TODAY[sniffed.kind]
        raise SourceError(f"{sniffed.path}: {sniffed.detail}: {why}", todo=todo)
    where, size = str(sniffed.path), sniffed.path.stat().st_size
    if sniffed.kind is Kind.SAFETENSORS:
        return pick(where, _safetensors(sniffed), key, ema), ()
    opened = open_pickle(sniffed, trust=trust, unsafe=unsafe)
    picked = pick(where, opened.value, key, ema)
    value = picked.value
    ensure_sane(where, _state_of_module(where, value) if isinstance(value, nn.Module) else value, size)
    return picked, opened.classes


def _safetensors(sniffed: Sniffed) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load

        # Not load_file: on some systems its tensors are views of the open file, which a save replaces.
        tensors = load(sniffed.path.read_bytes())
    except ImportError as error:
        raise SourceError(f"{sniffed.path}: needs safetensors", todo="pip install safetensors") from error
    except Exception as error:  # the library raises its own and torch's errors on damaged bytes
        reason = (str(error).splitlines() or [""])[0]
        raise SourceError(
            f"{sniffed.path}: a damaged safetensors file ({reason})", todo="download it again"
        ) from error
    # The library hands them out in another order each time.
    return {key: tensors[key] for key in sorted(tensors, key=_place)}


def _place(key: str) -> list[str]:
    """Layer 10 comes after layer 9."""
    return [part.zfill(9) if part.isdigit() else part for part in key.split(".")]


def _state_of_module(where: str, model: nn.Module) -> dict[str, Any]:
    """Its state, which also proves that the module is whole: a damaged pickle may leave out anything."""
    try:
        for module in model.modules():
            hash((module.training, len(module._parameters), len(module._buffers), len(module._forward_hooks)))
        return dict(model.state_dict())
    except Exception as error:
        raise SourceError(
            f"{where}: a pickled module with parts missing ({type(error).__name__}: {error})",
            todo="it may be damaged, or saved by another release: save its state dict there and pass --arch",
        ) from error


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
    }
    return names[kind] + (f", entry {picked.entry!r} of a checkpoint" if picked.entry is not None else "")


def _stripped(prefix: str) -> str:
    return f"prefix {prefix!r} stripped" if prefix else ""
