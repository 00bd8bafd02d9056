"""One architecture through the peers, in a process of its own: ``python -m tests.peers.measure NAME PEERS``.

Each finding is told on stdout as soon as it is known, a line of JSON: a peer that crashes takes nothing down.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.peers.tools import PEERS, Calls, Peer
from tests.zoo import build

WRONG = 1e-3  # of an output's scale; what rounding does stays far below
ABSENT = "not installed"
ORIGINAL = "original"

Row = dict[str, Any]
Tell = Callable[[str, Row], None]


@torch.no_grad()
def measure(name: str, peers: Iterable[str], tell: Tell) -> None:
    """Tell what the architecture is, and what each peer makes of it."""
    model, example = build(name)
    double = copy.deepcopy(model).double()
    with Calls() as calls:
        single = model(example)
    exact = double(example.double())
    noise = apart(exact, single)
    tell(ORIGINAL, {"calls": calls.count, "noise": noise})
    for peer in map(PEERS.__getitem__, peers):
        try:
            importlib.import_module(peer.module)
        except ImportError:
            tell(peer.name, {"failed": ABSENT})
            continue
        start = time.perf_counter()
        try:
            out, left = run(peer, model, example)
        except Exception as error:
            tell(peer.name, {"failed": one_line(error)})
            continue
        worst = apart(single, out)
        row: Row = {"left": left, "error": worst, "wrong": worst > max(WRONG, 10 * noise)}
        row["seconds"] = round(time.perf_counter() - start, 2)
        tell(peer.name, row)  # now, as the time may not do for float64
        if peer.double:
            try:
                out, _ = run(peer, double, example.double())
                row["error64"] = apart(exact, out)
            except Exception as error:
                row["failed64"] = one_line(error)
            tell(peer.name, row)


def run(peer: Peer, model: nn.Module, example: Tensor) -> tuple[Any, int]:
    """The output of what the peer makes of a copy, and how many BatchNorms are left in it."""
    forward, left = peer.fold(copy.deepcopy(model), example)
    if left is not None:
        return forward(example), left
    with Calls() as calls:
        out = forward(example)
    return out, calls.count


def apart(reference: Any, other: Any) -> float:
    """max|a−b|/max|a|, the worst of all outputs; infinite where they cannot be compared."""
    ours, theirs = (_tensors(out) for out in (reference, other))
    if not ours or [t.shape for t in ours] != [t.shape for t in theirs]:
        return math.inf
    pairs = zip(ours, theirs, strict=True)
    errors = [float((a.double() - b.double()).abs().max() / a.abs().max()) for a, b in pairs]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _tensors(out: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def one_line(error: BaseException) -> str:
    """The error at the bottom of it: what an exporter raises is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    # TorchScript says at the end what happened, the others at the beginning.
    return text if len(text) <= 300 else f"{text[:100]} … {text[-200:]}"


def main(name: str, peers: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    # What the peers print goes to stderr, so that stdout holds nothing but what is told.
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)

        def tell(what: str, row: Row) -> None:
            stdout.write(json.dumps([what, row]) + "\n")
            stdout.flush()

        measure(name, peers, tell)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
