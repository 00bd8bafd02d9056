"""A copy of a model that computes in float64 on the CPU, whatever the model's own type and device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bntools.core.names import modules_of, named_tensors
from bntools.errors import CaptureError, in_a_line

_CPU = torch.device("cpu")
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


def exact_copy(model: nn.Module) -> nn.Module:
    """Copy *model*, its parameters and buffers in float64 on the CPU.

    The tensors are converted while they are copied: at no time is there a second copy in the old dtype.

    Raises:
        CaptureError: if the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        if id(tensor) not in memo:
            wide = exact(tensor.detach())
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(wide, requires_grad=False) if parameter else wide
    twin = copied(model, memo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in twin.modules():
            if isinstance(module, torch.jit.ScriptModule):  # it copies its own tensors
                module.to(_CPU, torch.float64)
    return twin


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, or an error that says what stood in its way.

    Tensors that a module keeps with their history, such as the weight that the old weight_norm makes, are
    copied without it.

    Raises:
        CaptureError: if something in the model cannot be copied.
    """
    memo = {} if memo is None else memo
    for _, module in modules_of(model):
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    given = set(memo)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on copying a program
            twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be copied: {in_a_line(error)}",
            todo="take out of it what copy.deepcopy cannot copy",
        ) from error
    own = {id(each) for _, each in (*modules_of(twin), *named_tensors(twin))} - given
    for name, each in (*modules_of(model), *named_tensors(model)):
        if id(each) in own:
            raise CaptureError(
                f"the model cannot be copied: copy.deepcopy leaves {name or 'it'} shared with the original",
                todo="let its __deepcopy__ copy",
            )
    return twin


def release_(twin: nn.Module) -> None:
    """Give the memory of a copy that is of no use any more back at once; other tensors that share it keep it.

    A graph module holds itself, so deleting it frees nothing until the garbage collector comes by.
    """
    for _, tensor in named_tensors(twin):
        tensor.data = tensor.data.new_empty(0)


def exact(tensor: Tensor) -> Tensor:
    """A copy of a tensor on the CPU, in float64 if it is of a narrower floating type."""
    return tensor.to(_CPU, torch.float64 if tensor.dtype in _FLOATS else tensor.dtype, copy=True)


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside this, operators compute in float64 on the CPU even where the model's code says otherwise.

    A model may cast to float32 in its own code, make tensors of a fixed type, or hold some that are neither
    parameter nor buffer. Rounding there would hide what a check in float64 is to show.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InFloat64():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)


class _InFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(_widen, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        narrow = value.dtype in _FLOATS or value.device != _CPU
        return exact(value) if narrow and not value.is_meta else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _FLOATS else value
    if isinstance(value, torch.device):
        return _CPU
    return value
