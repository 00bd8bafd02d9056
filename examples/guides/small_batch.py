"""GroupNorm for BatchNorm in small batches: ``python examples/guides/small_batch.py [--plot curves.svg]``.

First what is left of the accuracy right after the swap: in closed form, fitted to data, and tuned; and with γ
and β copied or fresh. Then how both train at batch size 2, on networks whose maps are large or small.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntools as bn

sys.path.append(str(Path(__file__).parents[1]))  # the examples are scripts, no package
from nets import Block, ResidualNet
from training import accuracy, digits, fit

IMAGES, TEST, LABELS, ANSWERS = digits()
GROUPS = (1, 4, 8, "auto", 32)
NORMS = "BatchNorm", "GroupNorm", "GroupNorm, standardised"
STEPS, EVERY, SEEDS = 1200, 200, 3

Curves = dict[tuple[int, str], list[list[float]]]
"""By the size of the maps and the norm, the accuracies of each seed."""


class NarrowNet(nn.Module):
    """As `ResidualNet`, but behind the first block maps are *side* × *side*."""

    def __init__(self, side: int, channels: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        pool = nn.AdaptiveAvgPool2d(side)
        self.blocks = nn.Sequential(Block(channels), pool, Block(channels), Block(channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).amax((2, 3)))


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


def turned(images: Tensor) -> Tensor:
    """By a quarter: what a network that has learned digits has to learn anew."""
    return images.transpose(2, 3).flip(3)


def curve(model: nn.Module, seed: int) -> list[float]:
    """Train on turned digits, two at a time; the accuracy in eval every so many steps."""
    model, seen = copy.deepcopy(model), [accuracy(model.eval(), turned(TEST), ANSWERS)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    for step in range(1, STEPS + 1):
        pair = torch.randint(len(IMAGES), (2,), generator=order)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(turned(IMAGES[pair])), LABELS[pair]).backward()
        optimizer.step()
        if step % EVERY == 0:
            seen.append(accuracy(model.eval(), turned(TEST), ANSWERS))
    return seen


def after_the_swap() -> bool:
    """The table; whether every swap keeps what it should."""
    torch.manual_seed(0)
    model, batches, fine = ResidualNet(), IMAGES.split(64), True
    fit(model, IMAGES, LABELS, epochs=12)
    torch.set_num_threads(1)  # from here on batches are too small for two
    whole = accuracy(model, TEST, ANSWERS)
    print(f"{len(TEST)} test images; the network has {whole:.1%} with BatchNorm.\n")
    print("| groups | swapped | with data | and 50 steps | γ and β copied | fresh | outputs differ by |")
    print("|---|" + "---:|" * 6)
    for groups in GROUPS:
        swapped = bn.swap(model, groups=groups, inputs=IMAGES[:64])
        nets = [
            swapped.model,
            bn.swap(model, groups=groups, data=batches).model,
            bn.swap(model, groups=groups, data=batches, tune=50).model,
            *(with_affine(swapped.model, model, copied=copied) for copied in (True, False)),
        ]
        right = [accuracy(net, TEST, ANSWERS) for net in nets]
        print(f"| {groups} | {' | '.join(f'{each:.1%}' for each in right)} | {swapped.report.output:.2f} |")
        fine &= right[0] >= (0.97 if groups == "auto" else 0.95) and right[1] >= right[0]
        fine &= right[2] >= whole - 0.005
    return fine


def at_batch_size_two() -> Curves:
    """The curves of each size of maps and norm, told as the mean over the seeds."""
    curves: Curves = {}
    print(
        f"\nTurned digits, two at a time; accuracy after 0, {EVERY}, … {STEPS} steps, mean of {SEEDS} seeds\n"
    )
    print("| maps | norm |" + "".join(f" {step} |" for step in range(0, STEPS + 1, EVERY)))
    print("|---|---|" + "---:|" * (STEPS // EVERY + 1))
    for side in (8, 2, 1):
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model = NarrowNet(side)
            fit(model, IMAGES, LABELS, epochs=12)
            swaps = [
                bn.swap(model, data=IMAGES.split(64), weight_standardization=standardized).model
                for standardized in (False, True)
            ]
            for norm, net in zip(NORMS, (model, *swaps), strict=True):
                curves.setdefault((side, norm), []).append(curve(net, seed))
        for norm in NORMS:
            told = [f"{mean:.0%}" for mean in mean_of(curves[side, norm])]
            spread = 50 * (max(ends(curves[side, norm])) - min(ends(curves[side, norm])))
            print(f"| {side}×{side} | {norm} | " + " | ".join(told) + f" ± {spread:.0f} |")
    return curves


def mean_of(seeds: list[list[float]]) -> list[float]:
    """The mean over the seeds, step by step."""
    return [sum(each) / len(each) for each in zip(*seeds, strict=True)]


def ends(seeds: list[list[float]]) -> list[float]:
    """The last accuracy of each seed."""
    return [seen[-1] for seen in seeds]


def draw(curves: Curves, path: Path) -> None:
    """One picture for each size of maps: the mean over the seeds, and what they lie between."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "small batch"
    from matplotlib import pyplot as plt

    sides, steps = list(dict.fromkeys(side for side, _ in curves)), range(0, STEPS + 1, EVERY)
    figure, axes = plt.subplots(1, len(sides), figsize=(9, 2.8), sharey=True, layout="constrained")
    for side, ax in zip(sides, axes, strict=True):
        for norm, style in zip(NORMS, ("o-", "s--", "^:"), strict=True):
            seeds = curves[side, norm]
            (line,) = ax.plot(steps, mean_of(seeds), style, label=norm, markersize=4)
            low, high = ([end(each) for each in zip(*seeds, strict=True)] for end in (min, max))
            ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        ax.set(title=f"maps of {side}×{side}", xlabel="steps of two samples", ylim=(0, 1))
    axes[0].set_ylabel("accuracy in eval")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    """The exit code is 1 if a swap loses more than it may, or a BatchNorm trains better on maps of one value
    than a standardised GroupNorm.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="also draw the curves")
    asked = parser.parse_args()
    fine = after_the_swap()
    curves = at_batch_size_two()
    if asked.plot:
        draw(curves, asked.plot)
    small = {norm: ends(curves[1, norm]) for norm in NORMS}
    return 0 if fine and min(small["GroupNorm, standardised"]) > max(small["BatchNorm"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
