"""Running a model without leaving a trace on it or on the process."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from bntools.core.names import modules_of, named_tensors, own_tensor
from bntools.norms.frozen import frozen

_ALONE = threading.RLock()


@contextmanager
def untouched(model: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Run *model* inside this, with a fixed random seed and without gradients, and it is as it was.

    Restored on every exit, Ctrl-C included: modes and other attributes of its modules, which tensors and
    modules they hold, buffers (in place, so that aliases hold), embeddings that renormalise themselves, and
    the random state of torch, numpy and Python. Gradients are never made. What a forward does to a parameter,
    or inside a list or another object of its own, stays done. One thread at a time: these are of the process.

    Args:
        model: the module that is run.
        seed: what the random state starts from, so that two runs draw the same numbers.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> with untouched(layer):
        ...     _ = layer(torch.ones(4, 2))
        >>> layer.running_mean.tolist()
        [0.0, 0.0]
    """
    with _ALONE:
        yield from _untouched(model, seed)


def _untouched(model: nn.Module, seed: int) -> Iterator[None]:
    attributes = [(d, d.copy()) for _, module in modules_of(model) for d in _dicts(module)]
    written = [(tensor, tensor.detach().clone(), tensor._version, sly) for tensor, sly in _writable(model)]
    devices = {t.device.index for _, t in named_tensors(model) if t.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        # A graph that the caller holds may have saved them: the same values again are no change to that.
        stack.enter_context(_unsafe_preserve_version_counter(tuple(w[0] for w in written)))
        stack.callback(_put_back, attributes, written, python, numpy)
        stack.enter_context(torch.random.fork_rng(devices, device_type="cuda"))
        stack.enter_context(torch.no_grad())
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield


def _put_back(
    attributes: Iterable[tuple[dict[str, Any], dict[str, Any]]],
    written: Iterable[tuple[Tensor, Tensor, int, bool]],
    python: Any,
    numpy: Any,
) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    for now, before in attributes:
        restore(now, before)
    with torch.no_grad():
        for tensor, saved, version, sly in written:
            if sly or tensor._version != version:
                tensor.copy_(saved)


def restore(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Make a dict what it was, in an order in which nothing is missing if Ctrl-C comes between."""
    if len(now) != len(before) or any(now.get(k, now) is not v for k, v in before.items()):
        now.update(before)
        for key in now.keys() - before.keys():
            del now[key]


def _dicts(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield vars(module)
    if (how := frozen(module)) is not None:  # it remembers the mode that the module is told
        yield vars(how)
    held = (module._parameters, module._buffers, module._modules)
    yield from (each for each in held if isinstance(each, dict))  # TorchScript has something else there


def _writable(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """The tensors that a forward may write to, and whether it would do so without counting a version."""
    for _, module in modules_of(model):
        # The batch-norm operator writes its running statistics behind autograd's back.
        sly = module.training and own_tensor(module, "running_mean") is not None
        own = [(b, sly) for b in module._buffers.values() if b is not None]
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            own.append((module.weight, False))
        own += [(t, False) for t in vars(module).values() if isinstance(t, Tensor) and t.is_leaf]
        yield from (each for each in own if not each[0].is_inference())
