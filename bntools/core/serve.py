"""The program that runs in `bntools.core.child`: ONNX Runtime behind a pipe. It imports nothing of ours.

A message is its length, a line of JSON, and the raw bytes of the arrays that the line lists.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

SAMPLE = 1 << 16


def write(stream: IO[bytes], head: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Send a message."""
    plain = [np.ascontiguousarray(array) for array in arrays]
    forms = [[array.dtype.str, list(given.shape)] for array, given in zip(plain, arrays, strict=True)]
    line = json.dumps({**head, "arrays": forms}).encode()
    stream.write(struct.pack("<Q", len(line)) + line)
    for array in plain:
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Receive a message.

    Raises:
        EOFError: if the other side has gone.
    """
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    head: dict[str, Any] = json.loads(_exactly(stream, length))
    arrays = []
    for form, shape in head.pop("arrays"):
        array = np.empty(shape, np.dtype(form))
        _exactly_into(stream, array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return head, arrays


def sampled(array: np.ndarray) -> np.ndarray:
    """At most 65 536 values of an array, always those at the same places for its size."""
    flat: np.ndarray = array.reshape(-1)
    if flat.size <= SAMPLE:
        return flat
    # Drawn at random, since steps of equal length could pass by the same channels each time.
    at = np.random.default_rng(0).integers(flat.size, size=SAMPLE)
    return np.asarray(flat[at])


def scale_of(array: np.ndarray) -> float:
    """The largest absolute value of those that are finite, 0 without any.

    Example:
        >>> scale_of(np.array([3 + 4j, np.nan])), scale_of(np.array([-128], np.int8))
        (5.0, 128.0)
    """
    finite = array[np.isfinite(array)] if array.dtype.kind in "fc" else array
    wide = finite.astype(np.complex128 if array.dtype.kind == "c" else np.float64)  # |−128| is no int8
    return float(np.abs(wide).max()) if wide.size else 0.0


def _exactly(stream: IO[bytes], count: int) -> bytes:
    held = bytearray(count)
    _exactly_into(stream, memoryview(held))
    return bytes(held)


def _exactly_into(stream: IO[bytes], view: memoryview) -> None:
    while len(view):
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        view = view[got:]


class _Server:
    """Answers one request after another."""

    def __init__(self, onnxruntime: Any) -> None:
        self._runtime = onnxruntime
        self._sessions: list[Any] = []

    def open(self, head: dict[str, Any], arrays: list[np.ndarray]) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Load a file; the answer says what it takes and returns."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        # Nothing else, whatever its name ends in: then it is the model that we have read.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        levels = self._runtime.GraphOptimizationLevel
        optimise = head["optimise"]
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        session = self._runtime.InferenceSession(head["path"], options, providers=["CPUExecutionProvider"])
        self._sessions.append(session)
        forms = {
            "inputs": [[each.name, each.shape, each.type] for each in session.get_inputs()],
            "outputs": [[each.name, each.type] for each in session.get_outputs()],
        }
        return {"session": len(self._sessions) - 1, **forms}, []

    def run(self, head: dict[str, Any], arrays: list[np.ndarray]) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Run a session; with ``sample`` the answer has a part of each value, its shape and its scale."""
        session = self._sessions[head["session"]]
        out = session.run(None, dict(zip(head["names"], arrays, strict=True)))
        if not all(isinstance(each, np.ndarray) and each.dtype.kind in "fiubc" for each in out):
            raise TypeError("it returns something that is no array of numbers")
        if not head.get("sample"):
            return {}, out
        shapes, scales = [list(each.shape) for each in out], [scale_of(each) for each in out]
        return {"shapes": shapes, "scales": scales}, [sampled(each) for each in out]

    def forget(
        self, head: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Let a session go."""
        self._sessions[head["session"]] = None
        return {}, []


def main() -> None:
    """Answer until nobody asks any more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # what the runtime says goes nowhere
        os.dup2(nowhere, number)
    os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)  # a file does not say how it is to be run
    with suppress(OSError):  # not everywhere
        # Where memory runs out, this process is what is ended.
        Path("/proc/self/oom_score_adj").write_text("1000")
    import onnxruntime

    server = _Server(onnxruntime)
    write(answers, {"version": onnxruntime.__version__})
    while True:
        try:
            head, arrays = read(requests)
        except EOFError:
            return
        try:
            answer, out = getattr(server, head["ask"])(head, arrays)
        except Exception as error:
            answer, out = {"error": f"{type(error).__name__}: {error}"}, []
        write(answers, answer, out)


if __name__ == "__main__":
    main()
