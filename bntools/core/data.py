"""Calibration data as the command line names it: a file of arrays or tensors, or code that makes batches."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bntools.core.capture import first_line
from bntools.core.example import Example
from bntools.core.inputs import argument_names, read_arrays
from bntools.core.specs import call_spec, is_spec
from bntools.errors import SourceError

_ARRAYS = (".npy", ".npz")
_TENSORS = (".pt", ".pth", ".safetensors")
_DAMAGED = OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError


def open_data(name: str, model: nn.Module, batch_size: int) -> Iterable[Any]:
    """Batches from what the command line names.

    A file holds one array or several with one row for each sample. Those whose names are arguments of the
    model's forward go there; if none is, the first is the input, and others, labels say, are left out.

    Args:
        name: a ``.npy``, ``.npz``, ``.safetensors`` or tensor ``.pt`` file, or ``package.module:factory``,
            which returns an iterable of batches.
        model: that will be run on them.
        batch_size: how many samples of a file make a batch.

    Raises:
        SourceError: if it is not there, cannot be read, or holds something else.
    """
    path = Path(name)
    if is_spec(name) and not path.exists():
        made = call_spec(name)
        if not hasattr(made, "__iter__"):
            kind = type(made).__name__
            raise SourceError(f"{name}: gives a {kind}, no batches", todo="return a DataLoader or a list")
        batches: Iterable[Any] = made
        return batches
    if path.suffix not in (*_ARRAYS, *_TENSORS):
        what = "a folder" if path.is_dir() else f"{path.suffix or 'no ending'} is not read"
        known = ", ".join((*_ARRAYS, *_TENSORS))
        raise SourceError(f"{name}: {what}", todo=f"give a {known} file, or package.module:factory")
    arrays = read_arrays(path, "--data") if path.suffix in _ARRAYS else _tensors(path)
    return list(_cut(path, _inputs(arrays, model), batch_size))


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise SourceError(f"{path}: there is no such file", todo="check the path given to --data")
    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        what = f"{path}: no file of plain tensors: {first_line(error)}"
        raise SourceError(what, todo="write it with torch.save(tensor, path)") from error
    if isinstance(held, Tensor):
        held = {"": held}
    elif isinstance(held, tuple | list):
        held = {str(at): each for at, each in enumerate(held)}
    tensors = isinstance(held, Mapping) and all(isinstance(each, Tensor) for each in held.values())
    if not tensors or not held:
        kind = type(held).__name__
        raise SourceError(
            f"{path}: expected tensors, it holds a {kind}", todo="save a tensor, or a dict of them"
        )
    return {str(key): each for key, each in held.items()}


def _inputs(arrays: Mapping[str, Tensor], model: nn.Module) -> Example:
    names = argument_names(model) or ()
    known = {name: array for name, array in arrays.items() if name in names}
    return Example((), known) if known else Example((next(iter(arrays.values())),))


def _cut(path: Path, whole: Example, size: int) -> Iterator[Example]:
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in whole.tensors}
    if len(lengths) != 1 or 0 in lengths:
        found = ", ".join(map(str, sorted(lengths)))
        raise SourceError(
            f"{path}: expected as many rows in each array, there are {found}", todo="write it again"
        )
    for at in range(0, lengths.pop(), size):
        yield whole.map(lambda tensor, at=at: tensor[at : at + size])
