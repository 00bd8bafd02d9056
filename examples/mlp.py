"""Train a perceptron on the digits, upscaled to 28 × 28: ``python examples/mlp.py [FOLDER]``."""

import sys
from pathlib import Path

import torch
from nets import mlp
from training import train

if __name__ == "__main__":
    torch.manual_seed(0)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo/mlp")
    sys.exit(train(mlp(), size=28, out=out, epochs=12))
