"""The picture of a terminal in the README: ``python -m tests.picture [--write]``.

What stands in it is what the command line prints for a small seasoned network, in its colours. Equal runs
give equal bytes, and the picture asks nobody else for anything: Rich's own frame would fetch a font.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from torch import nn

from bntools.__main__ import main as bntools
from tests.season import season

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "fold.svg"
SHAPE = "8x3x32x32"
COMMANDS = (f"bntools inspect model.pt --input {SHAPE}", f"bntools fold model.pt --input {SHAPE}")
WIDTH = 110
FRAME = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>A terminal: bntools inspect and bntools fold on a small network</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def network() -> nn.Module:
    """Three BatchNorms that fold, and in front of them one that nothing takes in."""
    layers = {
        "entry": nn.BatchNorm2d(3),
        "conv1": nn.Conv2d(3, 16, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(16),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(16, 32, 3, 2, padding=1, bias=False),
        "bn2": nn.BatchNorm2d(32),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(32, 16, bias=False),
        "bn3": nn.BatchNorm1d(16),
        "relu3": nn.ReLU(),
        "head": nn.Linear(16, 10),
    }
    return season(nn.Sequential(OrderedDict(layers)).eval(), example=torch.randn(16, 3, 32, 32))


def said(*commands: str) -> str:
    """What a terminal shows of these commands, one after the other in a folder that holds the network."""
    screen, kept = io.StringIO(), dict(os.environ)
    for name in [name for name in kept if name.startswith(("BNTOOLS_", "NO_COLOR"))]:
        del os.environ[name]
    os.environ |= {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "", "COLUMNS": str(WIDTH)}
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                torch.save(network(), "model.pt")
            for command in commands:
                screen.write(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\n")
                with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                    code = bntools(command.split()[1:])
                if code:
                    raise SystemExit(f"{command}: exit code {code}\n{screen.getvalue()}")
                screen.write("\n")
    finally:
        os.environ.clear()
        os.environ |= kept
    return screen.getvalue().rstrip()


def picture(screen: str) -> str:
    """What a terminal shows, with its escape codes, as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in Text.from_ansi(screen).split(allow_blank=True):
        for start in range(0, max(len(line), 1), WIDTH):  # as a terminal breaks lines, not as a book does
            console.print(line[start : start + WIDTH], soft_wrap=True)
    drawn = console.export_svg(title="", theme=MONOKAI, code_format=FRAME, unique_id="bntools")
    return "\n".join(line.rstrip() for line in drawn.splitlines() if line.strip()) + "\n"


def words(drawn: str) -> list[str]:
    """The lines that can be read in a picture, each number as a 0: its digits depend on the processor."""
    found = dict[str, str]()
    for y, text in re.findall(r'<text [^>]*\by="([^"]*)"[^>]*>(.*?)</text>', drawn):
        found[y] = found.get(y, "") + html.unescape(text)
    return [re.sub(r"[0-9][0-9.]*(e[+-]?[0-9]+)?", "0", " ".join(line.split())) for line in found.values()]


def main() -> int:
    drawn = picture(said(*COMMANDS))
    if "--write" in sys.argv[1:]:
        PICTURE.write_text(drawn, "utf-8")
    else:
        sys.stdout.write(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
