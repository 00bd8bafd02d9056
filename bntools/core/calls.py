"""The records of one run: which operator read and wrote what, and whose it was. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that the run made. An in-place operator makes a new value in the same memory.

    Args:
        id: unique in a capture.
        shape: its sizes.
        memory: the allocation that it lives in; views share it.
        dtype: such as ``float32``; the layout if that is not strided, such as ``sparse_csr``.
        strides: in elements.
    """

    id: int
    shape: tuple[int, ...]
    memory: int
    dtype: str
    strides: tuple[int, ...] = ()

    @property
    def floating(self) -> bool:
        return is_floating(self.dtype)


@dataclass(frozen=True, slots=True)
class Stored:
    """A parameter or buffer of the model, under all its keys."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    memory: int
    dtype: str

    @property
    def floating(self) -> bool:
        return is_floating(self.dtype)


def is_floating(dtype: str) -> bool:
    """Whether a dtype's values can carry an affine map (float8 has no arithmetic)."""
    return dtype in ("float64", "float32", "float16", "bfloat16")


BY_BATCH: Mapping[str, str] = {"batch_norm": "training", "instance_norm": "use_input_stats"}
"""The operators that may normalise by running statistics, and the argument by which each uses the batch's and
writes those.
"""

# Arguments that are asked for their shape, type or device, not for their values.
_ONLY_SHAPE: Mapping[str, str] = {
    **dict.fromkeys(("reshape_as", "view_as", "expand_as", "type_as", "to"), "other"),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), "self"
    ),
    "_assert_tensor_metadata": "a",
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "sym_size", "size"), "self"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator.

    Args:
        index: its place in the order of execution.
        op: its name, without the namespace if that is aten.
        args: its arguments by the names of its schema, tensors as `Value` or `Stored`.
        outputs: what it returned.
        writes: the memories that it wrote to.
        owner: the path of the innermost module that was running.
    """

    index: int
    op: str
    args: Mapping[str, Any]
    outputs: tuple[Value, ...]
    writes: frozenset[int]
    owner: str

    _reads: tuple[Value | Stored, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        only_shape = _ONLY_SHAPE.get(self.op)
        reads = tuple(_tensors(value for name, value in self.args.items() if name != only_shape))
        object.__setattr__(self, "_reads", reads)

    def reads(self) -> tuple[Value | Stored, ...]:
        """The tensors among the arguments whose values it looks at."""
        return self._reads


def _tensors(values: Any) -> Iterator[Value | Stored]:
    for value in values:
        if isinstance(value, Value | Stored):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module: what came in, what went out, and the calls [start, end) between.

    *plain* if it got one argument, as any module would take it.
    """

    path: str
    start: int
    end: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    plain: bool = True


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What the plan needs to know about a module.

    Args:
        paths: all its names.
        kind: its class.
        compiled: whether it is TorchScript.
        torchs: whether its forward is that of one of torch's own layers.
        hooks: the kinds of hook on it that would see or change values.
        parametrised: the names of tensors that are computed from others at every call.
        accepts: the names of absent parameters that its forward would use if there.
        statistics: whether it holds ``running_mean`` and ``running_var``.
        batchnorm: whether it is a BatchNorm of torch, with or without statistics.
        channels, eps, momentum, batches: as on a BatchNorm, zero or None elsewhere.
    """

    paths: tuple[str, ...]
    kind: str
    compiled: bool = False
    torchs: bool = False
    hooks: tuple[str, ...] = ()
    parametrised: frozenset[str] = frozenset()
    accepts: frozenset[str] = frozenset()
    statistics: bool = False
    batchnorm: bool = False
    channels: int = 0
    eps: float | None = None
    momentum: float | None = None
    batches: int | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """The computation of one run.

    Args:
        calls: in order of execution.
        modules: module calls, in order of their start.
        facts: by the first path of each module.
        varying: the memories that hold something that depends on the inputs.
        outside: memories that somebody sees besides the calls, and who: ``output``, ``kept``, ``hook on …``.
        unsound: keys of tensors that are not finite, or variances below zero.
        held: what besides the registered names refers to a module or tensor, by its path or key.
        norms: what each BatchNorm computes, by the index of its call.
        numbers: the values of parameters that something is multiplied by, by key.
        fingerprint: of the model.
        notes: what the reader should know.
        spelt: the paths of modules that spell their BatchNorm out as arithmetic.
    """

    calls: tuple[Call, ...]
    modules: tuple[ModuleCall, ...]
    facts: Mapping[str, ModuleFacts]
    varying: frozenset[int]
    outside: Mapping[int, tuple[str, ...]]
    unsound: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    norms: Mapping[int, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    spelt: frozenset[str] = frozenset()
