"""Models with trouble, for the page of `inspect` to show.

``python -m tests.report.troubled PAGE [PICTURE]`` writes that of a resnet18, and by Chromium a picture of it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from torch import nn

import bntools as bn
from bntools.findings.census import Census
from bntools.report.html import page, write_page
from bntools.report.layers import layers_of
from tests import zoo
from tests.season import season


class Tall(nn.Module):
    """Many BatchNorms in a row, of which each second stays: it has a ReLU in front of it."""

    def __init__(self, count: int, width: int = 16) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in range(0, count, 50):
            blocks = nn.Sequential()
            for at in range(min(50, count - stage)):
                front = nn.ReLU() if at % 2 else nn.Conv2d(width, width, 1, bias=False)
                blocks.append(nn.Sequential(front, nn.BatchNorm2d(width)))
            self.stages.append(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


@torch.no_grad()
def resnet18() -> tuple[nn.Module, torch.Tensor]:
    """With an error in two layers, warnings in three, notes in two, and a BatchNorm that stays."""
    model, example = zoo.build("torchvision:resnet18")
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}
    layers["layer2.0.bn1"].running_var[:3] = torch.tensor([-0.2, -1e-3, -4.0])
    layers["layer2.1.bn2"].running_mean[7] = torch.nan
    layers["layer3.0.bn2"].momentum = 0.9
    layers["layer3.1.bn1"].running_var.mul_(1e-9)
    layers["layer4.0.bn1"].weight[5] = 400.0
    layers["layer4.1.bn2"].weight.zero_()
    model.layer1[0].relu = nn.Sigmoid()
    model.layer3[1].bn2 = nn.Sequential(nn.Sigmoid(), layers["layer3.1.bn2"])
    return model, example


def tall(count: int) -> tuple[nn.Module, torch.Tensor]:
    """Of *count* sites, each ninth with an error and each seventh with a warning."""
    model = season(Tall(count)).eval()
    for at, each in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        if at % 9 == 4:
            each.running_var[1] = -1.0
        if at % 7 == 3:
            each.momentum = 0.9
    return model, torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))


def shown(model: nn.Module, example: torch.Tensor, name: str = "model.pt") -> tuple[Census, str]:
    """Its census, and the page of that."""
    census = bn.inspect(model, example)
    told = page(
        census, layers_of(model, census.sites), model=name, what="a pickled module", versions={"torch": "2"}
    )
    return census, told


def picture(page: Path, file: Path, *, width: int = 1280, height: int = 1000, scheme: str = "light") -> None:
    """The first screen of it, in few colours: a picture of a page needs no more."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        shown.goto(page.resolve().as_uri())
        shown.screenshot(path=file)
        browser.close()
    with Image.open(file) as image:
        image.convert("RGB").quantize(256).save(file, optimize=True)


if __name__ == "__main__":
    written, *rest = map(Path, sys.argv[1:])
    written.parent.mkdir(exist_ok=True)
    pages = [shown(*resnet18(), "resnet18.pt"), shown(*tall(1000))]
    write_page(pages[0][1], written, force=True)
    for each in rest:
        picture(written, each)
    for census, told in pages:
        sys.stdout.write(f"{len(census.sites)} sites: {len(told.encode()) / 1e6:.3f} MB\n")
