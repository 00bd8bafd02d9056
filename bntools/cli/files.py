"""Which file a command writes: of the same kind as the one that it read, unless the name asks for another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bntools.cli.facts import INCONCLUSIVE, Failure, Output
from bntools.core.atomic import check_place
from bntools.core.programfile import PROGRAMS, write_program
from bntools.core.sniff import Kind
from bntools.core.store import checkpoint, save
from bntools.core.torchfile import write_torch
from bntools.core.verify import Verdict
from bntools.errors import UsageError

if TYPE_CHECKING:
    from bntools.core.source import Loaded
    from bntools.core.surgery import Surgery

_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_GRAPHS = {Kind.ONNX: (".onnx",), Kind.PROGRAM: PROGRAMS}
"""What holds a graph stays one: the endings for each kind, the usual one first."""


def check_output(found: Loaded, asked: Path | None, word: str, *, force: bool, programs: bool = True) -> Path:
    """The path to write to; an error now rather than after the work."""
    graph, endings = _graph(found), (*_TORCH, ".safetensors", *(PROGRAMS if programs else ()))
    if graph and asked is not None and asked.suffix not in graph:
        raise UsageError(f"{asked}: what was a program stays one", todo=f"name a {' or '.join(graph)}")
    return _checked(asked or _beside(found, word), endings, force)


def _graph(found: Loaded) -> tuple[str, ...]:
    """The endings of what holds a graph and not only weights for an architecture; none for all else."""
    return _GRAPHS.get(found.kind, ()) if found.spec is None else ()


def check_onnx(found: Loaded, asked: Path | None, *, force: bool) -> Path:
    """The path of an ONNX file to write; an error now rather than after the work."""
    return _checked(asked or _beside(found, "x").with_suffix("").with_suffix(".onnx"), (".onnx",), force)


def check_module(artefact: Path, asked: Path | None, *, force: bool) -> Path:
    """The path to write a replayed module to; an error now rather than after the work."""
    stem = artefact.stem.removesuffix(".folded")
    return _checked(asked or artefact.with_name(f"{stem}.replayed.pt"), _TORCH, force)


def _checked(path: Path, endings: tuple[str, ...], force: bool) -> Path:
    try:
        folder = path.is_dir()
    except OSError as error:
        raise UsageError(f"{str(path)[:80]}: {error.strerror}", todo="choose another name") from None
    if folder:
        raise UsageError(f"{path}: a folder", todo="name a file")
    if path.suffix not in endings:
        named = [ending for ending in (".pt", ".safetensors", *PROGRAMS) if ending in endings]
        known = f"a {', '.join(named[:-1])} or {named[-1]}" if len(named) > 1 else f"a {named[0]}"
        raise UsageError(f"{path}: {path.suffix or 'no ending'} is not written today", todo=f"name {known}")
    check_place(path, force)
    return path


def write(
    found: Loaded, surgery: Surgery[Any], path: Path, *, force: bool, certain: bool = False
) -> tuple[Output | None, Failure | None]:
    """Write the changed model: what was written, or why nothing was."""
    made = _write(found, surgery, path, force=force, certain=certain)
    return (None, made) if isinstance(made, Failure) else (made, None)


def _write(
    found: Loaded, surgery: Surgery[Any], path: Path, *, force: bool, certain: bool
) -> Output | Failure:
    """Write the changed model: a module as a module, weights as weights with their plan, programs as such."""
    before = found.path.stat().st_size if found.path else None
    if path.suffix in PROGRAMS:
        check = write_program(surgery, path, force=force, certain=certain)
        if check is not None and certain and check.verdict is not Verdict.PASSED:
            why = f"the file's check is {check.verdict}: {check.why}"
            return Failure(why, "nothing was written", INCONCLUSIVE)
        what = (
            "an ONNX model, with its plan" if path.suffix == ".onnx" else "an exported program, with its plan"
        )
        return Output(str(path), what, path.stat().st_size, before, check)
    whole = found.pickled or found.kind is Kind.SPEC
    if path.suffix == ".safetensors":
        save(surgery, path, force=force)
        left = ", ".join(map(str, found.checkpoint or {}))
        what = f"weights with their plan{f', without the entries {left}' if left else ''}"
    elif whole and found.checkpoint is None:
        write_torch(surgery.model, path, force=force)
        what = "a pickled module"
    else:
        entry, others = found.entry or "state_dict", {**(found.checkpoint or {}), **found.apart}
        write_torch(checkpoint(surgery, others, entry, whole=whole), path, force=force)
        what = f"a checkpoint, entry {entry!r}, with its plan"
    return Output(str(path), what, path.stat().st_size, before)


def write_module(model: nn.Module, path: Path, *, force: bool, before: Path) -> Output:
    """Write a module, whatever it was made from."""
    size = before.stat().st_size
    write_torch(model, path, force=force)
    return Output(str(path), "a pickled module", path.stat().st_size, size)


def _beside(found: Loaded, word: str) -> Path:
    if found.path is None:
        return Path(f"{(found.spec or 'model').rpartition(':')[2]}.{word}.pt")
    suffix = ".safetensors" if found.kind is Kind.SAFETENSORS else found.path.suffix
    if graph := _graph(found):
        suffix = graph[0]
    elif found.kind is not Kind.SAFETENSORS and suffix not in _TORCH:
        suffix = ".pt"  # what a file is, is told by its content: a torch file may have any name
    stem = found.path.stem.removesuffix(".frozen") if word == "unfrozen" else found.path.stem
    return found.path.with_name(f"{stem}.{word}{suffix}")
