"""The keys of a state dict: how they are made up, what stands beside running statistics, what wrappers add.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel, DDP, AveragedModel and torch.compile put before each key."""
COUNTER = "n_averaged"
"""Of AveragedModel, beside the keys."""

_BESIDE = (
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "mean_weight",
    "var_weight",
)
_MIXED = 3


def key_of(path: str, name: str) -> str:
    """The key of a module's tensor, or the path of its child; the model itself has no path.

    Example:
        >>> key_of("layer1.0", "weight"), key_of("", "weight")
        ('layer1.0.weight', 'weight')
    """
    return f"{path}.{name}" if path else name


def statistics_in(keys: Mapping[str, object]) -> Iterator[str]:
    """Before each pair of running statistics, what stands in front of their names: ``layer1.0.bn1.``.

    Example:
        >>> list(statistics_in({"running_mean": 0, "running_var": 0, "bn.running_mean": 0}))
        ['']
    """
    for key in keys:
        if key == "running_mean" or key.endswith(".running_mean"):
            stem = key.removesuffix("running_mean")
            if f"{stem}running_var" in keys:
                yield stem


def stands_beside(key: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether it belongs to a layer with running statistics; a weight of another size is no γ.

    Example:
        >>> shapes = {"a.running_var": (8,), "a.bias": (8,), "a.weight": (8, 3), "b.bias": (8,)}
        >>> [key for key in shapes if stands_beside(key, shapes)]
        ['a.running_var', 'a.bias']
    """
    path, _, name = key.rpartition(".")
    var = shapes.get(key_of(path, "running_var"))
    return name in _BESIDE and var is not None and math.prod(shapes[key]) <= max(math.prod(var), _MIXED)


def place(key: str) -> list[str]:
    """By which keys are sorted: layer 10 comes after layer 9.

    Example:
        >>> sorted(["a.10", "a.9"], key=place)
        ['a.9', 'a.10']
    """
    return [part.zfill(9) if part.isdigit() else part for part in key.split(".")]


def wrapper_of(keys: Mapping[str, object]) -> str | None:
    """What stands before each key, None if that is nothing.

    Example:
        >>> wrapper_of({"module.bn.bias": 0, "n_averaged": 0}), wrapper_of({"module.bias": 0, "bias": 0})
        ('module.', None)
    """
    inside = [key for key in keys if key != COUNTER]
    return next((w for w in WRAPPERS if inside and all(key.startswith(w) for key in inside)), None)
