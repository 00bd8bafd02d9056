"""Files that bntools writes: whole or not at all, and always with the plan that made them."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bntools.core.capture import first_line
from bntools.core.exact import copied
from bntools.core.graft import graft_
from bntools.core.plan import Plan
from bntools.core.sniff import Kind, sniff
from bntools.core.source import state_of
from bntools.core.surgery import Surgery
from bntools.errors import BntoolsError, PlanError, SourceError, UsageError

KEY = "bntools"
"""The key of the plan: in the header of a safetensors file, and in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A plan with all the tensors of the model that it led to."""

    plan: Plan
    tensors: Mapping[str, Tensor]


def save(surgery: Surgery, path: str | Path, *, force: bool = False) -> Path:
    """Write a changed model to a file, by its ending.

    ``.safetensors`` is an artefact: every tensor, and the plan in the header, for `replay`. ``.pt`` and
    ``.pth`` are the module itself, pickled. The file appears whole or not at all, and equal models give equal
    bytes.

    Args:
        surgery: from `fold`.
        path: where to.
        force: replace a file that is there.

    Returns:
        the path.

    Raises:
        UsageError: if the file is there already, or the ending is unknown.
        SourceError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with replacing(path, force=force) as part:
            write_artefact(surgery.model, surgery.plan, part)
    elif path.suffix in (".pt", ".pth"):
        write_torch(surgery.model, path, force=force)
    else:
        raise UsageError(f"{path}: no known ending", todo="write to .pt, .pth or .safetensors")
    return path


def write_torch(content: Any, path: Path, *, force: bool) -> None:
    """`torch.save`, whole or not at all."""
    with replacing(path, force=force) as part, part.open("wb") as file:
        try:
            torch.save(content, file)  # to a file object: a path would stand in the archive
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError):
                raise
            raise UsageError(
                f"{path}: the model cannot be pickled: {first_line(error)}", todo="write to .safetensors"
            ) from error


def checkpoint(surgery: Surgery, others: Mapping[str, Any], entry: str, *, whole: bool) -> dict[str, Any]:
    """A checkpoint with the changed model or state dict, its plan, and the entries that it had besides."""
    changed = surgery.model if whole else dict(surgery.model.state_dict())
    return {**others, entry: changed, KEY: surgery.plan.to_json()}


def write_artefact(model: nn.Module, plan: Plan, path: Path) -> None:
    """Write all tensors of *model* with *plan* in the header; tied tensors stand there once."""
    saved = model.state_dict(keep_vars=True)
    odd = [key for key, value in saved.items() if not isinstance(value, Tensor)]
    if odd:
        raise UsageError(f"{path.name}: {odd[0]} is no tensor", todo="write to .pt")
    first: dict[int, str] = {}
    tied = {key: name for key, t in saved.items() if (name := first.setdefault(id(t), key)) != key}
    stored = {key: t.detach().cpu().contiguous() for key, t in saved.items() if key not in tied}
    shared = Counter(t.untyped_storage().data_ptr() for t in stored.values())
    stored = {k: t.clone() if shared[t.untyped_storage().data_ptr()] > 1 else t for k, t in stored.items()}
    header = json.dumps({"plan": json.loads(plan.to_json()), "tied": tied}, sort_keys=True)
    save_file(stored, path, metadata={KEY: header})


def read(path: Path) -> Artefact:
    """Read the plan and the tensors of a file that bntools wrote, of either kind; nothing in it is run.

    Raises:
        SourceError: if the file cannot be read.
        PlanError: if it carries no plan.
    """
    if sniff(path).kind in (Kind.ARTEFACT, Kind.SAFETENSORS):
        return _read_safetensors(path)
    state = state_of(path)
    plan = (state.checkpoint or {}).get(KEY)
    if not isinstance(plan, str):
        raise PlanError(f"{path}: {state.what}, without a plan", todo="give a file that bntools wrote")
    return Artefact(Plan.from_json(plan), state.tensors)


def _read_safetensors(path: Path) -> Artefact:
    """Read an artefact; nothing in it is run.

    Raises:
        SourceError: if the file cannot be read.
        PlanError: if it carries no plan.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise SourceError(f"{path}: not a readable safetensors file: {first_line(error)}") from None
    if not isinstance(header, dict):
        raise PlanError(f"{path}: a safetensors file without a plan", todo="give one that bntools wrote")
    for key, name in header.get("tied", {}).items():
        tensors[key] = tensors[name]
    return Artefact(Plan.from_json(json.dumps(header.get("plan"))), tensors)


def replay(path: str | Path, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Turn a fresh model of the original class into the changed one that a file holds.

    Args:
        path: a ``.safetensors`` artefact from `save`, or a checkpoint that the command line wrote.
        model: an instance of the class that was changed, built with the same arguments; its weights do not
            matter. Left alone unless *inplace*.
        inplace: change *model* itself.

    Returns:
        the changed model; its tensors equal those of the original surgery bit for bit.

    Raises:
        SourceError: if the file cannot be read.
        PlanError: if its plan does not fit the model, which is then untouched.
    """
    return apply(read(Path(path)), model, inplace=inplace)


def apply(artefact: Artefact, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """`replay` for an artefact that is already in memory."""
    target = model if inplace else copied(model)
    needed = {k for e in artefact.plan.edits for k in (e.host.weight_key, e.host.bias_key)}
    undo = graft_(target, artefact.plan, {k: t for k, t in artefact.tensors.items() if k in needed})
    try:
        _fit(target, artefact)
        target.load_state_dict(dict(artefact.tensors), strict=True)
    except BaseException:
        undo()
        raise
    return target


def _fit(model: nn.Module, artefact: Artefact) -> None:
    """Check every tensor before any is loaded: loading stops half-way and casts in silence."""
    there = {k: t for k, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for key in sorted(there.keys() ^ artefact.tensors.keys()):
        where = "the model" if key in there else "the file"
        raise PlanError(
            f"plan: only {where} has {key}", todo="build the model with the arguments of the folded one"
        )
    for key, new in artefact.tensors.items():
        old = there[key]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise PlanError(
                f"plan: {key} is {list(old.shape)} {old.dtype} in the model, "
                f"{list(new.shape)} {new.dtype} in the file",
                todo="build the model with the arguments and the dtype of the folded one",
            )


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file that takes the place of *path* when the block ends well, and vanishes if not.

    Raises:
        UsageError: if *path* exists and not *force*.
        SourceError: if it cannot be written.
    """
    part: Path | None = None
    try:
        path = path.resolve()  # the file behind a link is replaced, not the link
        check_free(path, force)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        check_free(path, force)
        part.replace(path)
        part = None
    except BntoolsError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()


def check_free(path: Path, force: bool) -> None:
    """Refuse a folder, and a file that is there already unless *force*."""
    if path.is_dir():
        raise UsageError(f"{path}: a folder", todo="name a file")
    if path.exists() and not force:
        raise UsageError(
            f"{path}: exists", todo="add --force (force=True) to replace it, or name another with -o"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
