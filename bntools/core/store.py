"""Files that bntools writes: whole or not at all, and always with the plan that made them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bntools.core.atomic import replacing
from bntools.core.exact import copied
from bntools.core.graft import graft_
from bntools.core.plan import Plan
from bntools.core.programfile import PROGRAMS, is_program, write_program
from bntools.core.records import plain
from bntools.core.sniff import Kind, sniff
from bntools.core.source import state_of
from bntools.core.surgery import Surgery
from bntools.core.torchfile import write_torch
from bntools.errors import PlanError, SourceError, UsageError, first_line

KEY = "bntools"
"""The key of the plan: in the header of a safetensors file, and in a checkpoint."""

ENTRY = "bntools.entry"
"""The key, in a checkpoint, of the name of the entry that was changed: there may be several models in it."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A plan with all the tensors of the model that it led to."""

    plan: Plan
    tensors: Mapping[str, Tensor]


def save(surgery: Surgery[Any], path: str | Path, *, force: bool = False) -> Path:
    """Write a changed model to a file, by its ending.

    ``.safetensors`` is an artefact: every tensor, and the plan in the header, for `replay`. ``.pt`` and
    ``.pth`` are the module itself, pickled. ``.pt2`` and ``.onnx`` are a program, checked once more as it
    stands in the file. The file appears whole or not at all, and equal models give equal bytes.

    Args:
        surgery: what a verb returned.
        path: where to.
        force: replace a file that is there.

    Returns:
        the path.

    Raises:
        UsageError: if the file is there already, or the ending is not one for this kind of model.
        SourceError: if it cannot be written.
        CaptureError, PromiseError: for a program, if it cannot be exported, or the file computes something
            else.
    """
    path = Path(path)
    if not isinstance(surgery, Surgery):
        raise UsageError(
            f"{path}: expected what a verb returns, got a {type(surgery).__name__}",
            todo="give the Surgery; a model alone is written by torch.save",
        )
    check_ending(surgery.model, path)
    if path.suffix in PROGRAMS:
        write_program(surgery, path, force=force)
    elif path.suffix == ".safetensors":
        with replacing(path, force=force) as part:
            write_artefact(surgery.model, surgery.plan, part, name=path.name)
    else:
        write_torch(surgery.model, path, force=force)
    return path


def check_ending(model: nn.Module, path: Path) -> None:
    """Refuse a name whose ending is not one for this kind of model.

    Raises:
        UsageError: if it is not.
    """
    program = is_program(model)
    endings = PROGRAMS if program else (".pt", ".pth", ".safetensors")
    if path.suffix in endings:
        return
    if path.suffix in PROGRAMS:
        raise UsageError(f"{path}: the model is no program", todo="fold it with level='program'")
    if program and path.suffix in (".pt", ".pth", ".safetensors"):
        raise UsageError(f"{path}: the model is a captured program", todo="write to .pt2 or .onnx")
    raise UsageError(f"{path}: no known ending", todo=f"write to {', '.join(endings[:-1])} or {endings[-1]}")


def checkpoint(
    surgery: Surgery[Any], others: Mapping[str, Any], entry: str, *, whole: bool
) -> dict[str, Any]:
    """A checkpoint with the changed model or state dict, its plan, and the entries that it had besides."""
    changed = surgery.model if whole else dict(surgery.model.state_dict())
    return {**others, entry: changed, KEY: surgery.plan.to_json(), ENTRY: entry}


def write_artefact(model: nn.Module, plan: Plan, path: Path, *, name: str) -> None:
    """Write all tensors of *model* with *plan* in the header; tied tensors stand there once.

    Args:
        model, plan: what to write.
        path: the file, for now.
        name: what it is to be called, for errors.
    """
    saved = model.state_dict(keep_vars=True)
    odd = [key for key, value in saved.items() if not isinstance(value, Tensor)]
    if odd or plan.keys - saved.keys():
        why = f"{odd[0]} is no tensor" if odd else f"{min(plan.keys - saved.keys())} is not in the state dict"
        raise UsageError(f"{name}: {why}", todo="write to .pt")
    first: dict[int, str] = {}
    tied = {key: other for key, t in saved.items() if (other := first.setdefault(id(t), key)) != key}
    header = json.dumps({"plan": json.loads(plan.to_json()), "tied": tied}, sort_keys=True)
    try:
        stored = {key: t.detach().cpu().contiguous() for key, t in saved.items() if key not in tied}
        shared = Counter(t.untyped_storage().data_ptr() for t in stored.values())
        own = {k: t.clone() if shared[t.untyped_storage().data_ptr()] > 1 else t for k, t in stored.items()}
        save_file(own, path, metadata={KEY: header})
    except safetensors.SafetensorError as error:  # among them a full disk
        raise SourceError(f"{name}: cannot be written: {first_line(error)}") from error
    except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{name}: the weights are of a kind that safetensors does not hold: {first_line(error)}",
            todo="write to .pt",
        ) from error


