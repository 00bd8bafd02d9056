"""Architectures as data: what the sweep over torchvision and timm folds.

Small variants at small sizes, so that a forward pass is cheap; the batch is 2. Left out: torchvision's VGG
(half a gigabyte of classifier; timm's takes a smaller one) and its detectors (they need compiled operators).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tests.torchvision_ops  # noqa: F401  (before torchvision and timm)
from bntools.core import specs
from tests.season import season


@dataclass(frozen=True)
class Entry:
    """One architecture: its spec, the shape of its input, and what its factory is called with."""

    name: str
    shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def _images(family: str, names: str, size: int = 64, **kwargs: Any) -> list[Entry]:
    return [Entry(f"{family}:{name}", (2, 3, size, size), kwargs) for name in names.split()]


ENTRIES = [
    # torchvision: classification, segmentation, video
    *_images(
        "torchvision",
        """densenet121 efficientnet_b0 efficientnet_b1 efficientnet_v2_s mnasnet0_5 mnasnet1_0 mobilenet_v2
        mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_y_400mf resnet18 resnet34
        resnet50 resnet101 resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 wide_resnet50_2""",
    ),
    # The auxiliary heads of these two are reached by no call in eval.
    *_images("torchvision", "googlenet", init_weights=False),
    *_images("torchvision", "inception_v3", 96, init_weights=False),
    *_images("torchvision", "maxvit_t", 224),
    *_images(
        "torchvision",
        "deeplabv3_mobilenet_v3_large fcn_resnet50 fcn_resnet101 lraspp_mobilenet_v3_large",
    ),
    *_images("torchvision", "deeplabv3_resnet50", aux_loss=True, num_classes=5),
    *(Entry(f"torchvision:{name}", (2, 3, 4, 64, 64)) for name in ("mc3_18", "r2plus1d_18", "r3d_18")),
    Entry("torchvision:s3d", (2, 3, 16, 224, 224)),
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

# These hold something else than modules, so a pickle of them opens with --unsafe only.
NEEDS_UNSAFE = {
    "timm:fasternet_t0": "builtins.getattr",
    "timm:visformer_tiny": "timm.layers.format.Format",
}

# Fast and different from one another: dense, depthwise, SE, dilated, 3-D, linear, pre-activation, branches of
# convolution and BatchNorm side by side, auxiliary heads, one that needs --unsafe.
SAMPLE = [
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:mc3_18",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5",
    "timm:efficientvit_m0",
    "timm:lcnet_050",
    "timm:levit_128s",
    "timm:mobilevit_xxs",
    "timm:repghostnet_050",
    "timm:repvgg_a0",
    "timm:resnetv2_50",
    "timm:visformer_tiny",
]


def entry(name: str) -> Entry:
    """The entry called *name*."""
    return next(entry for entry in ENTRIES if entry.name == name)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The architecture with seasoned BatchNorms in eval mode, and an input; the same ones every time."""
    chosen = entry(name)
    model = specs.build(name, chosen.kwargs)
    _wake(model)
    rng = torch.Generator().manual_seed(0)
    example = torch.randn(chosen.shape, generator=rng)
    # Statistics of two images leave directions in which every layer amplifies; a clip is many images.
    more = torch.randn((6 if example.ndim == 4 else 0, *chosen.shape[1:]), generator=rng)
    return season(model, example=torch.cat([example, more])), example


@torch.no_grad()
def _wake(model: nn.Module) -> None:
    """Open the layer scales: a fresh one, 1e-5 say, hides what happens to the BatchNorms of its branch."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            low, high = parameter.aminmax()
            if 0 < low == high < 1e-3:
                parameter.fill_(0.3)
