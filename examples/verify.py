"""Two networks that should be the same, and where they begin to differ: ``python examples/verify.py``."""

import torch
from torch import nn
from training import digits, trained

import bntools as bn

IMAGES, *_ = digits()


def without_eps(model: nn.Module) -> nn.Module:
    """Ported to another framework, whose BatchNorm has another default eps."""
    model.blocks[1].bn1.eps = 1e-3
    return model


def rounded(model: nn.Module) -> nn.Module:
    """Through bfloat16 and back."""
    return model.bfloat16().float()


def main() -> int:
    """The exit code is 1 if a verdict, or a place, is wrong."""
    model, fine = trained(), True
    others = {
        "folded": (bn.fold(model, IMAGES[:8]).model, bn.Verdict.PASSED, ""),
        "another eps": (without_eps(trained()), bn.Verdict.FAILED, "blocks.1.bn1"),
        "through bfloat16": (rounded(trained()), bn.Verdict.FAILED, "stem.0"),
    }
    for name, (other, verdict, layer) in others.items():
        report = bn.verify(model, other, IMAGES[:8], exact=False)
        place = report.place.module if report.place else ""
        print(f"{name}: {report.verdict}, off by {report.error:.1e} of the scale")
        if place:
            print(f"  it begins at {place}")
        fine &= (report.verdict, place) == (verdict, layer)
    print(f"at most {report.tolerance:.1e} can be rounding: ten times the model's own")
    close = [torch.allclose(model(IMAGES[:8]), other(IMAGES[:8]), atol=1e-2) for other, *_ in others.values()]
    print(f"torch.allclose(…, atol=1e-2) says {', '.join('yes' if each else 'no' for each in close)}")
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
