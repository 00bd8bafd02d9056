"""Train a residual network on scikit-learn's digits: ``python examples/digits.py [FOLDER]``."""

import sys
from pathlib import Path

import torch
from nets import ResidualNet
from training import train

if __name__ == "__main__":
    torch.manual_seed(0)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo/digits")
    sys.exit(train(ResidualNet(), size=8, out=out, epochs=12))
