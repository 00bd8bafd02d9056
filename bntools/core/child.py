"""ONNX Runtime in a process of its own: a file that makes it crash or hang takes nobody along."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bntools.core import serve
from bntools.errors import CaptureError

LIMIT = 300.0
"""Seconds that one request may take."""


class RefusalError(Exception):
    """The runtime says that it cannot do it, and why."""


class CrashError(Exception):
    """The runtime's process ended while it worked."""


class HangError(Exception):
    """The runtime did not answer in time, and was ended."""


@dataclass(frozen=True, slots=True)
class Session:
    """A file that the runtime has loaded.

    Args:
        number: of the session in its process.
        inputs: for each, its name, its shape with names for open axes, and its type as ``tensor(float)``.
        outputs: for each, its name and its type.
    """

    number: int
    inputs: tuple[tuple[str, tuple[int | str | None, ...], str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the values of an array, by `bntools.core.serve.sampled`; its shape, and its largest value."""

    values: np.ndarray
    shape: tuple[int, ...]
    scale: float


class Runtime:
    """A process with ONNX Runtime; it is started when it is first asked.

    Args:
        limit: seconds that one request may take.

    Raises:
        CaptureError: from whatever asks it first, if it does not start.

    Example:
        >>> with Runtime() as runtime:
        ...     runtime.name.split()[:2]
        ['ONNX', 'Runtime']
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self._version = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What runs, with its version."""
        self._started()
        return f"ONNX Runtime {self._version}"

    def open(self, path: Path, *, optimise: bool) -> Session:
        """Load a file.

        Raises:
            RefusalError, CrashError, HangError: if it does not.
        """
        answer, _ = self._ask({"ask": "open", "path": str(path), "optimise": optimise})
        inputs = tuple((name, tuple(shape), kind) for name, shape, kind in answer["inputs"])
        return Session(answer["session"], inputs, tuple((name, kind) for name, kind in answer["outputs"]))

    def run(self, session: Session, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs; errors as for `open`."""
        head = {"ask": "run", "session": session.number, "names": [*feeds]}
        return self._ask(head, [*feeds.values()])[1]

    def sample(self, session: Session, feeds: Mapping[str, np.ndarray]) -> list[Part]:
        """A part of each output; errors as for `open`."""
        head = {"ask": "run", "session": session.number, "names": [*feeds], "sample": True}
        answer, arrays = self._ask(head, [*feeds.values()])
        rows = zip(arrays, answer["shapes"], answer["scales"], strict=True)
        return [Part(values, tuple(shape), scale) for values, shape, scale in rows]

    def forget(self, session: Session) -> None:
        """Let a session go, and the memory that it takes."""
        self._ask({"ask": "forget", "session": session.number})

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written to it is of no use
                    continue
        process.wait()

    def _ask(
        self, head: dict[str, Any], arrays: Sequence[np.ndarray] = ()
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        # A thread cannot wait for longer than that.
        timer = threading.Timer(min(threading.TIMEOUT_MAX, self._limit), end)
        timer.daemon = True
        timer.start()
        try:
            serve.write(process.stdin, head, arrays)
            answer, out = serve.read(process.stdout)
        except (EOFError, OSError) as error:
            code = process.wait()
            self.close()
            if late.is_set():
                raise HangError(f"it has not answered within {self._limit:g} s") from error
            raise CrashError(f"its process ended with {_ending(code)}") from error
        except MemoryError as error:
            self.close()
            raise RefusalError("it returns more than there is memory for") from error
        except BaseException:  # an answer that is half read makes the next one nonsense
            self.close()
            raise
        finally:
            timer.cancel()
        if "error" in answer:
            raise RefusalError(_printable(answer["error"]))
        return answer, out

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        try:
            # -P: a numpy.py in the working folder is not what we want to import.
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", serve.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise _unstarted(error.strerror or str(error)) from error
        assert process.stdout is not None
        try:
            head, _ = serve.read(process.stdout)
        except EOFError as error:
            code = process.wait()
            self.close()
            raise _unstarted(_ending(code)) from error
        self._version = head["version"]
        return process


def _unstarted(why: str) -> CaptureError:
    return CaptureError(
        f"ONNX Runtime does not start: {why}", todo="see whether Python can import onnxruntime"
    )


def _printable(text: str) -> str:
    """It names what stands in a file: what that could do to a screen, or to a line, is taken from it."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
