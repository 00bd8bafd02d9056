"""The modules and tensors of a model by name, whatever its class makes of ``named_parameters``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from bntools.core.keys import key_of


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every path with its module; a shared module under each of its paths."""
    yield from nn.Module.named_modules(model, remove_duplicate=False)


def named_tensors(model: nn.Module, *, persistent: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every key with its parameter or buffer; a shared one under each of its keys.

    Args:
        model: any module.
        persistent: leave out the buffers that are not saved.

    Example:
        >>> [key for key, _ in named_tensors(nn.Sequential(nn.Linear(1, 1)))]
        ['0.weight', '0.bias']
    """
    for path, module in modules_of(model):
        left_out = getattr(module, "_non_persistent_buffers_set", ()) if persistent else ()
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in left_out:
                yield key_of(path, name), tensor


def own_tensor(module: nn.Module, name: str) -> Tensor | None:
    """A module's parameter or buffer of that name; not what a property or ``__getattr__`` makes up."""
    for held in (module._parameters, module._buffers):
        tensor = held[name] if name in held else None  # noqa: SIM401, TorchScript's has no get
        if isinstance(tensor, Tensor):
            return tensor
    return None
