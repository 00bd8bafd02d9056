"""Tensors out of what was in a file: of safetensors, or a pickled module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bntools.core.keys import place
from bntools.core.sniff import Sniffed
from bntools.errors import SourceError, first_line


def read_safetensors(sniffed: Sniffed) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order of their names.

    Raises:
        SourceError: the library is not there, or the bytes are damaged.
    """
    try:
        from safetensors.torch import load

        # Not load_file: on some systems its tensors are views of the open file, which a save replaces.
        tensors = load(sniffed.path.read_bytes())
    except ImportError as error:
        raise SourceError(f"{sniffed.path}: needs safetensors", todo="pip install safetensors") from error
    except Exception as error:  # the library raises its own and torch's errors on damaged bytes
        raise SourceError(
            f"{sniffed.path}: a damaged safetensors file ({first_line(error)})", todo="download it again"
        ) from error
    # The library hands them out in another order each time.
    return {key: tensors[key] for key in sorted(tensors, key=place)}


def state_of_module(where: str, model: nn.Module) -> dict[str, Any]:
    """Its state, which also proves that the module is whole: a damaged pickle may leave out anything."""
    try:
        for module in model.modules():
            hash((module.training, len(module._parameters), len(module._buffers), len(module._forward_hooks)))
        return dict(model.state_dict())
    except Exception as error:
        raise SourceError(
            f"{where}: a pickled module with parts missing ({type(error).__name__}: {error})",
            todo="it may be damaged, or saved by another release: save its state dict there and pass --arch",
        ) from error
