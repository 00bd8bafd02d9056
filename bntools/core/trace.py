"""Write down every operator of one run. What comes out is only data: see `bntools.core.calls`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bntools.core.calls import BY_BATCH, Call, ModuleCall, Stored, Value
from bntools.core.leaves import tensors_of
from bntools.core.memories import Memories
from bntools.core.names import modules_of, named_tensors

# A tensor's content becomes a Python number here, and with it perhaps a branch.
_TO_PYTHON = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"})


class Trace(TorchDispatchMode):
    """Records the operators that run while it is active.

    Below autograd, composite operators arrive whole, since nothing above this mode takes them apart;
    what they are made of runs inside and is not seen.

    Args:
        model: the module whose parameters, buffers and modules are told apart.
        sees: for a module, the kinds of values its hooks see: any of ``inputs`` and ``outputs``.
        sliced: see `bntools.core.memories.Memories`.
    """

    def __init__(
        self, model: nn.Module, sees: Callable[[nn.Module], frozenset[str]], *, sliced: bool = True
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.modules: list[ModuleCall] = []
        self.varying: set[int] = set()
        self.outside: dict[int, list[str]] = {}
        self.branches: list[str] = []
        self._sees = {id(module): sees(module) for _, module in modules_of(model)}
        # By id, which is a name only as long as the tensor lives: the reference tells.
        self._values: dict[int, tuple[weakref.ref[Tensor], Value]] = {}
        self._ids = 0
        self._paths: dict[int, str] = {}
        for path, module in modules_of(model):
            self._paths.setdefault(id(module), path)
        self._stack: list[tuple[nn.Module, str, int, tuple[Value, ...]]] = []
        self._stored = self._join(model, sliced)

    def _join(self, model: nn.Module, sliced: bool) -> dict[int, Stored]:
        keys: dict[int, list[str]] = {}
        tensors: dict[int, Tensor] = {}
        for key, tensor in named_tensors(model):
            keys.setdefault(id(tensor), []).append(key)
            tensors[id(tensor)] = tensor
        self.memories = Memories(tensors.values(), sliced=sliced)
        return {
            i: Stored(tuple(keys[i]), tuple(t.shape), self.memories.of(t), _kind(t))
            for i, t in tensors.items()
        }

    def run(self, model: nn.Module, call: Callable[[nn.Module], Any], inputs: list[Tensor]) -> None:
        """Run *call* on *model* and record it; *inputs* are the tensors that the call brings."""
        brought = {self._value(tensor).memory for tensor in inputs}
        self.varying |= brought
        with self._module_hooks(), torch._C._AutoDispatchBelowAutograd(), self:
            result = call(model)
        for leaf in tensors_of(result):
            self._show(self._value(leaf).memory, "output")
        known = brought | self.outside.keys() | {stored.memory for stored in self._stored.values()}
        if self._alive(known):
            gc.collect()  # a frame in a cycle is nobody who looks
        # The result is still there: what hides in it where no walk comes to is alive with it.
        for memory in self._alive(known):
            self._show(memory, "kept")

    def _alive(self, known: set[int]) -> list[int]:
        """The memories that the run made and that still exist, although nobody was seen to get them."""
        return [memory for memory in self.memories.alive() if memory not in known]

    def _show(self, memory: int, to: str) -> None:
        seen = self.outside.setdefault(memory, [])
        if to not in seen:
            seen.append(to)

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = _schema(func)
        op = schema.op
        named = {**schema.defaults, **dict(zip(schema.names, args, strict=False)), **kwargs}
        read = {name: self._refer(value) for name, value in named.items()}
        writes = schema.writes
        if named.get(BY_BATCH.get(op, "")):  # of which their schemas say nothing
            writes += ("running_mean", "running_var")
        written = frozenset(r.memory for name in writes for r in _flat(read.get(name)))

        varies = any(r.memory in self.varying for value in read.values() for r in _flat(value))
        if varies and op in _TO_PYTHON:
            self.branches.append(self._owner)
        out = func(*args, **kwargs)
        outputs = tuple(self._value(t, fresh=True) for t in pytree.tree_leaves(out) if isinstance(t, Tensor))
        if varies:
            self.varying.update(v.memory for v in outputs)
            self.varying.update(written)
        self.calls.append(Call(len(self.calls), op, read, outputs, written, self._owner))
        return out

    @property
    def _owner(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._stored.get(id(value)) or self._value(value)
        if isinstance(value, list | tuple):
            return tuple(self._refer(v) for v in value)
        return value

    def _value(self, tensor: Tensor, *, fresh: bool = False) -> Value:
        """The value that *tensor* holds now; *fresh* if an operator has just made or changed it."""
        known = None if fresh else self._values.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        strides = tensor.stride() if tensor.layout is torch.strided else ()
        value = Value(self._ids, tuple(tensor.shape), self.memories.of(tensor), _kind(tensor), strides)
        self._ids += 1
        self._values[id(tensor)] = weakref.ref(tensor), value
        return value

    # Modules

    @contextmanager
    def _module_hooks(self) -> Iterator[None]:
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, with_kwargs=True, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            # torch's handle leaves this behind, by which torch.compile takes the hook for one that is there.
            nn.modules.module._global_forward_hooks_with_kwargs.pop(after.id, None)
            self._stack.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if path is None:  # made on the fly: its operators belong to the module that made it
            return
        inputs = self._tensors(args)
        self._stack.append((module, path, len(self.calls), inputs))
        if "inputs" in self._sees[id(module)]:
            for value in inputs:
                self._show(value.memory, f"a hook on {path or 'the model'}")

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        *keywords, out = rest  # behind an exception torch leaves the keyword arguments out
        kwargs = keywords[0] if keywords else {}
        if not self._stack or self._stack[-1][0] is not module:
            return
        _, path, start, inputs = self._stack.pop()
        inputs = inputs or self._tensors(kwargs)
        outputs = self._tensors(out)
        plain = (len(args) == 1 and not kwargs) or (not args and list(kwargs) == ["input"])
        self.modules.append(ModuleCall(path, start, len(self.calls), inputs, outputs, plain))
        seen = (*self._tensors((args, kwargs)), *outputs) if "outputs" in self._sees[id(module)] else ()
        for value in seen:
            self._show(value.memory, f"a hook on {path or 'the model'}")

    def _tensors(self, tree: Any) -> tuple[Value, ...]:
        return tuple(self._value(t) for t in tensors_of(tree) if id(t) not in self._stored)


class _Schema(NamedTuple):
    """What an operator's schema says that a record of its call needs."""

    op: str
    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    writes: tuple[str, ...]


@cache
def _schema(func: Any) -> _Schema:
    schema = func._schema
    return _Schema(
        schema.name.removeprefix("aten::"),
        tuple(a.name for a in schema.arguments),
        {a.name: a.default_value for a in schema.arguments if a.has_default_value()},
        tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write),
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype if tensor.layout is torch.strided else tensor.layout)[6:]


def _flat(value: Any) -> Iterator[Value | Stored]:
    if isinstance(value, Value | Stored):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _flat(each)
