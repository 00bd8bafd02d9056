"""Fine-tune in batches of two, live and frozen: ``python examples/transfer.py``.

A perceptron learns the digits 0 to 4, then 5 to 9 from 120 images. `guides/transfer.py` measures it for more
networks, ways and seeds.
"""

import torch
from nets import mlp
from torch import nn
from training import accuracy, digits, fit

import bntools as bn

IMAGES, TEST, LABELS, ANSWERS = digits(28)
NEW, EXAM = LABELS >= 5, ANSWERS >= 5


def tuned(model: nn.Module) -> float:
    """The accuracy in % on test images of the new digits, after three times through the 120."""
    torch.manual_seed(0)
    fit(model, IMAGES[NEW][:120], LABELS[NEW][:120] - 5, epochs=3, size=2, rate=3.5e-4)
    return 100 * accuracy(model, TEST[EXAM], ANSWERS[EXAM] - 5)


def main() -> int:
    """The exit code is 1 if a frozen BatchNorm moves, or is no better here."""
    torch.manual_seed(0)
    model = mlp()
    fit(model, IMAGES[~NEW], LABELS[~NEW], epochs=6)
    model[-1] = nn.Linear(256, 5)

    surgery = bn.freeze(model)
    frozen = surgery.model
    mean = frozen[2].running_mean.clone()
    live, cold = tuned(model), tuned(frozen)  # fit calls train(), which does not undo the freeze
    moved = not torch.equal(mean, frozen[2].running_mean)
    print(f"{len(surgery.plan.edits)} BatchNorms frozen; their statistics moved: {'yes' if moved else 'no'}")
    print(f"5 to 9 in batches of two: {live:.0f} % with live BatchNorms, {cold:.0f} % with frozen ones")

    thawed = bn.unfreeze(frozen).model.train()
    print(f"unfrozen, a BatchNorm trains again: {thawed[2].training}")
    return 0 if cold > live + 5 and not moved and thawed[2].training else 1


if __name__ == "__main__":
    raise SystemExit(main())
