"""Lets scripts run ``bntools`` in the process of the tests: to start Python and import torch takes seconds.

The scripts are run by a real bash; the `bntools` that they find hands its arguments over a socket, and prints
and ends with what comes back. `python -m pip` and `pip` are only written down.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bntools.__main__ import main

_CALLER = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    with server.makefile("rw", encoding="utf-8") as stream:
        asked = {{"arguments": sys.argv[1:], "cwd": os.getcwd(), "environ": dict(os.environ)}}
        stream.write(json.dumps(asked) + "\\n")
        stream.flush()
        answer = json.loads(stream.readline())
sys.stdout.buffer.write(answer["out"].encode())
sys.stderr.buffer.write(answer["err"].encode())
sys.exit(answer["code"])
"""
# A shebang takes no path with a space in it.
_BNTOOLS = '#!/bin/sh\nexec "{python}" -IS "{caller}" "$@"\n'
_PIP = '#!/bin/sh\nfor each in "$@"; do echo "$each"; done >> "{log}"\n'
_PYTHON = '#!/bin/sh\n[ "$1 $2" = "-m pip" ] || exec "{python}" "$@"\nshift 2\nexec pip "$@"\n'


class Server:
    """Executes programs that may call ``bntools``.

    Args:
        folder: empty, and of a short name, since that of a socket may not be long.
    """

    def __init__(self, folder: Path) -> None:
        self.programs, self._log = folder / "bin", folder / "pip.log"
        self.calls: list[list[str]] = []
        """The arguments of each ``bntools``."""
        self.programs.mkdir()
        self._socket = socket.socket(socket.AF_UNIX)
        address = str(folder / "s")
        self._socket.bind(address)
        self._socket.listen()
        caller = folder / "caller.py"
        caller.write_text(_CALLER.format(address=address), "utf-8")
        for name, text in {
            "bntools": _BNTOOLS.format(python=sys.executable, caller=caller),
            "pip": _PIP.format(log=self._log),
            "python": _PYTHON.format(python=sys.executable),
        }.items():
            program = self.programs / name
            program.write_text(text, "utf-8")
            program.chmod(0o755)

    @property
    def installed(self) -> list[str]:
        """All arguments of ``pip``."""
        return self._log.read_text("utf-8").splitlines() if self._log.exists() else []

    def execute(
        self, command: Sequence[str], folder: Path, environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, and answer what its ``bntools`` asks until it ends."""
        given = {**environ, "PATH": f"{self.programs}:{environ['PATH']}"}
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            with subprocess.Popen(command, cwd=folder, env=given, stdout=out, stderr=err) as program:
                while program.poll() is None:
                    if select.select([self._socket], [], [], 0.02)[0]:
                        self._answer()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, program.returncode, out.read(), err.read())

    def _answer(self) -> None:
        caller, _ = self._socket.accept()
        with caller, caller.makefile("rw", encoding="utf-8") as stream:
            asked = json.loads(stream.readline())
            self.calls.append(asked["arguments"])
            out, err = io.StringIO(), io.StringIO()
            streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
            with _there(asked["cwd"], asked["environ"]), streams[0], streams[1]:
                code = main(asked["arguments"])
            stream.write(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}) + "\n")

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server, and nothing of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ci"))
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)


@contextlib.contextmanager
def _there(folder: str, environ: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    with contextlib.chdir(folder):
        os.environ.clear()
        os.environ.update(environ)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
