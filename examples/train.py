"""Train a network on scikit-learn's digits, and save it: ``python examples/train.py digits|mlp [FOLDER]``.

*digits* is a residual network. *mlp* is a perceptron on images upscaled to 28 × 28, of nothing but torch.nn.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from nets import ResidualNet, mlp
from training import accuracy, digits, fit

NETS = {"digits": (ResidualNet, 8), "mlp": (mlp, 28)}
GOAL = 0.97


def main(name: str = "digits", folder: str | None = None) -> int:
    """Write ``model.pt`` and ``test.npz``; the exit code is 1 below the goal."""
    out = Path(folder or f"build/demo/{name}")
    make, size = NETS[name]
    torch.manual_seed(0)
    model, (images, test, labels, answers) = make(), digits(size)
    fit(model, images, labels, epochs=12)
    right = accuracy(model, test, answers)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model, out / "model.pt")
    np.savez(out / "test.npz", images=test.numpy(), labels=answers.numpy())
    print(f"test accuracy {right:.2%} on {len(answers)} digits; wrote {out / 'model.pt'}")
    return 0 if right >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
