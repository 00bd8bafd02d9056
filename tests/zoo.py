"""Architectures as data: what the sweep over torchvision and timm folds.

All of torchvision that has a BatchNorm, and of timm one or two of each family. The inputs are small, so that
a forward pass is cheap; the batch is 2. Left out: ``regnet_y_128gf``, whose weights alone take 2.6 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import tests.torchvision_ops  # noqa: F401  (before torchvision and timm)
from bntools.core import specs
from tests.season import season

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One architecture: its spec, the shape of its input, and what its factory is called with.

    Several shapes are as many arguments; a list of them is one argument, a list of images.
    """

    name: str
    shape: Shape | tuple[Shape, ...] | list[Shape]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def _images(family: str, names: str, size: int = 64, **kwargs: Any) -> list[Entry]:
    return [Entry(f"{family}:{name}", (2, 3, size, size), kwargs) for name in names.split()]


def _detectors(names: str, **kwargs: Any) -> list[Entry]:
    """Two images of their own sizes, few classes, and thresholds that let something through."""
    images = [(3, 64, 80), (3, 64, 64)]
    few = {"num_classes": 5, **kwargs}
    return [Entry(f"torchvision:{name}", images, few) for name in names.split()]


ENTRIES = [
    # torchvision: classification, segmentation, video, optical flow, detection
    *_images(
        "torchvision",
        """densenet121 densenet161 densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2
        efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s
        efficientnet_v2_m efficientnet_v2_l mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2
        mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf
        regnet_x_8gf regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf
        regnet_y_8gf regnet_y_16gf regnet_y_32gf resnet18 resnet34 resnet50 resnet101 resnet152
        resnext50_32x4d resnext101_32x8d resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0
        shufflenet_v2_x1_5 shufflenet_v2_x2_0 wide_resnet50_2 wide_resnet101_2""",
    ),
    *_images("torchvision", "vgg11_bn vgg13_bn vgg16_bn vgg19_bn", init_weights=False),
    # The auxiliary heads of these two are reached by no call in eval.
    *_images("torchvision", "googlenet", init_weights=False),
    *_images("torchvision", "inception_v3", 96, init_weights=False),
    *_images("torchvision", "maxvit_t", 224),
    *_images(
        "torchvision",
        """deeplabv3_mobilenet_v3_large deeplabv3_resnet101 fcn_resnet50 fcn_resnet101
        lraspp_mobilenet_v3_large""",
    ),
    *_images("torchvision", "deeplabv3_resnet50", aux_loss=True, num_classes=5),
    *(Entry(f"torchvision:{name}", (2, 3, 4, 64, 64)) for name in ("mc3_18", "r2plus1d_18", "r3d_18")),
    Entry("torchvision:s3d", (2, 3, 16, 224, 224)),
    # The small one has no BatchNorm.
    Entry("torchvision:raft_large", ((2, 3, 128, 128), (2, 3, 128, 128))),
    *_detectors(
        """fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
        fasterrcnn_resnet50_fpn_v2 keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn
        maskrcnn_resnet50_fpn_v2""",
        min_size=64,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=10,
        box_detections_per_img=5,
    ),
    *_detectors(
        "fcos_resnet50_fpn retinanet_resnet50_fpn retinanet_resnet50_fpn_v2",
        min_size=64,
        score_thresh=0.0,
        topk_candidates=20,
        detections_per_img=5,
    ),
    *_detectors("ssdlite320_mobilenet_v3_large", topk_candidates=20, detections_per_img=5),
    # timm
    *_images(
        "timm",
        """convmixer_768_32 cpubone_s0 cs3darknet_s cspdarknet53 cspnext_s cspresnet50 darknet53 densenet121
        densenetblur121d dla34 dla46x_c dpn48b dpn68 ecaresnet26t efficientnet_b0 efficientnet_es
        efficientnet_lite0 efficientnetv2_rw_t efficientvim_m1 efficientvit_b0 efficientvit_m0
        ese_vovnet19b_dw fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b gcresnext26ts gernet_s ghostnet_050
        ghostnetv2_100 ghostnetv3_100 hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small iformer_t
        inception_next_atto lambda_resnet26t lcnet_050 lcnetv2_small legacy_seresnet18
        legacy_seresnext26_32x4d legacy_xception lowformer_b0 mixnet_s mnasnet_small mobilenet_edgetpu_100
        mobilenetv2_050 mobilenetv3_large_100 mobilenetv3_small_050 mobilenetv4_conv_small
        mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nasnetalarge nextvit_small
        regnetv_040 regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9
        res2net50_26w_4s res2next50 resnest14d resnet18 resnet26t resnetaa50 resnetv2_50 resnext26ts
        rexnet_100 selecsls42b semnasnet_075 seresnet50 shvit_s1 skresnet18 spnasnet_100 starnet_s1
        swiftformer_xs tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mobilenetv3_small_minimal_100
        tiny_vit_5m_224 tinynet_e tresnet_m vovnet39a xception41 xcit_nano_12_p16_224""",
    ),
    *_images("timm", "inception_resnet_v2 inception_v3 inception_v4", 96),
    *_images(
        "timm",
        """coatnet_rmlp_nano_rw_224 efficientformer_l1 efficientformerv2_s0 haloregnetz_b levit_128s
        levit_conv_128s visformer_tiny volo_d1_224""",
        224,
    ),
    *_images(
        "timm", "bat_resnext26ts botnet26t_256 halonet26t maxvit_rmlp_pico_rw_256 sebotnet33ts_256", 256
    ),
    *_images("timm", "vgg11_bn", mlp_ratio=0.0625),
]

