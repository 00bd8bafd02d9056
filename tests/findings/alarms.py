"""Which rules speak of which architectures, all with sane statistics: `python -m tests.findings.alarms`.

The list of docs/findings.md is what this prints.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

import bntools as bn
from bntools.findings import RULES, Severity
from tests.zoo import ENTRIES, build

TRAINED_FOR = 100_000
"""Batches, so that the start counts nothing at the smallest momentum of all, 0.0003."""


def fired(name: str) -> Counter[str]:
    """For how many layers of an architecture each rule speaks up."""
    model, example = build(name)
    for key, buffer in model.named_buffers():
        if key.endswith("num_batches_tracked") and isinstance(buffer, Tensor):
            buffer.fill_(TRAINED_FOR)
    return Counter(finding.rule for finding in bn.inspect(model, example).findings)


def main() -> None:
    torch.set_num_threads(1)
    found = {entry.name: fired(entry.name) for entry in ENTRIES}
    print(f"{len(found)} architectures\n")  # noqa: T201
    for rule in RULES.values():
        names = {name: counts[rule.id] for name, counts in found.items() if counts[rule.id]}
        if names or rule.severity is not Severity.NOTE:
            most = ", ".join(
                f"`{name}` ({n})" for name, n in sorted(names.items(), key=lambda i: (-i[1], i[0]))[:6]
            )
            print(f"| {rule.id} {rule.name} | {rule.severity.value} | {len(names)} | {most} |")  # noqa: T201


if __name__ == "__main__":
    main()
