"""What the rules look at: the layers with their numbers, and what one run of the model showed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from bntools.core.calls import Capture
from bntools.core.facts import facts_of
from bntools.core.graph import Graph
from bntools.core.names import modules_of, own_tensor
from bntools.core.plan import Plan, Site
from bntools.core.sites import BatchNorm, find_sites
from bntools.norms.frozen import frozen

NAMES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True, eq=False)
class NormLayer:
    """A layer with running statistics, or a BatchNorm without.

    Args:
        path: of its module, the first; that of its tensors where there is no module.
        kind: its class.
        gamma, beta, mean, var: float64 on the CPU, shape (C,); None where it has none.
        dtype: in which its statistics are stored.
        eps, momentum: as on a BatchNorm; None where only tensors are known.
        batches: `num_batches_tracked`, None where it is not counted.
        module: None where only tensors are known.
    """

    path: str
    kind: str
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    dtype: str = "float32"
    eps: float | None = None
    momentum: float | None = None
    batches: int | None = None
    module: nn.Module | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that it has, by the name of the parameter or buffer."""
        both = zip(NAMES, (self.gamma, self.beta, self.mean, self.var), strict=True)
        return {name: tensor for name, tensor in both if tensor is not None}

    @property
    def scale(self) -> Tensor | None:
        """``γ/√(σ²+ε)``, shape (C,); None if one of them is unknown, or no number."""
        if self.var is None or self.eps is None or not bool((self.var + self.eps > 0).all()):
            return None
        scale = (
            (self.var + self.eps).rsqrt() if self.gamma is None else self.gamma / (self.var + self.eps).sqrt()
        )
        return scale if bool(scale.isfinite().all()) else None

    @property
    def shift(self) -> Tensor | None:
        """``β − μ·γ/√(σ²+ε)``, shape (C,); None as for the scale."""
        if self.scale is None or self.mean is None:
            return None
        shift = (0.0 if self.beta is None else self.beta) - self.mean * self.scale
        return shift if bool(shift.isfinite().all()) else None

    @property
    def configured(self) -> bool:
        """Whether it has torch's settings, ``eps``, ``momentum`` and ``track_running_stats``."""
        return isinstance(self.module, _NormBase)

    @property
    def batchnorm(self) -> bool:
        """Whether it is one of torch's BatchNorms, or derived from one."""
        return isinstance(self.module, _BatchNorm)

    @property
    def held(self) -> bool:
        """Whether its statistics are frozen, so that it goes by them in training too."""
        how = frozen(self.module) if self.module is not None else None
        return how is not None and how.stats


class Seen(NamedTuple):
    """What one run showed: the operators, and which BatchNorms fold into what.

    Args:
        capture: the run.
        plan: of a fold.
        folded: the tensors that it would make, by key.
    """

    capture: Capture
    plan: Plan
    folded: Mapping[str, Tensor]


class Subject:
    """All that the rules may look at.

    Args:
        norms: the layers, in the order in which findings name them.
        model: None for bare tensors.
        seen: one run, None if there was none or it failed.
        batch_size: how many samples a device gets in training, None if nobody said.
    """

    def __init__(
        self,
        norms: Iterable[NormLayer],
        model: nn.Module | None = None,
        seen: Seen | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.norms = tuple(norms)
        self.model, self.seen, self.batch_size = model, seen, batch_size

    @cached_property
    def by_path(self) -> dict[str, NormLayer]:
        return {norm.path: norm for norm in self.norms}

    @cached_property
    def graph(self) -> Graph | None:
        return Graph(self.seen.capture) if self.seen else None

    @cached_property
    def sites(self) -> tuple[BatchNorm, ...]:
        """The calls of BatchNorms in the run."""
        return find_sites(self.seen.capture)[0] if self.seen else ()


def of_model(
    model: nn.Module, sites: Iterable[Site] = (), seen: Seen | None = None, batch_size: int | None = None
) -> Subject:
    """A live model, which is only read.

    Args:
        model: an eager module.
        sites: by which the layers are put in order.
        seen: one run of it.
        batch_size: in training, for each device.
    """
    modules = dict(modules_of(model))
    facts = seen.capture.facts if seen else facts_of(model)
    norms = {}
    for path, about in facts.items():
        if not (about.statistics or about.batchnorm):
            continue
        module = modules[path]
        own = {name: own_tensor(module, name) for name in NAMES}
        norms[path] = _norm(path, about.kind, own, about.eps, about.momentum, about.batches, module)
    order = [site.module for site in sites if site.module in norms]
    paths = dict.fromkeys((*(path for path in order if path is not None), *norms))
    return Subject((norms[path] for path in paths), model, seen, batch_size)


def of_tensors(
    tensors: Mapping[str, Tensor], sites: Iterable[Site], batch_size: int | None = None
) -> Subject:
    """A bare state dict.

    Args:
        tensors: by key.
        sites: the pairs of running statistics that were found in it.
        batch_size: in training, for each device.
    """
    norms = []
    for site in sites:
        stem = f"{site.name}." if site.name else ""
        own = {name: tensors.get(stem + name) for name in NAMES}
        norms.append(_norm(site.name, site.kind, own, None, None, site.batches, None))
    return Subject(norms, batch_size=batch_size)


def _norm(
    path: str,
    kind: str,
    own: Mapping[str, Tensor | None],
    eps: float | None,
    momentum: float | None,
    batches: int | None,
    module: nn.Module | None,
) -> NormLayer:
    var = own["running_var"]
    dtype = str(var.dtype).removeprefix("torch.") if var is not None else ""
    values = {name: _values(tensor) for name, tensor in own.items()}
    channels = values["running_var"].numel() if values["running_var"] is not None else None
    # A module may hold statistics for its outputs, and a weight that is no γ.
    kept = {
        name: value if value is not None and channels in (None, value.numel()) and value.numel() else None
        for name, value in values.items()
    }
    gamma, beta, mean, var = (kept[name] for name in NAMES)
    return NormLayer(path, kind, gamma, beta, mean, var, dtype, eps, momentum, batches, module)


def _values(tensor: Tensor | None) -> Tensor | None:
    """In float64 on the CPU, where every rule computes; None for what is no statistic."""
    if tensor is None or tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
        return None
    try:
        return tensor.detach().to("cpu", torch.float64).flatten()
    except (RuntimeError, NotImplementedError):  # quantised, or of a type that has no arithmetic
        return None
