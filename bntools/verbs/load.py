"""Open a model file without running what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bntools.core.source import load as open_source


def load(
    path_or_spec: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    key: str | None = None,
    ema: bool = False,
    trust: Sequence[str] = (),
    unsafe: bool = False,
) -> nn.Module:
    """Open a model file, or build a model by its name. No code of the file runs, unless *unsafe*.

    Args:
        path_or_spec: an existing file; or ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``.
        arch: for a file that holds weights only: what to load them into, written like a name above.
        arch_kwargs: keyword arguments for the architecture.
        key: the entry of a checkpoint to use.
        ema: use the checkpoint's moving average of the weights.
        trust: packages whose layer classes a pickled module may be made of, besides torch's, torchvision's
            and timm's.
        unsafe: let the file run whatever code it brings.

    Returns:
        the model; a pickled one in the mode that it was saved in, a built one in eval mode, an ONNX file as a
        graph module that computes what the file says.

    Raises:
        SourceError: the file or name is missing, damaged, of another kind, or does not fit *arch*.
        UnsafeError: opening the file would run code or fill the memory.
        CaptureError: an ONNX file holds what torch has no counterpart for.
        UsageError: the arguments contradict each other.

    Example:
        >>> load("torch.nn:Linear", arch_kwargs={"in_features": 2, "out_features": 1})
        Linear(in_features=2, out_features=1, bias=True)
    """
    return open_source(
        path_or_spec,
        arch=arch,
        arch_kwargs=arch_kwargs,
        key=key,
        ema=ema,
        trust=trust,
        unsafe=unsafe,
        graphs=True,
    ).model
