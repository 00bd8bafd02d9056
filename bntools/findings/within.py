"""The rules that look at a live model and at a run of it, where `bntools.findings.examine` finds them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bntools.findings import affine, modes, structure
from bntools.findings.remark import Check

OF_MODELS: Mapping[str, Check] = MappingProxyType(
    {
        "BN009": affine.float16_overflow,
        "BN010": affine.dead_channels,
        "BN013": structure.redundant_bias,
        "BN014": structure.shared,
        "BN015": modes.half_frozen,
        "BN016": modes.mixed_modes,
        "BN019": structure.does_more,
        "BN021": structure.dropout_upstream,
        "BN024": structure.recurrent,
        "BN025": structure.one_value,
        "BN027": modes.no_freeze,
    }
)
"""By the id of the rule."""
