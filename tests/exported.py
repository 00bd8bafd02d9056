"""ONNX files of the classifiers, from torch's exporter alone and from bntools, side by side.

``python -m tests.exported [NAME …]`` measures those that `build/exported` has no file of, each in a process
of its own; ``--write`` puts what the files hold into ``docs/coverage.md`` and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import bntools as bn
from bntools.errors import BntoolsError, PromiseError, first_line, in_a_line
from tests.bench.latency_in_onnx import session
from tests.bench.turns import medians
from tests.peers.table import line
from tests.zoo import ONLY_EXPORTED, build
from tests.zoo_rows import Row

ROWS = Path("build/exported")
PAGE = Path("docs/coverage.md")
BEGIN = "<!-- begin: python -m tests.exported --write -->"
END = "<!-- end: python -m tests.exported --write -->"
LIMIT = 600
TURNS, WARM = 20, 3
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")

# The image classifiers of torchvision with three of video, and of each module of timm.models the cheapest
# entry of tests/zoo.py; the cheap ones first, by the last column of docs/coverage.md, and seven big ones, and
# those that are exported only, last.
_CHEAP_FIRST = """
timm:tf_mobilenetv3_small_minimal_100 torchvision:resnet18 timm:mobilenetv2_050 timm:resnet18
timm:hardcorenas_a timm:regnetx_002 timm:vgg11_bn timm:legacy_seresnet18 timm:dla46x_c timm:cspnext_s
torchvision:mobilenet_v3_small timm:skresnet18 timm:starnet_s1 timm:resnext26ts torchvision:resnet34
torchvision:mnasnet1_0 timm:resnest14d timm:lcnetv2_small torchvision:mnasnet0_75 torchvision:mnasnet0_5
timm:cs3darknet_s torchvision:regnet_y_800mf torchvision:regnet_x_400mf timm:selecsls42b
torchvision:regnet_x_1_6gf torchvision:regnet_y_400mf torchvision:mobilenet_v3_large
torchvision:vgg13_bn torchvision:mnasnet1_3 timm:swiftformer_xs timm:resnetv2_50 torchvision:vgg16_bn
timm:mobilevitv2_050 torchvision:resnet50 timm:cpubone_s0 timm:fasternet_t0 torchvision:mobilenet_v2
timm:vovnet39a timm:repghostnet_050 torchvision:googlenet timm:efficientvit_b0 torchvision:vgg11_bn
torchvision:regnet_x_800mf torchvision:regnet_y_8gf torchvision:resnext50_32x4d
torchvision:regnet_y_3_2gf timm:hgnetv2_b0 timm:dpn48b torchvision:efficientnet_b1 timm:lowformer_b0
timm:visformer_tiny torchvision:regnet_x_16gf torchvision:inception_v3 torchvision:efficientnet_b0
timm:repvit_m0_9 timm:rexnet_100 torchvision:shufflenet_v2_x1_5 timm:levit_conv_128s
timm:densenetblur121d timm:inception_v3 timm:legacy_xception timm:efficientvim_m1
torchvision:shufflenet_v2_x1_0 torchvision:vgg19_bn timm:tiny_vit_5m_224 torchvision:shufflenet_v2_x0_5
timm:shvit_s1 torchvision:regnet_x_8gf torchvision:resnet101 timm:nextvit_small timm:tresnet_m
timm:xcit_nano_12_p16_224 timm:inception_next_atto torchvision:densenet121 torchvision:efficientnet_b2
timm:res2net50_26w_4s timm:convmixer_768_32 torchvision:r3d_18 timm:efficientformer_l1
torchvision:shufflenet_v2_x2_0 timm:ghostnet_050 torchvision:regnet_y_1_6gf timm:xception41
timm:lambda_resnet26t torchvision:densenet169 timm:efficientformerv2_s0 torchvision:regnet_x_3_2gf
timm:inception_v4 timm:iformer_t torchvision:regnet_y_16gf timm:hrnet_w18_small timm:fastvit_t8
torchvision:densenet161 torchvision:mc3_18 torchvision:r2plus1d_18 timm:coatnet_rmlp_nano_rw_224
torchvision:wide_resnet50_2 torchvision:efficientnet_v2_s torchvision:efficientnet_b3
timm:inception_resnet_v2 torchvision:resnet152 torchvision:densenet201 torchvision:efficientnet_b4
torchvision:efficientnet_v2_m timm:efficientvit_m0 torchvision:resnext101_64x4d
torchvision:efficientnet_b5 torchvision:resnext101_32x8d torchvision:efficientnet_v2_l
torchvision:efficientnet_b6 torchvision:wide_resnet101_2 timm:volo_d1_224 torchvision:regnet_x_32gf
torchvision:regnet_y_32gf timm:nasnetalarge torchvision:maxvit_t torchvision:efficientnet_b7
"""
NAMES = [*_CHEAP_FIRST.split(), *(entry.name for entry in reversed(ONLY_EXPORTED))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exported", description="Export the classifiers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all without a file if none")
    parser.add_argument("--write", action="store_true", help=f"write into {PAGE} what was measured")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"not among those that are exported: {' '.join(sorted(unknown))}")
    if asked.child:
        for name in asked.names:
            tell(name)
        return 0
    if asked.write:
        rows = read()
        if not rows:
            parser.error(f"{ROWS} holds nothing; run `python -m tests.exported` first")
        PAGE.write_text(placed(PAGE.read_text() if PAGE.exists() else "", section(rows)))
        return 0
    ROWS.mkdir(parents=True, exist_ok=True)
    files = {name: ROWS / f"{name.replace(':', '-')}.json" for name in NAMES}
    for name in asked.names or [name for name in NAMES if not files[name].exists()]:
        row = ask(name)
        files[name].write_text(json.dumps(row, indent=1) + "\n")
        sys.stdout.write(f"{name} {row['seconds']} s{'; ' * bool(trouble(row))}{trouble(row)}\n")
        sys.stdout.flush()
    return 0


def read() -> list[Row]:
    """What was measured, in the order of the names."""
    rows = {row["name"]: row for row in (json.loads(file.read_text()) for file in ROWS.glob("*.json"))}
    return [rows[name] for name in sorted(NAMES) if name in rows]


# Measuring, in the parent and in the child that it starts for each model.


def ask(name: str) -> Row:
    """What a child tells, step by step, and how it ended if that was too early."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.exported", "--child", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    end = ""
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT, env=environment, check=False)
        stdout = done.stdout
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            died = done.returncode < 0
            end = f"died of {signal.Signals(-done.returncode).name}" if died else last[:300] or "failed"
    except subprocess.TimeoutExpired as late:
        stdout, end = late.stdout or b"", f"not done after {LIMIT} s"
    *lines, _ = stdout.decode().split("\n")
    row: Row = {"name": name, **dict(map(json.loads, lines)), **({"ended": end} if end else {})}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def tell(name: str) -> None:
    """Measure a model, and write a line of JSON for each step; all else that is printed is noise."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        for step, found in measured(name, Path(folder)):
            out.write(json.dumps([step, found]) + "\n")
            out.flush()


def measured(name: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """Each step with what it found: torch alone, bntools, `bn.verify`, and the latency of both files."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    yield "versions", {"bntools": bn.__version__} | {each: metadata.version(each) for each in PACKAGES}
    yield "family", family(name)
    model, example = build(name)
    # What is imported on first use is not to count for the first of the two.
    small = torch.nn.Linear(2, 2).eval(), torch.ones(3, 2)
    torch.onnx.export(small[0], (small[1],), folder / "small.onnx", dynamo=True, verbose=False)
    bn.export(*small, folder / "small.onnx", force=True)

    files = {"before": folder / "before.onnx", "after": folder / "after.onnx"}
    yield "torch", timed(lambda: _alone(model, example, files["before"]))
    yield "bntools", timed(lambda: told(bn.export(model, example, files["after"])))
    if files["after"].exists():
        yield "verify", timed(lambda: judged(bn.verify(model, files["after"], example)))
    opened = {which: session(file) for which, file in files.items() if file.exists()}
    yield "left", {which: left for which, (_, left) in opened.items()}
    if len(opened) == 2:
        runs = [(each, {each.get_inputs()[0].name: example.numpy()}) for each, _ in opened.values()]
        ways = [Clocked(partial(each.run, None, feed)) for each, feed in runs]
        yield "latency", dict(zip(opened, medians(ways, TURNS, WARM), strict=True))
        yield "cpu", dict(zip(opened, (way.median(WARM) for way in ways), strict=True))


