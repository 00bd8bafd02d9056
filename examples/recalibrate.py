"""What recalibrated statistics are worth, nothing else being changed: ``python examples/recalibrate.py``."""

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
    return images * 0.5 + 0.4 + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def told(story: str, model: nn.Module, data: Tensor, test: Tensor) -> bool:
    """A line with the accuracy before and after; whether it has not fallen by more than a few images."""
    surgery = bn.recalibrate(model, data.split(32))
    before, after = (accuracy(net, test, ANSWERS) for net in (model, surgery.model))
    print(f"| {story} | {before:.1%} | {after:.1%} | {surgery.report.first or 'none'} |")
    return after >= before - 0.01


def main() -> int:
    """Four stories; the exit code is how many of them end worse than they began."""
    torch.manual_seed(0)
    fit(model := ResidualNet(), IMAGES, LABELS, epochs=6)
    halves = [copy.deepcopy(model), copy.deepcopy(model)]
    for number, half in enumerate(halves):  # each goes on with half of the data
        fit(half, IMAGES[number::2], LABELS[number::2], epochs=6, rate=5e-2)
    fit(small := mlp(), LARGE, LABELS, epochs=6)
    fit(small, LARGE, LABELS, epochs=1, size=2)

    print(f"{len(TEST)} test images; the network has {accuracy(model, TEST, ANSWERS):.1%}.\n")
    print("| | before | after | drifted from |\n|---|---:|---:|---|")
    stories = {
        "the weights of two networks averaged": (averaged(*halves, statistics=False), IMAGES, TEST),
        "their statistics as well": (averaged(*halves, statistics=True), IMAGES, TEST),
        "half the contrast, brighter, with noise": (model, shifted(IMAGES), shifted(TEST)),
        "a perceptron after an epoch of batches of two": (small, LARGE, LARGE_TEST),
    }
    return sum(not told(story, *nets) for story, nets in stories.items())


if __name__ == "__main__":
    raise SystemExit(main())
