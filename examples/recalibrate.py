"""Statistics that no longer fit, and what recalibrating them is worth: ``python examples/recalibrate.py``.

Two networks are averaged; the images change; the last training has batches of two. Each time the accuracy on
test images before and after, where nothing but running statistics differs.
"""

import copy

import torch
from nets import ResidualNet, mlp
from torch import Tensor, nn
from training import accuracy, digits, fit

import bntools as bn

IMAGES, TEST, LABELS, ANSWERS = digits()
LARGE, LARGE_TEST, *_ = digits(28)


def averaged(one: nn.Module, two: nn.Module, *, statistics: bool) -> nn.Module:
    """The mean of the weights of two networks; the statistics are those of one, or averaged too."""
    twin, other = copy.deepcopy(one), two.state_dict()
    for key, value in twin.state_dict().items():
        if value.is_floating_point() and (statistics or "running" not in key):
            value.copy_((value + other[key]) / 2)
    return twin


def shifted(images: Tensor) -> Tensor:
    """Half the contrast, brighter, with noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images * 0.5 + 0.4 + 0.1 * noise


def told(story: str, model: nn.Module, data: Tensor, test: Tensor) -> bool:
    """A line with the accuracy before and after; whether it has not fallen by more than a few images."""
    surgery = bn.recalibrate(model, data.split(32))
    before, after = accuracy(model, test, ANSWERS), accuracy(surgery.model, test, ANSWERS)
    first = surgery.report.first or "none"
    print(f"| {story} | {before:.1%} | {after:.1%} | {first} |")
    return after >= before - 0.01


def main() -> int:
    """Four stories; the exit code is 1 if one of them ends worse than it began."""
    torch.manual_seed(0)
    model = ResidualNet()
    fit(model, IMAGES, LABELS, epochs=12)
    halves = [copy.deepcopy(model), copy.deepcopy(model)]
    for number, half in enumerate(halves):  # each goes on with half of the data
        fit(half, IMAGES[number::2], LABELS[number::2], epochs=12, rate=5e-2)
    small = mlp()
    fit(small, LARGE, LABELS, epochs=12)
    fit(small, LARGE, LABELS, epochs=1, size=2)

    print(f"{len(TEST)} test images; the network has {accuracy(model, TEST, ANSWERS):.1%}.\n")
    print("| | before | after | drifted from |\n|---|---:|---:|---|")
    better = [
        told("the weights of two networks averaged", averaged(*halves, statistics=False), IMAGES, TEST),
        told("their statistics as well", averaged(*halves, statistics=True), IMAGES, TEST),
        told("half the contrast, brighter, with noise", model, shifted(IMAGES), shifted(TEST)),
        told("a perceptron after an epoch of batches of two", small, LARGE, LARGE_TEST),
    ]
    return 0 if all(better) else 1


if __name__ == "__main__":
    raise SystemExit(main())
