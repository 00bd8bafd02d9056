"""Call the BatchNorms that a model spells out as arithmetic by one operator, so that an export keeps them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bntools.core.calls import Capture, Stored
from bntools.core.compute import get_tensor
from bntools.core.exact import copied
from bntools.core.fit import registered

_SLOTS = ("weight", "bias", "running_mean", "running_var")


class _Frozen(nn.Module):
    """``batch_norm`` with the tensors of another module."""

    def __init__(self, tensors: dict[str, Tensor], eps: float) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)  # type: ignore[arg-type]


def written_plainly(model: nn.Module, capture: Capture) -> nn.Module:
    """The model, or a copy in which no BatchNorm is spelt out.

    Args:
        model: left alone.
        capture: of it.
    """
    if not capture.spelt:
        return model
    plain = copied(model)
    for call in capture.calls:
        if call.op != "batch_norm" or call.owner not in capture.spelt:
            continue
        if call.outputs[0].dtype == call.args["input"].dtype:  # arithmetic may widen, the operator does not
            tensors = {
                name: tensor
                for name in _SLOTS
                if isinstance(slot := call.args[name], Stored)
                and (tensor := get_tensor(model, slot.keys[0])) is not None
            }
            frozen = _Frozen(
                {name: t.detach() for name, t in tensors.items()}, float(call.args["eps"])
            ).eval()
            for path in capture.facts[call.owner].paths:
                parent, _, name = path.rpartition(".")
                owner = registered(plain, parent)
                if owner is not None:
                    owner._modules[name] = frozen
    return plain
