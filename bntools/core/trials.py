"""More inputs than the one that was given, so that a check does not hang on a single draw or batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bntools.core.example import Example

Draw = Callable[[torch.Size, torch.Generator], Tensor]
"""From a shape, values of mean 0 and variance 1."""


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cpu")


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator, device="cpu") * 2 - 1) * math.sqrt(3)


def trials(example: Example, seed: int = 1) -> Iterator[Example]:
    """The example itself, then a normal and a uniform redraw: batches of one, of the example's and another.

    Floating tensors keep the mean and the variance of the example's and stay between its smallest and its
    largest value; others keep their rows, since an index or a mask drawn at random may mean nothing to the
    model.

    Args:
        example: the call that the user gave, or that was guessed.
        seed: of the redraws.
    """
    yield example
    sizes = {t.shape[0] if t.ndim else 0 for t in example.tensors}
    if len(sizes) != 1 or 0 in sizes:
        return
    (size,) = sizes
    generator = torch.Generator("cpu").manual_seed(seed)
    normal, uniform = (2, 1) if size == 1 else (1, 2 if size == 3 else 3)
    for batch, name, draw in ((normal, "normal", _normal), (uniform, "uniform", _uniform)):
        yield replace(
            example.map(_redraw(size, batch, draw, generator)), origin=f"{name} redraw, batch of {batch}"
        )


def _redraw(size: int, batch: int, draw: Draw, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    rows = torch.randint(size, (batch,), generator=generator, device="cpu")

    def redraw(tensor: Tensor) -> Tensor:
        picked = tensor.detach()[rows.to(tensor.device)]
        if not tensor.is_floating_point() or tensor.numel() < 2:
            return picked
        values = tensor.detach().to("cpu", torch.float32)
        drawn = draw(picked.shape, generator) * values.std() + values.mean()
        return drawn.clamp(values.min(), values.max()).to(tensor.device, tensor.dtype)

    return redraw
