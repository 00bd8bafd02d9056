"""Break a network in four ways, and let inspect say what is wrong: ``python examples/find_faults.py``."""

import torch
from training import digits, trained

import bntools as bn

IMAGES, *_ = digits()


def broken() -> torch.nn.Module:
    """What happens to BatchNorms on their way: by hand, by a mistake in a script, in other arithmetic."""
    model = trained()
    with torch.no_grad():
        model.stem[1].running_var[3] = -1e-3  # computed as E[x²] − E[x]² in float32
        model.blocks[0].bn1.weight[:4] = 0  # pruned, and the channels are still there
        model.blocks[0].bn2.running_mean += 5  # statistics of other data
    model.blocks[1].bn1.momentum = 0.0  # somebody's way to freeze, which in training is none
    return model


def main() -> int:
    """The exit code is 1 if the sound network has an error, or not every broken layer is named."""
    sound = bn.inspect(trained(), IMAGES[:64], data=IMAGES.split(64))
    census = bn.inspect(broken(), IMAGES[:64], data=IMAGES.split(64))
    print(f"{len(census.sites)} calls of BatchNorm; {len(sound.findings)} findings before, now:\n")
    for finding in census.findings:
        print(f"{finding.severity:8} {finding.rule}  {finding.layer}: {finding.detail}")
    named = {finding.layer for finding in census.findings}
    wanted = {"stem.1", "blocks.0.bn1", "blocks.0.bn2", "blocks.1.bn1"}
    return 0 if wanted <= named and not any(f.severity == "error" for f in sound.findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
