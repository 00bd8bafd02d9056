"""BatchNorm for GroupNorm without data, and what is left of the accuracy: ``python examples/swap.py``.

Beside it what is left with the γ and β of the BatchNorms copied, and with fresh ones.
"""

import copy

import torch
from nets import ResidualNet
from torch import nn
from training import accuracy, digits, fit

import bntools as bn

IMAGES, TEST, LABELS, ANSWERS = digits()
GROUPS = (1, 4, 8, "auto", 32)


def with_affine(model: nn.Module, old: nn.Module, *, copied: bool) -> nn.Module:
    """The swapped network with another γ and β: those of the BatchNorms, or ones and zeros."""
    twin = copy.deepcopy(model)
    for path, module in twin.named_modules():
        if isinstance(module, nn.GroupNorm):
            was = old.get_submodule(path)
            with torch.no_grad():
                module.weight.copy_(was.weight if copied else torch.ones_like(was.weight))
                module.bias.copy_(was.bias if copied else torch.zeros_like(was.bias))
    return twin


def main() -> int:
    """The exit code is 1 if a swap loses more than the aim allows."""
    torch.manual_seed(0)
    model = ResidualNet()
    fit(model, IMAGES, LABELS, epochs=12)
    print(f"{len(TEST)} test images; the network has {accuracy(model, TEST, ANSWERS):.1%} with BatchNorm.\n")
    print("| groups | swapped | γ and β copied | fresh | outputs differ by |\n|---|---:|---:|---:|---:|")
    fine = True
    for groups in GROUPS:
        swapped = bn.swap(model, groups=groups, inputs=IMAGES[:64])
        nets = [
            swapped.model,
            *(with_affine(swapped.model, model, copied=copied) for copied in (True, False)),
        ]
        right = [accuracy(net, TEST, ANSWERS) for net in nets]
        print(f"| {groups} | {' | '.join(f'{each:.1%}' for each in right)} | {swapped.report.output:.2f} |")
        fine = fine and right[0] >= (0.97 if groups == "auto" else 0.95)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
