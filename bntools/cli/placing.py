"""Where a model is run, and in what type, as the command line says it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bntools.core.inputs import type_and_device
from bntools.errors import UsageError

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_of(name: str | None) -> torch.dtype | None:
    """The type that is meant.

    Raises:
        UsageError: if there is none of that name to cast to.
    """
    if name is not None and name not in _TYPES:
        raise UsageError(f"--autocast: {name!r} is none", todo=f"write {' or '.join(_TYPES)}")
    return _TYPES[name] if name is not None else None


@contextmanager
def placed(model: nn.Module, device: str) -> Iterator[None]:
    """Inside this, a model is on a device; of several processes on a machine each has one of its own.

    Raises:
        UsageError: if there is no such device.
    """
    home = type_and_device(model)[1]
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has all of them
        what = str(error).strip().splitlines()[0][:200]
        raise UsageError(
            f"--device: {device!r} cannot be used: {what}", todo="write cpu, cuda or cuda:1"
        ) from error
    if place.type == "meta":
        raise UsageError("--device: nothing is computed on meta", todo="write cpu, cuda or cuda:1")
    model.to(place)
    try:
        yield
    finally:
        model.to(home)
