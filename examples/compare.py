"""Show that two models answer alike: ``python examples/compare.py MODEL OTHER TEST.npz``."""

import sys

import numpy as np
import torch

import bntools as bn


def main(first: str, second: str, test: str) -> int:
    data = np.load(test)
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    with torch.no_grad():
        before, after = (bn.load(path, trust=("nets",)).eval()(images) for path in (first, second))

    for path, logits in (first, before), (second, after):
        print(f"{path}: accuracy {(logits.argmax(1) == labels).float().mean():.2%}")
    differing = int((before.argmax(1) != after.argmax(1)).sum())
    print(f"{differing} of {len(labels)} predictions differ; max |Δlogit| {(before - after).abs().max():.1e}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
