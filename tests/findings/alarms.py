"""Which rules speak of which architectures, all with sane statistics.

``python -m tests.findings.alarms`` prints the list of docs/findings.md; with ``--data`` that of the rules
about data, of models whose statistics are of other samples of the same data.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

import bntools as bn
from bntools.findings import RULES, Severity
from tests.zoo import ENTRIES, build

TRAINED_FOR = 100_000
"""Batches, so that the start counts nothing at the smallest momentum of all, 0.0003."""
SAMPLES, BATCH = 96, 8
_TORCHVISION = """
    densenet121 efficientnet_b0 efficientnet_b1 efficientnet_b2 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
    mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_1_6gf regnet_x_400mf regnet_x_800mf
    regnet_y_400mf regnet_y_800mf resnet18
"""
_TIMM = """
    cspnext_s efficientnet_b0 fbnetc_100 gernet_s ghostnet_050 ghostnetv2_100 hardcorenas_a hgnetv2_b0
    lcnet_050 levit_128s mixnet_s mnasnet_small mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
    mobileone_s0 mobilevit_xxs regnetx_002 regnety_002 repghostnet_050 repvgg_a0 resnet18 rexnet_100
    semnasnet_075 spnasnet_100 starnet_s1 tinynet_e visformer_tiny
"""
WITH_DATA = [*(f"torchvision:{n}" for n in _TORCHVISION.split()), *(f"timm:{n}" for n in _TIMM.split())]
"""Those that are quick enough for a pass over so many samples."""


def fired(name: str) -> Counter[str]:
    """For how many layers of an architecture each rule speaks up."""
    model, example = build(name)
    for key, buffer in model.named_buffers():
        if key.endswith("num_batches_tracked") and isinstance(buffer, Tensor):
            buffer.fill_(TRAINED_FOR)
    return Counter(finding.rule for finding in bn.inspect(model, example).findings)


def fired_with_data(name: str) -> Counter[str]:
    """Likewise of the rules about data: half of the samples make the statistics, half are asked."""
    model, example = build(name)
    rng = torch.Generator().manual_seed(5)
    halves = [torch.randn((SAMPLES, *example.shape[1:]), generator=rng).split(BATCH) for _ in range(2)]
    model = bn.recalibrate(model, halves[0], inplace=True).model
    found = bn.inspect(model, data=halves[1]).findings
    return Counter(finding.rule for finding in found if RULES[finding.rule].needs == "data")


def told(found: Mapping[str, Counter[str]], rules: set[str]) -> str:
    """A row for each rule that says something, or says nothing and would be loud."""
    rows = [
        f"{len(found)} architectures",
        "",
        "| rule | severity | models | the most layers |",
        "|---|---|---:|---|",
    ]
    for rule in (rule for rule in RULES.values() if rule.id in rules):
        names = {name: counts[rule.id] for name, counts in found.items() if counts[rule.id]}
        if names or rule.severity is not Severity.NOTE:
            first = sorted(names.items(), key=lambda each: (-each[1], each[0]))[:6]
            most = ", ".join(f"`{name}` ({count})" for name, count in first)
            rows.append(f"| {rule.id} {rule.name} | {rule.severity.value} | {len(names)} | {most} |")
    return "\n".join(rows)


def main() -> None:
    torch.set_num_threads(1)
    ask, names = fired, [entry.name for entry in ENTRIES]
    if "--data" in sys.argv:
        ask, names = fired_with_data, WITH_DATA
    found = {}
    for name in names:
        found[name] = ask(name)
        print(name, dict(found[name]), file=sys.stderr, flush=True)  # noqa: T201
    about = {rule.id for rule in RULES.values() if (rule.needs == "data") == ("--data" in sys.argv)}
    print(told(found, about))  # noqa: T201


if __name__ == "__main__":
    main()
