"""A program in a narrower type, each of its tensors rounded once."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from bntools.core.exact import copied
from bntools.core.names import named_tensors
from bntools.core.operator import Operator
from bntools.errors import CaptureError


def narrowed(program: nn.Module, dtype: torch.dtype) -> fx.GraphModule:
    """A copy of a program of float64 that computes in another type.

    What the model's own code casts to a fixed type stays so.

    Args:
        program: of `bntools.core.operator.Operator` modules, in float64.
        dtype: a narrower one.

    Raises:
        CaptureError: if a number of it is too large for that type.
    """
    narrow = copied(program).to(dtype)
    assert isinstance(narrow, fx.GraphModule)
    name = str(dtype)[6:]
    for (key, tensor), (_, wide) in zip(named_tensors(narrow), named_tensors(program), strict=True):
        if dtype is torch.float16 and tensor.dtype is dtype:
            # Not tensor.half(), which rounds to float32 on the way.
            with np.errstate(over="ignore"):
                once = wide.detach().cpu().numpy().astype(np.float16)
            tensor.data.copy_(torch.from_numpy(once))
        if tensor.dtype is dtype and bool((wide.isfinite() & ~tensor.isfinite()).any()):
            raise CaptureError(f"{key}: its values are too large for {name}", todo="export without --fp16")
    for module in narrow.modules():
        if isinstance(module, Operator):
            args = module.args.items()
            module.args = {key: dtype if value is torch.float64 else value for key, value in args}
    return narrow