def read(path: Path, *, trust: Sequence[str] = (), unsafe: bool = False) -> Artefact:
    """Read the plan and the tensors of a file that bntools wrote, of either kind; nothing in it is run.

    Args:
        path: the file.
        trust, unsafe: as in `bntools.load`, for a checkpoint with other entries that need them.

    Raises:
        UnsafeError: if another entry of a checkpoint would run code.
        SourceError: if the file cannot be read.
        PlanError: if it carries no plan.
    """
    if sniff(path).kind in (Kind.ARTEFACT, Kind.SAFETENSORS):
        return _read_safetensors(path)
    state = state_of(path, trust=trust, unsafe=unsafe)
    plan, entry = ((state.checkpoint or {}).get(key) for key in (KEY, ENTRY))
    if not isinstance(plan, str):
        raise PlanError(f"{path}: {state.what}, without a plan", todo="give a file that bntools wrote")
    if isinstance(entry, str) and entry != state.entry:
        state = state_of(path, entry, trust=trust, unsafe=unsafe)
    # A prefix that a wrapper left was stripped before the fold: what is here is the model's own.
    return Artefact(Plan.from_json(plan), {state.prefix + key: t for key, t in state.tensors.items()})


def _read_safetensors(path: Path) -> Artefact:
    """Read an artefact; nothing in it is run.

    Raises:
        SourceError: if the file cannot be read.
        PlanError: if it carries no plan.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "null"))
            # Cloned: a view of the file changes with it, and its odd address changes how products round.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118, no dict
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise SourceError(f"{path}: not a readable safetensors file: {first_line(error)}") from None
    if not isinstance(header, dict):
        raise PlanError(f"{path}: a safetensors file without a plan", todo="give one that bntools wrote")
    tied = header.get("tied")
    if header.keys() != {"plan", "tied"} or not isinstance(tied, dict):
        raise PlanError(f"{path}: its plan is not one that bntools wrote", todo="fold the model again")
    for key, name in tied.items():
        if key in tensors or not isinstance(name, str) or name not in tensors or name in tied:
            raise PlanError(
                f"{path}: {plain(key)} is tied to a tensor that is not there",
                todo="fold the model again",
            )
    both = {**tensors, **{key: tensors[name] for key, name in tied.items()}}
    return Artefact(Plan.from_json(json.dumps(header["plan"])), both)


def replay(
    path: str | Path,
    model: nn.Module,
    *,
    inplace: bool = False,
    trust: Sequence[str] = (),
    unsafe: bool = False,
) -> nn.Module:
    """Turn a fresh model of the original class into the changed one that a file holds.

    Args:
        path: a ``.safetensors`` artefact from `save`, or a checkpoint that the command line wrote.
        model: an instance of the class that was changed, built with the same arguments; its weights do not
            matter. Left alone unless *inplace*.
        inplace: change *model* itself.
        trust, unsafe: as in `bntools.load`, for a checkpoint whose other entries need them.

    Returns:
        the changed model; its tensors equal those of the original surgery bit for bit.

    Raises:
        SourceError: if the file cannot be read.
        PlanError: if its plan does not fit the model, which is then untouched.
    """
    with torch.inference_mode(False):  # what is made in that mode can never be trained
        return apply(read(Path(path), trust=trust, unsafe=unsafe), model, inplace=inplace)


def apply(artefact: Artefact, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """`replay` for an artefact that is already in memory."""
    target = model if inplace else copied(model)
    needed = artefact.plan.keys
    undo = graft_(target, artefact.plan, {k: t for k, t in artefact.tensors.items() if k in needed})
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        there = _fit(target, artefact)
        if inplace:
            kept += [(t, t.detach().clone()) for key, t in there.items() if key not in needed]
        try:
            target.load_state_dict(dict(artefact.tensors), strict=True)
        except RuntimeError as error:  # a module that loads its own part in its own way
            raise PlanError(f"plan: cannot be loaded: {first_line(error)}") from error
        _loaded(target, artefact)
    except BaseException:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        undo()
        raise
    return target


def _fit(model: nn.Module, artefact: Artefact) -> dict[str, Tensor]:
    """Check every tensor before any is loaded: loading stops half-way and casts in silence."""
    saved = model.state_dict(keep_vars=True)
    odd = [key for key, value in saved.items() if not isinstance(value, Tensor)]
    if odd:
        raise PlanError(f"plan: {odd[0]} of the model is no tensor, the file has only tensors")
    for key in sorted(saved.keys() ^ artefact.tensors.keys()):
        where = "the model" if key in saved else "the file"
        raise PlanError(
            f"plan: only {where} has {plain(key)}",
            todo="build the model with the arguments of the folded one",
        )
    for key, new in artefact.tensors.items():
        old = saved[key]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise PlanError(
                f"plan: {key} is {list(old.shape)} {old.dtype} in the model, "
                f"{list(new.shape)} {new.dtype} in the file",
                todo="build the model with the arguments and the dtype of the folded one",
            )
    return saved


def _loaded(model: nn.Module, artefact: Artefact) -> None:
    """Check that the model holds what the file holds: two names of one tensor there may be two here."""
    for key, value in model.state_dict(keep_vars=True).items():
        if not _same_bits(value, artefact.tensors[key]):
            raise PlanError(
                f"plan: {key} cannot be as it is in the file, the model ties it to another tensor",
                todo="build the model with the arguments of the folded one",
            )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    one, two = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, two)
