"""How far a model that is another function on purpose is from the one that it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from bntools.core.leaves import tensors_of
from bntools.core.untouched import untouched
from bntools.errors import BntoolsError, CaptureError, in_a_line


@dataclass(frozen=True, slots=True)
class Change:
    """The difference of two models in eval, ``‖new − old‖/‖old‖`` in each place.

    Args:
        layers: of each module that was swapped, what it returns, by its path; those below are swapped too.
        output: of all that the model returns; None if nothing was measured.
        inputs: what it was measured on.
        samples: on how many the new norms were fitted, 0 if on none.
        steps: for how many they were tuned.
        tuned: the difference of the outputs on data before and after that; None without.
    """

    layers: tuple[tuple[str, float], ...] = ()
    output: float | None = None
    inputs: str = ""
    samples: int = 0
    steps: int = 0
    tuned: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """Something to run models on.

    Args:
        text: what, in words.
        run: returns what a model makes of it.
    """

    text: str
    run: Callable[[nn.Module], Any]


def change_between(old: nn.Module, new: nn.Module, paths: Sequence[str], trial: Trial | None) -> Change:
    """Run both models, in eval.

    Args:
        old, new: models whose modules have the same paths; they are as they were afterwards.
        paths: of the modules to look at.
        trial: what to run them on; None to measure nothing.

    Raises:
        CaptureError: if one does not run on it.
    """
    if trial is None:
        return Change()
    before, after = (_seen(model, paths, trial) for model in (old, new))
    layers = tuple((path, apart(before[path], after[path])) for path in paths if path in before)
    return Change(layers, apart(before[None], after[None]), trial.text)


@dataclass(slots=True)
class Coming:
    """What comes to a module.

    Args:
        shape: of its input; of the smallest, if there are several.
        convs: the paths of the convolutions whose outputs they are.
    """

    shape: tuple[int, ...]
    convs: set[str]


def coming(model: nn.Module, paths: Sequence[str], trial: Trial | None) -> dict[str, Coming]:
    """What comes to each of the modules, by path.

    Raises:
        CaptureError: if the model does not run.
    """
    found: dict[str, Coming] = {}
    made = WeakIdKeyDictionary()

    def look(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if x is None:
            return
        here = found.setdefault(path, Coming(tuple(x.shape), set()))
        if x[0].numel() < math.prod(here.shape[1:]):
            here.shape = tuple(x.shape)
        if x in made:
            here.convs.add(made[x])

    def keep(path: str, module: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            made[result] = path

    if trial is None or not paths:
        return found
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(partial(look, path), with_kwargs=True)
        for path in paths
    ]
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd):
            hooks.append(module.register_forward_hook(partial(keep, path)))
    _run(model, trial, hooks)
    return found


def _seen(model: nn.Module, paths: Sequence[str], trial: Trial) -> dict[str | None, list[Tensor]]:
    """What each of the modules returns in its last call, and the model, under None."""
    seen: dict[str | None, list[Tensor]] = {}

    def keep(path: str, module: nn.Module, args: Any, result: Any) -> None:
        seen[path] = [tensor.detach().clone() for tensor in tensors_of(result)]

    hooks = [model.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    seen[None] = list(tensors_of(_run(model, trial, hooks)))
    return seen


def _run(model: nn.Module, trial: Trial, hooks: Sequence[RemovableHandle]) -> Any:
    """Run a model in eval, and take the hooks off it."""
    try:
        with untouched(model):
            model.eval()
            return trial.run(model)
    except BntoolsError:
        raise
    except Exception as error:
        why = in_a_line(error)
        raise CaptureError(
            f"the model does not run on {trial.text}: {why}", todo="give inputs that it runs on"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def apart(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    """``‖new − old‖/‖old‖`` over all values of the floating tensors that have the same shape in both."""
    both = [(a, b) for a, b in zip(old, new, strict=False) if a.is_floating_point() and a.shape == b.shape]
    if not both:
        return 0.0
    off = torch.stack([(b.double() - a.double()).square().sum().cpu() for a, b in both]).sum()
    size = torch.stack([a.double().square().sum().cpu() for a, _ in both]).sum()
    return float((off / size.clamp_min(1e-300)).sqrt())