class Clocked:
    """A call that notes the time that its own thread had of a processor.

    Calls that take turns with those of another process, a slice of time each, may wait at every second one:
    then the times of one file by the clock on the wall are thrice those of another that is equal.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._taken: list[float] = []

    def __call__(self) -> None:
        start = time.thread_time()
        self._call()
        self._taken.append(1e3 * (time.thread_time() - start))

    def median(self, warm: int) -> float:
        """Milliseconds of a call, without the first ones."""
        return statistics.median(self._taken[warm:])


def _alone(model: Any, example: Any, file: Path) -> Row:
    torch.onnx.export(model, (example,), file, dynamo=True, verbose=False)
    return {}


def family(name: str) -> str:
    """What an architecture is a variant of: the module of timm that it stands in, or torchvision."""
    kind, _, architecture = name.partition(":")
    if kind != "timm":
        return kind
    from timm.models import model_entrypoint  # after tests.torchvision_ops, which tests.zoo imports

    return str(model_entrypoint(architecture).__module__.rpartition(".")[2])


def timed(work: Callable[[], Row]) -> Row:
    """What was found and in how many seconds; or who refuses, what check failed, or what was raised."""
    start = time.perf_counter()
    try:
        found = work()
    except PromiseError as error:
        found = {"verdict": "failed", "why": first_line(error)}
    except BntoolsError as error:
        found = {"refused": first_line(error)}
    except Exception as error:
        found = {"raised": in_a_line(error)}
    return found | {"took": round(time.perf_counter() - start, 2)}


def told(done: Any) -> Row:
    """An export in numbers."""
    plan = done.plan
    return judged(done.check) | {
        "proof": done.proof.verdict.value,
        "proof_why": done.proof.why,
        "open": all(map(is_open, done.graph.inputs)),
        "sites": len(plan.sites),
        "folded": len(plan.edits),
        "stay": Counter(refusal.reason.value for refusal in plan.refusals),
        "alone": done.alone.norms if done.alone else None,
    }


def judged(report: Any) -> Row:
    """How a file was checked."""
    return {
        "verdict": report.verdict.value,
        "why": report.why,
        "error": report.error,
        "noise": report.noise,
        "tolerance": report.tolerance,
        "inputs": report.inputs,
        "notes": report.notes,
    }


def is_open(described: str) -> bool:
    """Whether the batch of an input stayed open, by its description: ``input: batch×3×64×64 float``."""
    return not described.rpartition(": ")[2].partition("×")[0].isdecimal()


# What the rows add up to.


def checks(row: Row) -> Iterator[tuple[str, str, str]]:
    """Those that were made, each with its verdict and the reason for it."""
    for check, step, verdict, why in (
        ("proof", "bntools", "proof", "proof_why"),
        ("file", "bntools", "verdict", "why"),
        ("verify", "verify", "verdict", "why"),
    ):
        found = row.get(step, {})
        nothing = step == "bntools" and check == "proof" and found.get("sites") == 0
        if verdict in found and not nothing:  # without a BatchNorm there is no fold to prove
            yield check, found[verdict], found.get(why, "")


def alarms(row: Row) -> str:
    """The checks that did not pass, with their reasons; empty if all did."""
    return "; ".join(
        f"{check} {verdict}{f' ({why})' if why else ''}"
        for check, verdict, why in checks(row)
        if verdict != "passed"
    )


def is_verified(row: Row) -> bool:
    """Whether the fold, if there is one, the file, and the file once more by `bn.verify`, all passed."""
    folds = row.get("bntools", {}).get("sites") != 0
    return [verdict for _, verdict, _ in checks(row)] == (2 + folds) * ["passed"]


def failures(row: Row) -> str:
    """Who refused or broke off, and a file with more BatchNorms than torch's; empty if all went well."""
    said = [
        f"{step} {word}: {row[step][word]}"
        for step in ("torch", "bntools", "verify")
        for word in ("refused", "raised")
        if word in row.get(step, {})
    ]
    left = row.get("left", {})
    if "before" in left and left.get("after", 0) > left["before"]:
        said.append(f"{left['after']} BatchNorms through bntools, {left['before']} without")
    return "; ".join([*said, *filter(None, [row.get("ended")])])


