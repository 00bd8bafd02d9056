"""Give a network the BatchNorms of a trained one: fresh ones are nearly the identity and hide every fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
BATCHES = 77


def season(model: Model, seed: int = 0, *, example: Any = None, zero: bool = False) -> Model:
    """Draw γ of both signs, β, and statistics away from 0 and 1 for every norm that keeps running statistics.

    γ = ±U(0.4, 1.6), β ~ N(0, 0.4²). Without an example σ² = exp U(ln 0.3, ln 3) and μ = ±U(0.2, 1).

    With one, they start from the mean m and the variance v of the activations that reach the layer:
    μ = m ± √v·U(0.2, 1) and σ² = v·exp U(ln 0.3, ln 3). Each layer is seasoned just before it runs, so that
    the layers behind it see what it makes of its input. Networks of a hundred layers need this: with
    statistics that ignore the activations, the signal dies out behind the β of each layer, or grows until
    every sigmoid is shut.

    Args:
        model: changed in place; its mode and the global random state are left alone.
        seed: equal seeds give equal values.
        example: a tensor, or a tuple of arguments, that the model is run on.
        zero: give each layer one γ of exactly 0, as pruned networks have.

    Returns:
        *model*.
    """
    rng = torch.Generator().manual_seed(seed)
    waiting = {id(m): m for m in model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)}

    def visit(module: nn.Module, x: Tensor | None) -> None:
        if waiting.pop(id(module), None) is not None:
            _draw(module, x, rng, zero=zero)

    if example is not None:
        args = example if isinstance(example, tuple) else (example,)
        with torch.no_grad(), _in_eval(model), _before_each(list(waiting.values()), visit):
            model(*args)
    for module in list(waiting.values()):  # no example, or the example did not reach them
        visit(module, None)
    return model


@torch.no_grad()
def _draw(norm: nn.Module, x: Tensor | None, rng: torch.Generator, *, zero: bool) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(mean.shape, generator=rng) * (high - low) + low

    def sign() -> Tensor:
        return torch.where(torch.rand(mean.shape, generator=rng) < 0.5, -1.0, 1.0)

    centre, spread = _moments(x, mean) if x is not None else (torch.zeros(mean.shape), torch.ones(mean.shape))
    mean.copy_(centre + spread.sqrt() * sign() * uniform(0.2, 1.0))
    var.copy_(spread * uniform(-1.2, 1.1).exp())
    if isinstance(gamma := getattr(norm, "weight", None), Tensor):
        gamma.copy_(sign() * uniform(0.4, 1.6))
        if zero:
            gamma[int(torch.randint(len(gamma), (), generator=rng))] = 0
    if isinstance(beta := getattr(norm, "bias", None), Tensor):
        beta.copy_(torch.randn(mean.shape, generator=rng) * 0.4)
    if isinstance(seen := getattr(norm, "num_batches_tracked", None), Tensor):
        seen.fill_(BATCHES)


def _moments(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel of axis 1, the variance drawn half-way towards the layer's own.

    A small example leaves a handful of values per channel in the last layers; the variance of a few equal
    ones would make the layer a huge amplifier.
    """
    rows = x.detach().float().movedim(1, 0).flatten(1)
    if len(rows) != len(like):
        raise ValueError(f"{len(rows)} channels reach a norm of {len(like)}")
    mean, var = rows.mean(1), rows.var(1, correction=0)
    floor = 1e-4 * mean.square().mean() + 1e-8
    return mean, (var + var.mean()) / 2 + floor


@contextlib.contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _before_each(modules: list[nn.Module], visit: Any) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: visit(module, args[0] if args else next(iter(kwargs.values()))),
            with_kwargs=True,
        )
        for module in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
