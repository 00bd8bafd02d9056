"""How far a model that is another function on purpose is from the one that it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.capture import first_line
from bntools.core.example import Example
from bntools.core.leaves import tensors_of
from bntools.core.untouched import untouched
from bntools.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Change:
    """The difference of two models in eval, ``‖new − old‖/‖old‖`` in each place.

    Args:
        layers: of each module that was swapped, what it returns, by its path; those below are swapped too.
        output: of all that the model returns; None if nothing was measured.
        inputs: what it was measured on.
    """

    layers: tuple[tuple[str, float], ...] = ()
    output: float | None = None
    inputs: str = ""


def change_between(old: nn.Module, new: nn.Module, paths: Sequence[str], example: Example | None) -> Change:
    """Run both models on an example, in eval.

    Args:
        old, new: models whose modules have the same paths; they are as they were afterwards.
        paths: of the modules to look at.
        example: what to run them on; None to measure nothing.

    Raises:
        CaptureError: if one does not run on it.
    """
    if example is None:
        return Change()
    before, after = (_seen(model, paths, example) for model in (old, new))
    layers = tuple((path, _apart(before[path], after[path])) for path in paths if path in before)
    return Change(layers, _apart(before[None], after[None]), f"{example} ({example.origin})")


def _seen(model: nn.Module, paths: Sequence[str], example: Example) -> dict[str | None, list[Tensor]]:
    """What each of the modules returns in its last call, and the model, under None."""
    seen: dict[str | None, list[Tensor]] = {}

    def keep(path: str, module: nn.Module, args: Any, result: Any) -> None:
        seen[path] = [tensor.detach().clone() for tensor in tensors_of(result)]

    hooks = [model.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    try:
        with untouched(model):
            model.eval()
            seen[None] = list(tensors_of(example.fresh()(model)))
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise CaptureError(
            f"the model does not run on {example} ({example.origin}): {why}",
            todo="give inputs that it runs on",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _apart(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    both = [(a, b) for a, b in zip(old, new, strict=False) if a.is_floating_point() and a.shape == b.shape]
    if not both:
        return 0.0
    off = torch.stack([(b.double() - a.double()).square().sum().cpu() for a, b in both]).sum()
    size = torch.stack([a.double().square().sum().cpu() for a, _ in both]).sum()
    return float((off / size.clamp_min(1e-300)).sqrt())
