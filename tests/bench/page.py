"""The page of all benches, made of what they wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench.result import Result

BENCHES = {
    "fold_against_fx": "Fold",
    "capture_against_export": "Capture",
    "find_against_capture": "Finding what folds",
    "latency_in_onnx": "Latency in ONNX Runtime",
    "simplify": "What stays, made faster",
    "padding": "Padding with values",
    "recalibrate_time": "Recalibrate: time",
    "recalibrate_scale": "Recalibrate: memory and processes",
    "swap_against_copy": "Swap",
    "help_against_typer": "The command line",
    "inspect_safetensors": "Looking at a safetensors file",
}
"""In the order of the page, each with its title, which other pages link to."""

INTRO = """\
What bntools takes in time and memory, each beside the tool that one would use otherwise. `make bench`
measures all of it and writes this page; no number is written by hand. `python -m tests.bench NAME` measures
one of them once the code has changed, and `python -m tests.bench --write` makes the page of what there is.

The sides of a comparison take turns, so a busy machine slows all of them. A time is the median of the turns,
and in brackets is what the middle half of them lies between. A ratio is the median of those of the turns; its
column says to what.
"""

ELSEWHERE = """\
## What is not measured here

- **Other tools** that need an environment of their own, by `make peers`: AIMET, torchao and others in the
  [coverage](coverage.md), fvcore's `update_bn_stats` on the page of [recalibrate](recalibrate.md).
- **GPUs**, and processors other than the one above. `fold --benchmark` measures a model of your own.
- **Trained weights.** The networks have random weights and seasoned BatchNorms, on which no time depends.
- **What does not depend on the machine**: forwards, copies, passes over the data, nodes of a graph and
  imports are counted by `tests/bench/test_guard.py`, which runs with the other tests.
"""


def page(found: Mapping[str, Any]) -> str:
    """The page.

    Args:
        found: what each bench wrote, by its name; one that is not there is told as not measured.
    """
    parts = ["# Benchmarks", INTRO.rstrip(), *_where(found)]
    for name, title in BENCHES.items():
        parts += [f"## {title}", *(_section(name, found[name]) if name in found else ["Not measured."])]
    return "\n\n".join([*parts, ELSEWHERE])


def _where(found: Mapping[str, Any]) -> Iterator[str]:
    """On what all of them were measured; if not all on the same, on what each."""
    whole: dict[str, list[str]] = {}
    for name in BENCHES:
        if name in found:
            at = found[name]["at"]
            versions = ", ".join(f"{package} {version}" for package, version in at["versions"].items())
            whole.setdefault(f"{at['machine']}. {versions}.", []).append(name)
    for text, names in whole.items():
        yield f"Measured on {text}" if len(whole) == 1 else f"{', '.join(names)}: {text}"


def _section(name: str, data: Mapping[str, Any]) -> Iterator[str]:
    result, at = Result.of(data["result"]), data["at"]
    yield result.markdown()
    threads = f"{result.threads} thread{'s' * (result.threads != 1)}"
    when = f"{at['date']}, {at['seconds']:.0f} s, {threads}, load {at['load']:.1f} before"
    missed = " **Not all of its models.**" if data["names"] else ""
    missed += "" if result.holds else " **The limit was not kept.**"
    yield f"`python -m tests.bench.{name}`: {when}.{missed}"
