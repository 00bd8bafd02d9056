"""Calibration data as the command line names it: images, a file of arrays, or code that makes batches."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bntools.core.example import Example, argument_names
from bntools.core.images import Images, find_images
from bntools.core.inputs import read_numpy
from bntools.core.preparation import Preparation
from bntools.core.specs import call_spec, is_spec
from bntools.errors import SourceError, first_line

_ARRAYS = (".npy", ".npz")
_TENSORS = (".pt", ".pth", ".safetensors")
_AT_ONCE = 1024
_DAMAGED = OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError


@dataclass(frozen=True, slots=True)
class Data:
    """Batches, each time the same and anew, but for what code makes.

    Args:
        batches: what it iterates over.
        samples: how many will come, or less where images are left out; None if nobody knows.
        left_out: names of what was left out; of images as soon as they have been read.
        preparation: what is done to images, None if they are none.
    """

    batches: Iterable[Any]
    samples: int | None = None
    left_out: list[str] = field(default_factory=list)
    preparation: Preparation | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def open_data(
    name: str,
    model: nn.Module,
    batch_size: int,
    *,
    max_samples: int | None = None,
    skip: bool = False,
    share: tuple[int, int] = (0, 1),
    resize: int | None = None,
    crop: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    workers: int | None = None,
) -> Data:
    """Batches from what the command line names.

    Folders and files are often sorted by label. Their samples come in an order drawn at random, the same on
    every run, so that the batches, and a part of them, are like the whole.

    A file holds one array or several with one row for each sample. Those whose names are arguments of the
    model's forward go there; if none is, the first is the input, and others, labels say, are left out.

    Args:
        name: a folder of images, a ``.npy``, ``.npz``, ``.safetensors`` or tensor ``.pt`` file, or
            ``package.module:factory``, which returns an iterable of batches.
        model: that will be run on them.
        batch_size: how many images, or rows of a file, make a batch.
        max_samples: how many of them to draw; None for all.
        skip: leave out images that cannot be read, and rows with NaN or infinity, instead of raising.
        share: which of how many processes this is: of the batches it gets those whose turn it is. What code
            makes is gone through in each of them.
        resize, crop, mean, std: of images, where it is to be otherwise than `Preparation.of` says.
        workers: how many threads read images; None for as many as there are processors, four at most.

    Raises:
        SourceError: if it is not there, cannot be read, or holds something else.
        UsageError: if images cannot be prepared so, or Pillow is missing.
    """
    path = Path(name)
    if is_spec(name) and not os.path.exists(path):
        made = call_spec(name)
        if not hasattr(made, "__iter__"):
            kind = type(made).__name__
            raise SourceError(f"{name}: gives a {kind}, no batches", todo="return a DataLoader or a list")
        return Data(_Dealt(made, share) if share[1] > 1 else made)
    if os.path.isdir(path):  # a name may be too long for `Path.is_dir`
        preparation = Preparation.of(model, resize=resize, crop=crop, mean=mean, std=std)
        found = find_images(path)
        paths = [found[at] for at in _dealt(_drawn(len(found), max_samples), batch_size, share)]
        images = Images(path, paths, preparation, batch_size, workers, skip)
        return Data(images, len(paths), images.left_out, preparation)
    if path.suffix not in (*_ARRAYS, *_TENSORS):
        what = f"{path.suffix or 'no ending'} is not read"
        known = ", ".join((*_ARRAYS, *_TENSORS))
        raise SourceError(
            f"{name}: {what}", todo=f"give a folder of images, a {known} file, or package.module:factory"
        )
    arrays = read_numpy(path, "--data") if path.suffix in _ARRAYS else _tensors(path)
    whole = _inputs(arrays, model)
    drawn = _drawn(_length(path, whole), max_samples)
    fine = _finite(whole, drawn)
    bad = sorted(drawn[~fine].tolist())
    if bad and not skip:
        raise SourceError(
            f"{path}: row {bad[0]} holds NaN or infinity",
            todo="repair it, or leave such rows out with --skip-bad",
        )
    rows = _dealt(drawn[fine], batch_size, share)
    return Data(_Rows(whole, rows, batch_size), len(rows), [f"row {row}" for row in bad])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Batches of some rows of arrays."""

    whole: Example
    rows: Tensor
    size: int

    def __iter__(self) -> Iterator[Example]:
        for rows in self.rows.split(self.size):
            if len(rows):  # splitting nothing gives a piece of nothing
                yield self.whole.map(lambda tensor, rows=rows: tensor[rows])


@dataclass(frozen=True, slots=True)
class _Dealt:
    """Of the batches that code makes, those whose turn it is."""

    made: Iterable[Any]
    share: tuple[int, int]

    def __iter__(self) -> Iterator[Any]:
        return islice(self.made, self.share[0], None, self.share[1])


def _dealt(drawn: Tensor, size: int, share: tuple[int, int]) -> Tensor:
    """Those in the batches whose turn it is."""
    return torch.cat([drawn[:0], *drawn.split(size)[share[0] :: share[1]]])


def _drawn(count: int, most: int | None) -> Tensor:
    """The numbers below a count in an order drawn at random, or the first of them; on every run the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def _tensors(path: Path) -> dict[str, Tensor]:
    if not os.path.exists(path):
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


def _length(path: Path, whole: Example) -> int:
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in whole.tensors}
    if len(lengths) != 1 or 0 in lengths:
        found = ", ".join(map(str, sorted(lengths)))
        raise SourceError(
            f"{path}: expected as many rows in each array, there are {found}", todo="write it again"
        )
    return lengths.pop()


def _finite(whole: Example, rows: Tensor) -> Tensor:
    """Whether each of the rows is free of NaN and infinity, in all arrays."""
    fine = torch.ones(len(rows), dtype=torch.bool)
    for tensor in whole.tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            parts = (tensor[some] for some in rows.split(_AT_ONCE))
            fine &= torch.cat([x.isfinite().reshape(len(x), -1).all(1) for x in parts])
    return fine
