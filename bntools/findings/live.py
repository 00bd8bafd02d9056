"""A live model as the rules look at it, and torch's tensors as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from bntools.core.arrays import StateTensor, state_tensor
from bntools.core.facts import facts_of
from bntools.core.names import modules_of, own_tensor
from bntools.core.plan import Site
from bntools.findings.layer import NAMES, NormLayer, numbers_of
from bntools.findings.passed import Pass
from bntools.findings.subject import Seen, Subject
from bntools.norms.frozen import frozen


def of_model(
    model: nn.Module,
    sites: Iterable[Site] = (),
    seen: Seen | None = None,
    batch_size: int | None = None,
    passed: Pass | None = None,
    decays: Mapping[str, float] | None = None,
) -> Subject:
    """A live model, which is only read.

    Args:
        model: an eager module.
        sites: by which the layers are put in order.
        seen: one run of it.
        batch_size, passed, decays: as in `Subject`.
    """
    modules = dict(modules_of(model))
    facts = seen.capture.facts if seen else facts_of(model)
    norms = {}
    for path, about in facts.items():
        if not (about.statistics or about.batchnorm):
            continue
        module = modules[path]
        tensors = {name: own_tensor(module, name) for name in NAMES}
        own = {name: None if tensor is None else stored_of(tensor) for name, tensor in tensors.items()}
        (gamma, beta, mean, var), dtype = numbers_of(own)
        how = frozen(module)
        norms[path] = NormLayer(
            path,
            about.kind,
            gamma,
            beta,
            mean,
            var,
            dtype,
            eps=about.eps,
            momentum=about.momentum,
            batches=about.batches,
            module=module,
            configured=isinstance(module, _NormBase),
            batchnorm=isinstance(module, _BatchNorm),
            sync=isinstance(module, nn.SyncBatchNorm),
            held=how is not None and how.stats,
        )
    order = [site.module for site in sites if site.module in norms]
    paths = dict.fromkeys((*(path for path in order if path is not None), *norms))
    return Subject((norms[path] for path in paths), model, seen, batch_size, passed, decays)


def stored_of(tensor: Tensor) -> StateTensor:
    """A tensor as numbers on the CPU; without values where it is no statistic.

    Example:
        >>> stored_of(torch.tensor(3)).count
        3
    """
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
        return StateTensor(dtype, shape)
    try:
        here = tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)
        values = here.resolve_neg().numpy()
    except (RuntimeError, NotImplementedError, TypeError):  # quantised, or of a type without arithmetic
        return StateTensor(dtype, shape)
    return state_tensor(dtype, shape, values)