def trouble(row: Row) -> str:
    """All that is not as it should be; empty if two files were made, and each check passed."""
    return "; ".join(filter(None, [failures(row), alarms(row)]))


def batches(row: Row) -> set[int]:
    """The batch sizes that `bn.verify` ran."""
    return {int(each.partition("x")[0]) for each in row.get("verify", {}).get("inputs", ())}


def ratio(row: Row, clock: str = "latency") -> float | None:
    """How long the file of bntools takes in ONNX Runtime, as a share of what torch's takes."""
    return row[clock]["after"] / row[clock]["before"] if clock in row else None


def section(rows: list[Row]) -> str:
    """The section of the page: sums, what is not as it should be, and a line for each model."""
    return "\n".join(["## ONNX files", "", *_sums(rows), "", *_models(rows)]) + "\n"


def _sums(rows: list[Row]) -> Iterator[str]:
    ours = Counter(row["name"].partition(":")[0] for row in rows)
    families = {row["family"] for row in rows if "family" in row} - {"torchvision"}
    yield (
        f"{len(rows)} classifiers: {ours['torchvision']} of torchvision and {ours['timm']} of timm, of "
        f"{len(families)} families. Each is exported by torch alone, for the batch of 2 that it is given, "
        "and by `bn.export` with its defaults, for any batch; `bn.verify` then holds the file of `bn.export` "
        f"against the model once more. {_versions(rows)}."
    )
    missing = sorted(set(NAMES) - {row["name"] for row in rows})
    yield ""
    yield f"Not measured: {', '.join(missing) or 'none'}."
    made = [row for row in rows if "after" in row.get("left", {})]
    right = [row for row in made if is_verified(row)]
    yield ""
    yield (
        f"torch alone exports {sum('before' in row.get('left', {}) for row in rows)}, bntools {len(made)}; "
        f"in {sum(row['bntools']['open'] for row in made)} of these the batch stays open, {len(right)} are "
        f"verified, {sum(len(batches(row)) > 1 for row in right)} of them with other batch sizes too. "
        f"False alarms: {_named(rows, alarms)}. Refusals and failures: {_named(rows, failures)}."
    )
    both = [row["left"] for row in rows if len(row.get("left", {})) == 2]
    alone, through = ([left[which] for left in both] for which in ("before", "after"))
    yield ""
    yield (
        f"BatchNormalization nodes in the files of the {len(both)} models that both export: {sum(alone)} by "
        f"torch alone, in {sum(map(bool, alone))} models; {sum(through)} through bntools, in "
        f"{sum(map(bool, through))} models."
    )
    yield from _latency(rows)
    yield from _seconds(rows)


