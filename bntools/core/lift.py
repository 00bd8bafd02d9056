"""Find the BatchNorms that are spelt out as arithmetic, and write them as one operator each.

``FrozenBatchNorm2d`` (torchvision, detectron2, DETR) computes ``x·s + (β − μ·s)`` with
``s = γ·rsqrt(σ² + ε)`` and γ, β, μ, σ² reshaped to ``(1, C, 1, 1)``. It is told by what it computes,
not by its class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bntools.core.calls import BY_BATCH, Call, ModuleCall, Stored, Value

_RESHAPES = frozenset(
    {"reshape", "view", "unsqueeze", "to", "_to_copy", "contiguous", "type_as", "alias", "detach"}
)


def lift(calls: Sequence[Call], modules: Sequence[ModuleCall], statistics: set[str]) -> tuple[Call, ...]:
    """Replace each spelt-out BatchNorm by one ``batch_norm`` call.

    Args:
        calls: the operators of a run.
        modules: its module calls.
        statistics: the paths of modules that hold running statistics.

    Returns:
        the calls, with those of a recognised module call replaced by one.
    """
    lifted: dict[int, Call] = {}
    dropped: set[int] = set()
    for module in modules:
        own = calls[module.start : module.end]
        if module.path not in statistics or any(c.op in BY_BATCH for c in own):
            continue
        call = _match(own, module)
        if call is not None:
            lifted[call.index] = call
            dropped.update(c.index for c in own)
    return tuple(lifted.get(c.index, c) for c in calls if c.index in lifted or c.index not in dropped)


def _match(calls: Sequence[Call], module: ModuleCall) -> Call | None:
    made = {value.id: call for call in calls for value in call.outputs}
    if len(module.inputs) != 1 or len(module.outputs) != 1 or any(c.writes for c in calls):
        return None
    (x,), (y,) = module.inputs, module.outputs

    def arguments(value: Any, op: str) -> tuple[Any, Any] | None:
        call = made.get(value.id) if isinstance(value, Value) else None
        if call is None or call.op != op or call.args.get("alpha", 1) != 1:
            return None
        return call.args["self"], call.args.get("other")

    def stored(value: Any) -> Stored | None:
        """A vector of the module, behind reshapes."""
        while isinstance(value, Value) and value.id in made and made[value.id].op in _RESHAPES:
            if not value.floating:
                return None
            value = made[value.id].args["self"]
        return value if isinstance(value, Stored) and value.shape == x.shape[1:2] else None

    def either_way(pair: tuple[Any, Any] | None) -> list[tuple[Any, Any]]:
        return [pair, pair[::-1]] if pair else []

    def scale(value: Any) -> tuple[Stored, Stored, float] | None:
        """γ, σ² and ε, if *value* is ``γ·rsqrt(σ² + ε)``."""
        for gamma, rest in either_way(arguments(value, "mul")):
            root = arguments(rest, "rsqrt")
            total = arguments(root[0], "add") if root else None
            if total and stored(gamma) and stored(total[0]) and isinstance(total[1], float | int):
                return stored(gamma), stored(total[0]), float(total[1])  # type: ignore[return-value]
        return None

    for product, shift in either_way(arguments(y, "add")):
        for a, factor in either_way(arguments(product, "mul")):
            found, rest = scale(factor), arguments(shift, "sub")
            if found is None or rest is None or not isinstance(a, Value) or a.id != x.id:
                continue
            if not (_on_axis_1(factor.shape, a.shape) and _on_axis_1(shift.shape, a.shape)):
                continue
            beta = stored(rest[0])
            for mean, again in either_way(arguments(rest[1], "mul")):
                same = isinstance(again, Value) and again.id == factor.id
                if beta and same and stored(mean) and len(calls) == _size(calls, y, made):
                    gamma, var, eps = found
                    args = _arguments(a, gamma, beta, stored(mean), var, eps)
                    return Call(made[y.id].index, "batch_norm", args, (y,), frozenset(), module.path)
    return None


def _size(calls: Sequence[Call], y: Value, made: Mapping[int, Call]) -> int:
    """How many of the calls *y* is made of: a module that does more than the formula is no match."""
    seen: set[int] = set()
    todo = [y]
    while todo:
        call = made.get(todo.pop().id)
        if call is not None and call.index not in seen:
            seen.add(call.index)
            todo += [r for r in call.reads() if isinstance(r, Value)]
    return len(seen)


def _on_axis_1(shape: tuple[int, ...], x: tuple[int, ...]) -> bool:
    """Whether a tensor of that shape, broadcast over *x*, holds a number for each channel of it."""
    full = (1,) * (len(x) - len(shape)) + shape
    return len(full) == len(x) > 1 and full[1] == x[1] and all(n == 1 for n in (*full[:1], *full[2:]))


def _arguments(
    x: Value, gamma: Stored, beta: Stored, mean: Stored | None, var: Stored, eps: float
) -> dict[str, Any]:
    return {
        "input": x,
        "weight": gamma,
        "bias": beta,
        "running_mean": mean,
        "running_var": var,
        "training": False,
        "momentum": 0.0,
        "eps": eps,
    }
