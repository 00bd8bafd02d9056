"""A freeze that holds: what a BatchNorm has in place of its ``train``, so that no training loop undoes it."""

from __future__ import annotations

from torch import nn

AFFINE = ("weight", "bias", "mean_weight", "var_weight")
"""What is trained of a norm: γ and β, and what a SwitchableNorm has besides."""


class Frozen(nn.Module):
    """Stands in for the ``train`` of one module, and remembers how that was before.

    A module in eval mode normalises by its running statistics and leaves them alone, whatever its class does
    besides. So a module whose mode stays is frozen; nothing about its forward, class or tensors changes.
    This is a module itself since files of models may hold those and no functions, but a child of nobody:
    state dicts do not know of it.

    Args:
        owner: the module that is frozen.

    Attributes:
        stats: whether its mode stays; else it follows, and only parameters are frozen.
        mode: the one that it was told last, and has again when it is unfrozen.
        grads: of its frozen parameters, by name, whether they had gradients.
    """

    owner: nn.Module

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        vars(self)["owner"] = owner  # an attribute of type Module would become a child
        self.stats = False
        self.mode = owner.training
        self.grads: dict[str, bool] = {}

    def __call__(self, mode: bool = True) -> nn.Module:
        """What ``owner.train(mode)`` does now, and ``eval`` by way of it: its children follow as ever."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.mode = mode
        type(self.owner).train(self.owner, mode)
        if self.stats:
            self.owner.training = False
        return self.owner


def frozen(module: nn.Module) -> Frozen | None:
    """How a module is frozen, None if it is not."""
    found = vars(module).get("train")
    return found if isinstance(found, Frozen) else None


def affine_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained of a norm, by name, as far as it has that."""
    own = {name: module._parameters.get(name) for name in AFFINE}
    return {name: tensor for name, tensor in own.items() if isinstance(tensor, nn.Parameter)}


def freeze_(module: nn.Module, *, stats: bool = True, affine: bool = True) -> None:
    """Freeze a module in place: its statistics, its γ and β, or all.

    Args:
        module: with running statistics.
        stats: normalise by them in either mode, and do not update them.
        affine: let γ and β have no gradients. Those that they hold are dropped, or weight decay would go on
            moving them.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> freeze_(norm)
        >>> norm.train()(torch.tensor([[3.0, 4.0]])).round().tolist(), norm.running_mean.tolist()
        ([[3.0, 4.0]], [0.0, 0.0])
        >>> unfreeze_(norm)
        >>> norm.training, norm.weight.requires_grad
        (True, True)
    """
    how = frozen(module) or Frozen(module)
    if stats:
        how.stats = True
        module.training = False
    if affine:
        ours = affine_of(module)
        how.grads = {name: each.requires_grad for name, each in ours.items()} | how.grads
        for parameter in ours.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    vars(module)["train"] = how


def unfreeze_(module: nn.Module) -> None:
    """Make a frozen module what it was; its mode is the one that it was told last."""
    how = frozen(module)
    if how is None:
        return
    del vars(module)["train"]
    if how.stats:
        module.training = how.mode
    for name, parameter in affine_of(module).items():
        if how.grads.get(name):  # of two layers with one γ the second found it frozen already
            parameter.requires_grad_(True)
