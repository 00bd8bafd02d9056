"""What `torch.save` writes: whole or not at all, and for equal models the same bytes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from bntools.core.atomic import replacing
from bntools.errors import UsageError, first_line


class _Pickler(pickle._Pickler):
    """Writes a set in the order of its members' own bytes: that of their hashes differs from run to run."""

    def save_sorted(self, members: set[Any] | frozenset[Any]) -> None:
        ordered = sorted(members, key=pickle.dumps)
        self.save_reduce(type(members), (ordered,), obj=members)  # type: ignore[attr-defined]

    dispatch: ClassVar[Any] = {**pickle._Pickler.dispatch, set: save_sorted, frozenset: save_sorted}


_PICKLE = SimpleNamespace(__name__="pickle", Pickler=_Pickler)


def write_torch(content: Any, path: Path, *, force: bool) -> None:
    """`torch.save`, whole or not at all."""
    with replacing(path, force=force) as part, part.open("wb") as file:
        try:
            torch.save(content, file, _PICKLE)  # to a file object: a path would stand in the archive
        except (AttributeError, TypeError, RuntimeError, ValueError, pickle.PicklingError) as error:
            for cause in _causes(error):  # a full disk or Ctrl-C, and then an archive that cannot be closed
                if isinstance(cause, OSError | KeyboardInterrupt):
                    raise cause from None
            raise UsageError(
                f"{path}: the model cannot be pickled: {first_line(error)}", todo="write to .safetensors"
            ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__context__) is not None:
        yield cause
        error = cause
