"""Ship folded weights without pickle, and load them elsewhere: ``python examples/replay.py``."""

import tempfile
from pathlib import Path

import torch
from nets import ResidualNet
from training import digits, trained

import bntools as bn

IMAGES, *_ = digits()


def main() -> int:
    """The exit code is 1 if a bit differs, or the plan is carried out on a network that it is not for."""
    surgery = bn.fold(trained(), IMAGES[:8])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.folded.safetensors"
        bn.save(surgery, path)
        print(f"{path.name}: weights, and the plan of {len(surgery.plan.edits)} folds")

        # Elsewhere there are the class and the file; the weights of this network are random.
        same = bn.replay(path, ResidualNet().eval())
        equal = torch.equal(same(IMAGES), surgery.model(IMAGES))
        print(f"replayed onto a fresh network: {'the same bits' if equal else 'other outputs'}")

        try:
            bn.replay(path, ResidualNet(channels=16).eval())
        except bn.BntoolsError as error:
            print(f"onto one of 16 channels: {type(error).__name__}: {str(error).splitlines()[0]}")
            refused = True
        else:
            refused = False
    return 0 if equal and refused else 1


if __name__ == "__main__":
    raise SystemExit(main())
