"""The rule about weight decay on γ and β. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from bntools.findings.remark import Remark
from bntools.findings.subject import Subject


def decayed(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in subject.norms:
        stem = f"{norm.path}." if norm.path else ""
        own = {name: (subject.decays or {}).get(stem + key) for name, key in (("γ", "weight"), ("β", "bias"))}
        most = {name: decay for name, decay in own.items() if decay is not None and decay > threshold}
        if most:
            told = f"weight_decay {max(most.values()):g} on {' and '.join(most)}"
            yield Remark(norm.path, told, {"weight_decay": max(most.values())})
