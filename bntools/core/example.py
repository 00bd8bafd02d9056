"""What a model is called with: the example input that captures and proves a change."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bntools.core.leaves import tensors_of


@dataclass(frozen=True, slots=True)
class Example:
    """The arguments of one forward, and where they came from.

    Args:
        args: positional arguments of ``forward``.
        kwargs: keyword arguments of ``forward``.
        origin: a few words for the report, such as ``given`` or ``guessed``.

    Example:
        >>> print(Example((torch.ones(2, 16, dtype=torch.int64),), {"scale": torch.ones(())}))
        2x16 int64, scalar float32
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    origin: str = "given"

    @classmethod
    def of(cls, inputs: Any, model: nn.Module) -> Example:
        """Read *inputs* as a call of *model*: a tensor, a tuple of arguments, or a dict.

        A list is one argument, as detectors take their images. A dict is keyword arguments if
        ``forward`` has parameters of those names, else it is one positional argument.
        """
        if isinstance(inputs, Example):
            return inputs
        if isinstance(inputs, Mapping):
            names = argument_names(model)
            if all(isinstance(key, str) if names is None else key in names for key in inputs):
                return cls((), dict(inputs))
            return cls((inputs,))
        if isinstance(inputs, tuple):
            return cls(inputs)
        return cls((inputs,))

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def map(self, change: Any) -> Example:
        """The same call with *change* applied to each of its tensors."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def fresh(self) -> Example:
        """The same call on copies of its tensors, since a forward may write into what it is given."""
        return self.map(lambda tensor: tensor.detach().clone())

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the call, in a fixed order."""
        return list(tensors_of((self.args, self.kwargs)))

    def __str__(self) -> str:
        shapes = [f"{'x'.join(map(str, t.shape)) or 'scalar'} {str(t.dtype)[6:]}" for t in self.tensors]
        return ", ".join(shapes) or "no tensors"


def argument_names(model: nn.Module) -> list[str] | None:
    """The names that its forward takes; None if it takes any, or does not tell."""
    try:
        parameters: Any = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
