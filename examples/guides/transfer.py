"""Freeze, recalibrate or swap for small batches: ``python examples/guides/transfer.py [CONTRAST]``.

Two networks learn the digits 0 to 4 and are fine-tuned on 120 images of 5 to 9: as they are, and paler. In a
batch of two a BatchNorm of the perceptron meets 2 values for each channel, one of the residual network 128.
"""

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntools as bn

sys.path.append(str(Path(__file__).parents[1]))  # the examples are scripts, no package
from nets import ResidualNet, mlp
from training import accuracy, digits

Column = tuple[str, str, int]  # the network, the images, the size of the batches
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {"perceptron": (mlp, 28), "residual": (ResidualNet, 8)}
COLUMNS = [(net, domain, size) for net in NETS for domain in ("same", "paler") for size in (2, 4)]
SEEDS = (0, 1, 2)
DRIFT = "divergence of the first BatchNorm"


def paler(images: Tensor, contrast: float) -> Tensor:
    """Less contrast, brighter, with noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return contrast * (images + 0.2 * noise) + 0.8 * (1 - contrast)


def trained(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, size: int = 64) -> nn.Module:
    """A copy after some epochs, in eval; one thread, since with two of them each waits for the other."""
    torch.set_num_threads(1)
    model = copy.deepcopy(model)
    rate, steps = 2e-3 * (size / 64) ** 0.5, -(-len(images) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def ways(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[str, nn.Module]]:
    """The model after each way of fine-tuning it; the batches and the rates are the same for all."""

    def tuned(model: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return trained(model, images, labels, epochs=3, size=size)

    data, some = images.split(40), images[:8]
    adapted = bn.recalibrate(model, data).model
    plain, frozen = tuned(model), tuned(bn.freeze(model).model)
    yield "plain", plain
    yield "plain, recalibrated at the end", bn.recalibrate(plain, data).model
    yield "frozen", frozen
    yield "frozen, recalibrated at the end", bn.recalibrate(frozen, data, include_frozen=True).model
    yield "recalibrated, then frozen", tuned(bn.freeze(adapted).model)
    yield "swapped", tuned(bn.swap(model, inputs=some).model)
    yield "recalibrated, then swapped", tuned(bn.swap(adapted, inputs=some).model)


def measured(net: str, seed: int, contrast: float) -> Iterator[tuple[str, Column, float]]:
    """For each column of that network the drift, and for each way the accuracy on test images, in percent."""
    make, side = NETS[net]
    images, test, labels, answers = digits(side)
    torch.manual_seed(seed)
    model = trained(make(), images[labels < 5], labels[labels < 5], epochs=12)
    path, head = [each for each in model.named_modules() if isinstance(each[1], nn.Linear)][-1]
    model.set_submodule(path, nn.Linear(head.in_features, 5))
    few = torch.randperm(int((labels >= 5).sum()))[:120]
    images, labels = images[labels >= 5][few], labels[labels >= 5][few] - 5
    test, answers = test[answers >= 5], answers[answers >= 5] - 5
    for column in COLUMNS:
        if column[0] == net:
            data, exam = (x if column[1] == "same" else paler(x, contrast) for x in (images, test))
            yield DRIFT, column, bn.recalibrate(model, data.split(40)).report.layers[0].divergence
            for way, result in ways(model, data, labels, column[2]):
                yield way, column, 100 * accuracy(result, exam, answers)


def holds(right: dict[str, dict[Column, float]]) -> bool:
    """Whether docs/transfer.md is right about these accuracies."""
    plain, _, frozen, late, first, swapped, second = right.values()
    few, many = ([column for column in COLUMNS if column[:2] == (net, "same")] for net in NETS)
    far = [column for column in COLUMNS if column[1] == "paler"]
    return (
        all(way[few[0]] > plain[few[0]] + 10 for way in (frozen, first, swapped))
        and all(abs(frozen[each] - plain[each]) < 8 for each in many)
        and all(late[each] < frozen[each] - 1 for each in few + many)
        and mean(first[each] - frozen[each] for each in far) > 1
        and mean(second[each] - swapped[each] for each in far) > 1
        and all(plain[each] > frozen[each] for each in far if each[2] == 4)
    )


def main(contrast: float = 0.2) -> int:
    """The exit code is 1 if the page is wrong."""
    print(f"Accuracy in %, the mean of {len(SEEDS)} seeds and half of their range.\n", flush=True)
    table: dict[str, dict[Column, list[float]]] = defaultdict(lambda: defaultdict(list))
    for net in NETS:
        for seed in SEEDS:
            for way, column, right in measured(net, seed, contrast):
                table[way][column].append(right)
    drift = table.pop(DRIFT)
    print("| | " + " | ".join(f"{net}, {domain}, {size}" for net, domain, size in COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for way, cells in table.items():
        told = [f"{mean(cells[c]):.0f} ± {(max(cells[c]) - min(cells[c])) / 2:.0f}" for c in COLUMNS]
        print(f"| {way} | {' | '.join(told)} |")
    print(f"| {DRIFT} | {' | '.join(f'{mean(drift[c]):.1f}' for c in COLUMNS)} |")
    return 0 if holds({way: {c: mean(cells[c]) for c in COLUMNS} for way, cells in table.items()}) else 1


if __name__ == "__main__":
    raise SystemExit(main(*map(float, sys.argv[1:])))