# Torchvision's other classifiers, which are exported and not folded: all but the first have no BatchNorm.
# The first has 2.6 GB of weights.
ONLY_EXPORTED = [
    *_images("torchvision", "regnet_y_128gf"),
    *_images("torchvision", "alexnet squeezenet1_0 squeezenet1_1 vgg11 vgg13 vgg16 vgg19"),
    *_images("torchvision", "convnext_tiny convnext_small convnext_base convnext_large"),
    *_images("torchvision", "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b"),
    *_images("torchvision", "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14", 224),
]

# These hold something else than modules, so a pickle of them opens with --unsafe only.
NEEDS_UNSAFE = {
    "timm:fasternet_t0": "builtins.getattr",
    "timm:visformer_tiny": "timm.layers.format.Format",
}

# These run in no other precision than that of their own numbers.
SINGLE_ONLY = {"torchvision:raft_large": "a grid of coordinates in float32"}

# Fast and different from one another: dense, depthwise, SE, dilated, 3-D, linear, pre-activation, branches of
# convolution and BatchNorm side by side, auxiliary heads, one that needs --unsafe.
SAMPLE = [
    "torchvision:googlenet",
    "torchvision:resnet18",
    "timm:levit_128s",
    "timm:repghostnet_050",
    "timm:resnetv2_50",
]


# Those of which `make test` folds the program as well: an export takes seconds.
PROGRAM_SAMPLE = [
    "torchvision:resnet18",
    "timm:repghostnet_050",
]


def entry(name: str) -> Entry:
    """The entry called *name*."""
    return next(entry for entry in (*ENTRIES, *ONLY_EXPORTED) if entry.name == name)


def takes_a_tensor(chosen: Entry) -> bool:
    """Whether its input is one tensor."""
    return isinstance(chosen.shape, tuple) and isinstance(chosen.shape[0], int)


def build(name: str) -> tuple[nn.Module, Any]:
    """The architecture with seasoned BatchNorms in eval mode, and an input; the same ones every time.

    The input is a tensor, or a tuple of arguments.
    """
    chosen = entry(name)
    model = specs.build(name, chosen.kwargs)
    if name.startswith("torchvision:vgg"):
        # Its first two linear layers are half a gigabyte with no BatchNorm; the last one reads 8 × 512.
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d((2, 4)), model.classifier[6:]
    _wake(model)
    rng = torch.Generator().manual_seed(0)
    example, more = _draw(chosen.shape, rng), _draw(_more(chosen.shape), rng)
    return season(model, example=_joined(example, more)), example


def arguments(example: Any) -> tuple[Any, ...]:
    """What the forward is called with."""
    return example if isinstance(example, tuple) else (example,)


def _draw(shape: Any, rng: torch.Generator) -> Any:
    if isinstance(shape, list):
        return ([_draw(each, rng) for each in shape],)
    if isinstance(shape[0], tuple):
        return tuple(_draw(each, rng) for each in shape)
    return torch.randn(shape, generator=rng)


def _more(shape: Any) -> Any:
    """Statistics of two images leave directions in which every layer amplifies; a clip is many images."""
    if isinstance(shape, list):
        return 3 * shape
    if isinstance(shape[0], tuple):
        return tuple(_more(each) for each in shape)
    return (6 if len(shape) == 4 else 0, *shape[1:])


def _joined(some: Any, more: Any) -> Any:
    if isinstance(some, tuple):
        return tuple(map(_joined, some, more))
    return some + more if isinstance(some, list) else torch.cat([some, more])


@torch.no_grad()
def _wake(model: nn.Module) -> None:
    """Open the layer scales: a fresh one, 1e-5 say, hides what happens to the BatchNorms of its branch. And a
    last layer of zeros hides all that is in front of it.
    """
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            low, high = parameter.aminmax()
            if 0 < low == high < 1e-3:
                parameter.fill_(0.3)
            elif low == high == 0 and parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=rng)
