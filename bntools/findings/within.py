"""The rules that look at a live model, a run of it and a pass over data, for `bntools.findings.examine`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bntools.findings import affine, data, modes, structure
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
        "BN028": data.drifted,
        "BN029": data.train_eval_gap,
        "BN030": data.nan_batches,
        "BN031": data.grouped_batches,
        "BN032": data.few_samples,
        "BN033": data.silent_channels,
        "BN034": data.unreached,
        "BN035": data.uneven_calls,
    }
)
"""By the id of the rule."""