def _versions(rows: list[Row]) -> str:
    found = {f"{name} {version}" for row in rows for name, version in row.get("versions", {}).items()}
    return ", ".join(sorted(found))


def _named(rows: list[Row], said: Callable[[Row], str]) -> str:
    return "; ".join(f"{row['name']}: {said(row)}" for row in rows if said(row)) or "none"


def _latency(rows: list[Row]) -> Iterator[str]:
    yield ""
    yield (
        f"Latency in ONNX Runtime on 1 thread, through bntools as a share of torch alone, medians of {TURNS} "
        f"interleaved calls: {_spread(rows, 'latency')}. In time of the processor, which does not count the "
        f"waits that other work makes: {_spread(rows, 'cpu')}."
    )


def _spread(rows: list[Row], clock: str) -> str:
    ratios = {row["name"]: found for row in rows if (found := ratio(row, clock)) is not None}
    if len(ratios) < 2:
        return "not measured"
    low, middle, high = statistics.quantiles(ratios.values(), n=4, method="inclusive")
    best, *_, worst = sorted(ratios, key=lambda name: ratios[name])
    return (
        f"median {middle:.2f}, quartiles {low:.2f} and {high:.2f}, best {best} with {ratios[best]:.2f}, "
        f"worst {worst} with {ratios[worst]:.2f}, of {len(ratios)} models"
    )


