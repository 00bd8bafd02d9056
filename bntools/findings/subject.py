"""What the rules look at: the layers with their numbers, and what one run showed. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from bntools.core.arrays import StateTensor
from bntools.core.plan import Plan, Site
from bntools.findings.layer import NAMES, NormLayer, numbers_of
from bntools.findings.passed import Pass

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bntools.core.calls import Capture
    from bntools.core.graph import Graph
    from bntools.core.sites import BatchNorm


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
        passed: what a pass over data showed, None without data.
        decays: the weight decay of each parameter that an optimizer has, by key; None without one.
    """

    def __init__(
        self,
        norms: Iterable[NormLayer],
        model: nn.Module | None = None,
        seen: Seen | None = None,
        batch_size: int | None = None,
        passed: Pass | None = None,
        decays: Mapping[str, float] | None = None,
    ) -> None:
        self.norms = tuple(norms)
        self.model, self.seen, self.batch_size = model, seen, batch_size
        self.passed, self.decays = passed, decays

    @cached_property
    def by_path(self) -> dict[str, NormLayer]:
        return {norm.path: norm for norm in self.norms}

    @cached_property
    def graph(self) -> Graph | None:
        if self.seen is None:
            return None
        from bntools.core.graph import Graph  # tensors alone do without it

        return Graph(self.seen.capture)

    @cached_property
    def sites(self) -> tuple[BatchNorm, ...]:
        """The calls of BatchNorms in the run."""
        if self.seen is None:
            return ()
        from bntools.core.sites import find_sites  # whoever has a run has torch

        return find_sites(self.seen.capture)[0]


def of_tensors(
    tensors: Mapping[str, StateTensor],
    sites: Iterable[Site],
    batch_size: int | None = None,
    decays: Mapping[str, float] | None = None,
) -> Subject:
    """A bare state dict.

    Args:
        tensors: by key.
        sites: the pairs of running statistics that were found in it.
        batch_size: in training, for each device.
        decays: as in `Subject`.
    """
    norms = []
    for site in sites:
        stem = f"{site.name}." if site.name else ""
        (gamma, beta, mean, var), dtype = numbers_of({name: tensors.get(stem + name) for name in NAMES})
        norms.append(NormLayer(site.name, site.kind, gamma, beta, mean, var, dtype, batches=site.batches))
    return Subject(norms, batch_size=batch_size, decays=decays)
