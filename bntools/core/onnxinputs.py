"""An example input for an ONNX file, from the shapes that it declares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bntools.core.example import Example
from bntools.core.inputs import draw
from bntools.core.onnxgraph import torch_type
from bntools.core.onnxmodel import origin_of
from bntools.core.opaque import LARGEST
from bntools.errors import CaptureError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

_BATCH = 2
_SIDE = 224
_LENGTH = 128


def declared(model: nn.Module, seed: int = 0) -> Example | None:
    """An input of the shapes that a program's ONNX file declares; None if it comes from none.

    Of the axes that are open the first gets two rows, those of images 224, others 128.

    Raises:
        CaptureError: if a shape is not declared, or very large.
    """
    origin = origin_of(model)
    if origin is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn, is_open, total = [], False, 0
    for value in origin.source.inputs:
        sizes = _sizes(value)
        total += math.prod(sizes or ())
        if sizes is None or total > LARGEST:
            what = "no shape" if sizes is None else f"the shape {'x'.join(map(str, sizes))}"
            raise CaptureError(
                f"{origin.source.path}: {ascii(value.name)[:80]} is declared with {what}",
                todo="give its shape with --input, as 2x3x224x224",
            )
        is_open = is_open or any(not isinstance(size, int) for size in value.shape or ())
        drawn.append(draw(sizes, torch_type(value) or torch.float32, torch.device("cpu"), generator))
    return Example(tuple(drawn), origin="guessed" if is_open else "declared")


def _sizes(value: ir.Value) -> list[int] | None:
    if value.shape is None:
        return None
    rank = len(value.shape)
    guessed = [_BATCH, _LENGTH, *[_SIDE if rank >= 4 else _LENGTH] * rank]
    return [
        size if isinstance(size, int) and size > 0 else guess
        for size, guess in zip(value.shape, guessed, strict=False)
    ]
