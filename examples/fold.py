"""Fold a network in which one BatchNorm has to stay, and read the proof: ``python examples/fold.py``."""

import torch
from nets import ResidualNet
from torch import Tensor, nn
from training import accuracy, digits, fit

import bntools as bn

IMAGES, TEST, LABELS, ANSWERS = digits()


class Normalised(nn.Module):
    """A network behind a BatchNorm that normalises its input: a convolution that pads with zeros reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.BatchNorm2d(1)
        self.body = ResidualNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.entry(x))


def main() -> int:
    """The exit code is 1 if another BatchNorm stays, or an answer changes."""
    torch.manual_seed(0)
    model = Normalised()
    fit(model, IMAGES, LABELS, epochs=4)
    surgery = bn.fold(model, IMAGES[:16])  # the model itself stays as it was
    report = surgery.report
    print(f"{len(surgery.plan.edits)} of {len(surgery.plan.edits) + len(surgery.plan.refusals)} fold")
    for refusal in surgery.plan.refusals:
        print(f"{refusal.site.name} stays, {refusal.reason}: {refusal.detail}")
        print(f"  {refusal.remedy}")
    print(f"\n{report.verdict}: float64 differs by {report.error:.1e} of the scale,")
    print(f"and by {report.power:.1e} had the BatchNorms just been left out")
    before, after = accuracy(model, TEST, ANSWERS), accuracy(surgery.model, TEST, ANSWERS)
    print(f"accuracy {before:.2%} before, {after:.2%} after")
    stays = [refusal.site.name for refusal in surgery.plan.refusals]
    return 0 if stays == ["entry"] and report.verdict is bn.Verdict.PASSED and before == after else 1


if __name__ == "__main__":
    raise SystemExit(main())
