"""More inputs than the one that was given, so that a check does not hang on a single draw or batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bntools.core.example import Example


def trials(example: Example, seed: int = 1) -> Iterator[Example]:
    """The example itself, then a uniform redraw at another batch size.

    Floating tensors are drawn between the smallest and the largest value of the example's; others keep their
    rows, since an index or a mask drawn at random may mean nothing to the model.

    Args:
        example: the call that the user gave, or that was guessed.
        seed: of the redraw.
    """
    yield example
    sizes = {t.shape[0] if t.ndim else 0 for t in example.tensors}
    if len(sizes) != 1 or 0 in sizes:
        return
    (size,) = sizes
    batch = 1 if size > 1 else 3
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(size, (batch,), generator=generator)

    def redraw(tensor: Tensor) -> Tensor:
        picked = tensor.detach()[rows.to(tensor.device)]
        if not tensor.is_floating_point():
            return picked
        low, high = float(tensor.min()), float(tensor.max())
        drawn = torch.rand(picked.shape, generator=generator) * (high - low) + low
        return drawn.to(tensor.device, tensor.dtype)

    yield replace(example.map(redraw), origin=f"redrawn uniformly, batch of {batch}")
