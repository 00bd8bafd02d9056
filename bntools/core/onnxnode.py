"""The modules of an ONNX file's program that have no weights to fold into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bntools.core.onnxshapes import CONSTANT
from bntools.core.opaque import run_packed


class Node(nn.Module):
    """Runs a node that has no weights to fold into.

    Args:
        rule: of `bntools.core.onnxops.RULES`, None if there is none.
        attributes: of the node.
        own: its constant inputs, by their number.
        count: how many inputs it has.
        opaque: the node for ONNX's reference.
        feeds: the numbers of the inputs that the reference is to be given.
        scalars: those of its constant inputs that torch is to be given as a number.
    """

    def __init__(
        self,
        rule: Callable[..., Any] | None,
        attributes: Mapping[str, Any],
        own: Mapping[int, np.ndarray],
        count: int,
        opaque: str,
        feeds: Sequence[int],
        scalars: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.rule, self.count, self.opaque, self.feeds = rule, count, opaque, tuple(feeds)
        self.attributes = {**attributes, CONSTANT: frozenset(own)}
        tensors = {at: torch.from_numpy(np.array(array, order="C")) for at, array in own.items()}
        # Axes, shapes and places are a part of the node, not a state of the model.
        self.fixed: dict[int, Any] = {at: t for at, t in tensors.items() if not t.is_floating_point()}
        self.fixed |= {at: float(tensors[at]) for at in scalars}
        self.held = [at for at in own if at not in self.fixed]
        for at in self.held:
            self.register_buffer(f"input{at}", tensors[at])

    def forward(self, *values: Any) -> Any:
        """The node on *values*, the inputs that are no constants."""
        given = iter(values)
        inputs = [
            self._constant(at) if at in self.fixed or at in self.held else next(given)
            for at in range(self.count)
        ]
        if self.rule is not None:
            out = self.rule(self.attributes, *inputs)
            if out is not NotImplemented:
                return out
        made = run_packed(self.opaque, [inputs[at] for at in self.feeds])
        return made[0] if len(made) == 1 else tuple(made)

    def _constant(self, at: int) -> Any:
        return self.fixed[at] if at in self.fixed else getattr(self, f"input{at}")

    def extra_repr(self) -> str:
        """The type of the node."""
        return str(self.attributes.get("op", ""))


class Constant(nn.Module):
    """A constant that is read as a value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """A copy: what a model returns is the caller's."""
        return self.value.clone()