def _seconds(rows: list[Row]) -> Iterator[str]:
    said = []
    for step, what in (("torch", "torch alone"), ("bntools", "`bn.export`"), ("verify", "`bn.verify`")):
        took = [row[step]["took"] for row in rows if step in row]
        if took:
            said.append(f"{what} {statistics.median(took):.1f} (total {sum(took):.0f})")
    yield ""
    yield f"Seconds, median of a model, on a machine with other work: {', '.join(said)}."


def _models(rows: list[Row]) -> Iterator[str]:
    heads = "model", "family", "sites", "left by torch", "by bntools", "batch", "checks", "error", "noise"
    yield line(*heads, "ms: torch", "bntools", "ratio", "in CPU time", "s: torch", "bntools", "verify")
    yield "|---|---|---:|---:|---:|---|---|" + "---:|" * 9
    for row in rows:
        made, left, times = (row.get(key, {}) for key in ("bntools", "left", "latency"))
        shares = ratio(row), ratio(row, "cpu")
        yield line(
            row["name"],
            row.get("family", ""),
            made.get("sites", ""),
            *(left.get(which, "") for which in ("before", "after")),
            {True: "open", False: "fixed"}.get(made.get("open"), ""),
            trouble(row).replace("|", "\\|") or "passed",
            *(f"{made[key]:.0e}" if made.get(key) is not None else "" for key in ("error", "noise")),
            *(f"{times[which]:.1f}" if times else "" for which in ("before", "after")),
            *("" if share is None else f"{share:.2f}" for share in shares),
            *(f"{row[step]['took']:.1f}" if step in row else "" for step in ("torch", "bntools", "verify")),
        )


# The page, which tests/coverage.py writes anew; it takes the section over.


def taken(page: str) -> str:
    """The section of a page with its two marks; empty if it has none.

    Raises:
        ValueError: if one mark stands there without the other.
    """
    marks = page.count(BEGIN), page.count(END)
    if marks == (0, 0):
        return ""
    if marks != (1, 1) or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{PAGE}: expected {BEGIN} and then {END}, once each")
    return page[page.index(BEGIN) : page.index(END) + len(END)]


def placed(page: str, text: str) -> str:
    """A page with the section in its place, at the end if it has none."""
    marked, old = f"{BEGIN}\n\n{text}\n{END}", taken(page)
    return page.replace(old, marked) if old else f"{page}\n{marked}\n"


def kept(page: str, old: str) -> str:
    """A page that is written anew, with the section of the old one at its end."""
    marked = taken(old)
    return f"{page}\n{marked}\n" if marked else page


if __name__ == "__main__":
    sys.exit(main())
