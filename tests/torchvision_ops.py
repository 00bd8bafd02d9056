"""Let torchvision be imported beside a build of torch that its compiled operators were not made for.

torchvision registers shapes for ``nms`` as it is imported, and fails if its extension did not load: a CUDA
wheel beside a CPU torch is enough. Here it gets the operators that its detectors need, written with torch's
own. Import this module before anything that imports torchvision; timm does.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)


def extension_loads() -> bool:
    """Whether torchvision's own operators load; they are loaded now, and a schema of ours would clash."""
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    for library in (file for folder in folders or () for file in Path(folder).glob("_C*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return True


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The boxes that no better one covers by more than *threshold* of their union, the best first."""
    order = scores.argsort(stable=True, descending=True)
    boxes = boxes[order]
    low, high = boxes[:, None].split(2, dim=-1)
    sides = torch.minimum(high, boxes[:, 2:]) - torch.maximum(low, boxes[:, :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    covers = shared > threshold * (area[:, None] + area - shared)
    keep = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if keep[i]:
            keep[i + 1 :] &= ~covers[i, i + 1 :]
    return order[keep]


def roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, samples: int, aligned: bool
) -> Tensor:
    """torchvision's own reference, which it would compile on each change of a shape."""
    module = importlib.import_module("torchvision.ops.roi_align")
    plain: Tensor = module._roi_align.__wrapped__(x, rois, scale, height, width, samples, aligned)
    return plain


# A library lives as long as its object does, so it stays at module level.
LIBRARY = None if extension_loads() else torch.library.Library("torchvision", "DEF")

if LIBRARY:
    for schema in SCHEMAS:
        LIBRARY.define(schema)
    LIBRARY.impl("nms", nms, "CPU")
    # Autograd looks into this one, so that it knows the backbone behind the heads.
    LIBRARY.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    # Some of its modules look here for whether there are operators, others took the answer along.
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        importlib.import_module(name)._has_ops = lambda: True  # type: ignore[attr-defined]
