"""The numbers of the layers that a census lists, from whatever was looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bntools.core.arrays import StateTensor
from bntools.core.plan import Site
from bntools.findings.layer import NAMES, NormLayer
from bntools.findings.subject import of_tensors

if TYPE_CHECKING:  # a file of weights can be looked at without torch
    import torch
    from torch import Tensor, nn


def layers_of(
    model: nn.Module | torch.export.ExportedProgram | Mapping[str, Tensor | StateTensor],
    sites: Sequence[Site],
) -> tuple[NormLayer, ...]:
    """γ, β, μ and σ² of each layer, in float64 on the CPU, each of shape (C,); nothing is changed.

    Args:
        model: what was inspected: a module, a program, or bare tensors by key.
        sites: those of the census.

    Returns:
        A layer for each path of a module that keeps statistics, or of tensors that are ones.

    Example:
        >>> import torch
        >>> from bntools.verbs.inspect import inspect
        >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).eval()
        >>> [norm.var.tolist() for norm in layers_of(net, inspect(net, torch.ones(3, 2)).sites)]
        [[1.0, 1.0]]
    """
    if isinstance(model, Mapping):
        return of_tensors(_stored(model, sites), sites).norms
    from bntools.core.program import atomised
    from bntools.core.revive import taken
    from bntools.findings.live import of_model

    module, _, program = taken(model, ())
    return of_model(module if program is None else atomised(program), sites).norms


def _stored(tensors: Mapping[str, Tensor | StateTensor], sites: Iterable[Site]) -> dict[str, StateTensor]:
    """Those of the sites."""
    stems = (f"{site.name}." if site.name else "" for site in sites)
    keys = (stem + name for stem in stems for name in NAMES)
    return {key: _as_state_tensor(tensors[key]) for key in keys if key in tensors}


def _as_state_tensor(tensor: Tensor | StateTensor) -> StateTensor:
    if isinstance(tensor, StateTensor):
        return tensor
    from bntools.findings.live import stored_of

    return stored_of(tensor)
