"""One operator of a captured program as a module, so that a program can be operated on like a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Operator(nn.Module):
    """Calls one operator with tensors of its own.

    Args:
        target: an overload of a torch operator.
        args: its arguments by the names of its schema; an `Input` stands for a value that comes in.
        own: its tensors, by the names of the schema; None for one that it has not got and would use.
        kind: the class of the module that called it in the model.
        keys: the keys that its tensors have in the model, by the names of the schema.

    Example:
        >>> import torch
        >>> relu = Operator(torch.ops.aten.relu.default, {"self": Input(0)}, {}, kind="ReLU")
        >>> relu(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """

    def __init__(
        self,
        target: Any,
        args: Mapping[str, Any],
        own: Mapping[str, Tensor | None],
        *,
        kind: str = "",
        keys: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.target, self.args, self.kind, self.keys = target, dict(args), kind, dict(keys or {})
        self.own = tuple(own)
        for name, tensor in own.items():
            if isinstance(tensor, nn.Parameter) or tensor is None:
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.eps, self.momentum = self.args.get("eps"), self.args.get("momentum")

    def forward(self, *values: Any) -> Any:
        """The operator on *values* and its own tensors."""
        own = {name: getattr(self, name) for name in self.own}
        return self.target(**{name: _filled(arg, values) for name, arg in self.args.items()}, **own)

    def extra_repr(self) -> str:
        """The operator's name."""
        return str(self.target)


class Input:
    """Stands for the value of that number among those that an `Operator` is called with."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def _filled(arg: Any, values: tuple[Any, ...]) -> Any:
    if isinstance(arg, Input):
        return values[arg.number]
    if isinstance(arg, list | tuple):
        return [_filled(each, values) for each in arg]
    return arg
