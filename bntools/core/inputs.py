"""The example input as the user writes it: ``--input 2x3x224x224`` and ``--inputs file.npz``."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from bntools.core.example import Example, argument_names
from bntools.errors import SourceError, UsageError, first_line

_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*|scalar)(?::(?P<dtype>[a-z]\w*))?")
_FORM = "write it as 2x3x224x224, or with a name and a type as ids=2x16:int64"
_KNOWN = re.compile(
    r"float(16|32|64)?|bfloat16|double|half|u?int8|u?int(16|32|64)|int|long|short|bool|complex(64|128)"
)
_MOST = 2**31


def parse_inputs(texts: Sequence[str], model: nn.Module, seed: int = 0) -> Example:
    """Make an example from shapes as the command line takes them.

    Args:
        texts: each ``SHAPE``, ``SHAPE:TYPE``, ``NAME=SHAPE`` or ``NAME=SHAPE:TYPE``; those with a name
            are keyword arguments.
        model: tells the type where none is given, and how large whole numbers may be.
        seed: what the values are drawn from; the global random state is not used.

    Raises:
        UsageError: a text is not written so, or the model takes no argument of that name.

    Example:
        >>> print(parse_inputs(["2x5"], nn.Linear(5, 3)))
        2x5 float32
    """
    dtype, device = type_and_device(model)
    generator = torch.Generator().manual_seed(seed)
    below = known_integers(model)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in texts:
        match = _INPUT.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--input: {text!a} is no shape", todo=_FORM)
        sizes = () if match["shape"] == "scalar" else tuple(map(int, match["shape"].split("x")))
        if 0 in sizes or math.prod(sizes) > _MOST:
            raise UsageError(f"--input: {text!a} has no elements or too many", todo=_FORM)
        tensor = draw(sizes, _dtype(text, match["dtype"]) or dtype, device, generator, below)
        name = match["name"]
        if name is None:
            args.append(tensor)
        elif name in kwargs:
            raise UsageError(f"--input: the name {name} is given twice", todo="give each input once")
        else:
            kwargs[name] = tensor
    names = argument_names(model)
    if names is not None and (strange := [name for name in kwargs if name not in names]):
        raise UsageError(
            f"--input: {type(model).__name__} takes no argument {strange[0]!r}",
            todo=f"it takes {', '.join(names)}",
        )
    return Example(tuple(args), kwargs)


def read_inputs(path: str | Path, model: nn.Module) -> Example:
    """Read an example from a numpy file, ``.npz`` or ``.npy``.

    Arrays whose names are arguments of the model's forward are given by name; otherwise all are given in
    the order of the file. Numbers with a fraction are given in the model's own type.

    Args:
        path: the file; it is read without unpickling.
        model: what is to be called with it.

    Raises:
        SourceError: the file is missing, damaged, or holds something other than numbers.
    """
    dtype, device = type_and_device(model)
    tensors = read_numpy(path, "--inputs")
    ready = {name: as_model(tensor, dtype, device) for name, tensor in tensors.items()}
    names = argument_names(model)
    unnamed = all(name.startswith("arr_") for name in ready)  # as numpy names what is given without a name
    if not unnamed and (names is None or set(ready) <= set(names)):
        return Example((), ready)
    if not unnamed and names and set(ready) & set(names):
        strange = sorted(set(ready) - set(names))
        raise SourceError(
            f"{path}: holds {', '.join(strange)}, which {type(model).__name__} does not take",
            todo=f"it takes {', '.join(names)}",
        )
    order = sorted(ready, key=_place) if unnamed else list(ready)
    return Example(tuple(ready[name] for name in order))


def read_numpy(path: str | Path, option: str) -> dict[str, Tensor]:
    """The arrays of a numpy file by name, as tensors; it is read without unpickling.

    Args:
        path: a ``.npz`` or ``.npy`` file.
        option: that named it, for errors.

    Raises:
        SourceError: the file is missing, damaged, or holds something other than numbers.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise SourceError(f"{path}: no ordinary file", todo="write it with numpy.savez(path, x=array)")
        with Path(path).open("rb") as file:  # a file that numpy opens stays open when reading fails
            _check_size(path, file)
            loaded = np.load(file, allow_pickle=False)
            one = isinstance(loaded, np.ndarray)
            arrays = {"arr_0": loaded} if one else {name: loaded[name] for name in loaded}
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(
            f"{path}: there is no such file", todo=f"check the path given to {option}"
        ) from error
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise SourceError(
            f"{path}: no numpy file of plain numbers ({first_line(error)})",
            todo="write it with numpy.savez(path, x=array)",
        ) from error
    except Exception as error:  # zlib and the array header's parser have errors of their own
        raise SourceError(
            f"{path}: a damaged numpy file ({type(error).__name__})", todo="write it again"
        ) from error
    if not tensors:
        raise SourceError(f"{path}: holds no arrays", todo="write it with numpy.savez(path, x=array)")
    return tensors


def _check_size(path: str | Path, file: IO[bytes]) -> None:
    """Refuse what a few compressed kilobytes claim to be before memory is taken for it."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST:
            raise SourceError(
                f"{path}: holds {size / 2**30:.1f} GiB, {_MOST / 2**30:.0f} at most are read",
                todo="give fewer rows",
            )
    file.seek(0)


def draw(
    sizes: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, below: int = 2
) -> Tensor:
    """Values for an input: normally distributed, or whole numbers from 0 and less than *below*."""
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(sizes, generator=generator, dtype=wide).to(device, dtype)
    most = 2 if dtype is torch.bool else min(below, torch.iinfo(dtype).max)
    return torch.randint(0, most, tuple(sizes), generator=generator).to(device, dtype)


def type_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The type and device that the model computes in, told by its first tensor with a fraction."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float32, torch.device("cpu")


def known_integers(model: nn.Module) -> int:
    """A bound that whole numbers may stay below: what the smallest embedding holds, else 2."""
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return max(1, min(sizes, default=2))


def _dtype(text: str, name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    found = getattr(torch, name, None)
    known = _KNOWN.fullmatch(name)
    if not isinstance(found, torch.dtype) or known is None:
        raise UsageError(
            f"--input: {text!a} has no known type", todo="such as float32, float16, int64 or bool"
        )
    return found


def as_model(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor where the model computes; of its type, if it is of numbers with a fraction."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def _place(name: str) -> tuple[int, str]:
    digits = name.removeprefix("arr_")
    return (int(digits) if digits.isdecimal() else 0, name)
