"""What padding with a value for each channel costs against the BatchNorm that goes by it.

``python -m tests.bench.padding``: microseconds, and the ratio that `fold(pad_exact=True)` decides by.
"""

from __future__ import annotations

import torch
from torch import nn

from bntools.core.faster import GAIN, pad_costs

SHAPES = ((2, 64, 56, 56), (2, 256, 14, 14), (16, 64, 28, 28))


def main() -> None:
    print(f"Taken below a ratio of {GAIN}.\n")
    print("| values | layout | convolution | BatchNorm µs | padding µs | ratio |")
    print("|---|---|---|---:|---:|---:|")
    for shape in SHAPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for groups in (1, shape[1]):
                x = torch.empty(shape, memory_format=layout)
                conv = nn.Conv2d(shape[1], shape[1], 3, padding=1, groups=groups).to(memory_format=layout)
                norm, extra = pad_costs(x.shape, x.stride(), torch.zeros(shape[1]), [conv])
                words = "channels last" if layout is torch.channels_last else "contiguous"
                kind = "3×3" if groups == 1 else "3×3 depthwise"
                size = "×".join(map(str, shape))
                times = f"{1e6 * norm:.0f} | {1e6 * extra:.0f} | {extra / norm:.2f}"
                print(f"| {size} | {words} | {kind} | {times} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
