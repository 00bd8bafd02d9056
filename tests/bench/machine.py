"""On what something was measured: the processor, the versions, and the code."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "bntools", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "typer", "safetensors",
)  # fmt: skip


def found() -> dict[str, Any]:
    """What the numbers depend on; neither the machine's name nor a path."""
    return {"machine": _machine(), "versions": _versions(), "code": code()}


def _machine() -> str:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{_processor()}, {count} {'core' if count == 1 else 'cores'}"]
    if hasattr(os, "sysconf"):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB of memory")
    return ", ".join([*parts, _system()])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def code() -> str:
    """A number that changes with the package, the benches, and the networks that they measure."""
    files = [
        *ROOT.glob("bntools/**/*.py"), *ROOT.glob("tests/bench/*.py"), *ROOT.glob("tests/[sz]*.py")
    ]  # fmt: skip
    total = hashlib.sha256(repr(_versions()).encode())
    for file in sorted(files):
        total.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:12]
