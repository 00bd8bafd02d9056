"""What stands in for torchvision's compiled operators, against cases done by hand."""

from __future__ import annotations

import torch

from tests.torchvision_ops import nms, roi_align


def test_a_better_box_suppresses_what_it_covers() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [20, 20, 30, 30]])
    scores = torch.tensor([0.7, 0.9, 0.8, 0.1])
    # Of their unions the first covers 0.8 of the second, and the second twice the third.
    assert nms(boxes, scores, 0.6).tolist() == [1, 2, 3]
    assert nms(boxes, scores, 0.45).tolist() == [1, 3]


def test_a_region_of_a_plane_is_aligned() -> None:
    """Bilinear samples of a plane are the plane, so each bin returns its centre."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    rois = torch.tensor([[0.0, 1, 2, 5, 6]])
    out = roi_align((rows + 10 * columns)[None, None], rois, 1.0, 2, 2, 2, False)
    assert torch.allclose(out[0, 0], torch.tensor([[3.0 + 20, 3 + 40], [5 + 20, 5 + 40]]))
