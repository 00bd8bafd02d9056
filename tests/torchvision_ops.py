"""Let torchvision be imported beside a build of torch that its compiled operators were not made for.

torchvision registers shapes for ``nms`` as it is imported, and fails if its extension did not load: a CUDA
wheel beside a CPU torch is enough. Its architectures need none of those operators, so here they get a schema
and nothing else. Import this module before anything that imports torchvision; timm does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
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


# A library lives as long as its object does, so it stays at module level.
LIBRARY = None if extension_loads() else torch.library.Library("torchvision", "DEF")

if LIBRARY:
    for schema in SCHEMAS:
        LIBRARY.define(schema)
