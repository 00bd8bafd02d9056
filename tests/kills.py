"""Kill exports at random moments: what lies at the target afterwards is the old file or the new one, whole.

``python -m tests.kills 200`` prints how many of each, and ends with 1 if anything else was left.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from bntools.__main__ import main
from bntools.core import atomic
from tests.cli import nets

TARGET = "m.onnx"
FORMS = {
    # what is replaced, what takes its place: in one file, or with the weights in another
    "pair over pair": ("--external-data", "--external-data"),
    "file over pair": ("--external-data", ""),
    "file over file": ("", ""),
    "pair over file": ("", "--external-data"),
}

Files = dict[str, bytes]


@dataclass(frozen=True)
class Kill:
    """Where a run was ended, and what it left.

    Args:
        form: one of `FORMS`.
        delay: seconds from its start, or from its first move.
        aimed: whether at the moves.
        left: ``old``, ``new``, or what is wrong.
        between: whether the new weights had taken their place and the file that names them had not.
        ended: whether it was over before.
    """

    form: str
    delay: float
    aimed: bool
    left: str
    between: bool
    ended: bool


def export(model: Path, target: Path, external: str, *more: str) -> int:
    """An export as the command line does it, with all its checks unless told otherwise."""
    options = [*filter(None, [external]), *more, "--input", nets.SHAPE, "--no-compare", "--force"]
    return main(["export", str(model), "-o", str(target), *options])


def forked(work: Callable[[], int]) -> int:
    """Start something in a copy of this process, in which torch is there already."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        code = work()
    finally:
        os._exit(code)


def contents(folder: Path) -> Files:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def what_is_wrong(folder: Path) -> str:
    """Whether the target loads, and has the weights that it names, by their content."""
    path = folder / TARGET
    if not path.is_file():
        return "the target is gone"
    try:
        onnx.checker.check_model(str(path), full_check=True)
        onnx.load(path)
    except Exception as error:
        return f"the target does not load: {error}"
    for held in onnx.load(path, load_external_data=False).graph.initializer:
        for entry in held.external_data:
            if entry.key == "location":
                digest = hashlib.sha256((folder / entry.value).read_bytes()).hexdigest()
                if digest[:12] not in entry.value:
                    return f"{entry.value} holds something else"
    return ""


def ends(folder: Path, old: Files, new: Files) -> str:
    """``old``, ``new``, or what is wrong."""
    there = contents(folder)
    for name, whole in (("old", old), ("new", new)):
        if whole.items() <= there.items():
            strange = [each for each in there if each not in old and each not in new]
            return what_is_wrong(folder) or (f"it left {strange}" if strange else name)
    return what_is_wrong(folder) or "the target is neither the old nor the new one"


def announcing(pipe: int) -> None:
    """Tell when the first file is about to take its place."""
    settle = atomic._settle

    def told(part: Path, path: Path) -> None:
        os.write(pipe, b"!")
        settle(part, path)

    atomic._settle = told


class Kills:
    """The models, the files that they become, and how long that takes.

    Args:
        folder: an empty one.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self.models = [folder / "old.pt", folder / "new.pt"]
        for number, path in enumerate(self.models):
            torch.save(_model(number), path)
        with redirect_stdout(io.StringIO()):
            export(self.models[0], folder / TARGET, "")  # it imports what it needs
        self._made: dict[tuple[int, str], Files] = {}
        for form in {each for pair in FORMS.values() for each in pair}:
            for number, model in enumerate(self.models):
                place = self._empty()
                if os.waitstatus_to_exitcode(
                    os.waitpid(forked(lambda m=model, p=place, f=form: export(m, p / TARGET, f)), 0)[1]
                ):
                    raise RuntimeError("an export that nobody kills fails")
                self._made[number, form] = contents(place)
        self.seconds, self.moves = self._measured()

    def _empty(self) -> Path:
        place = self._folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def _prepared(self, form: str) -> tuple[Path, Files, Files]:
        place = self._empty()
        before, after = (self._made[number, external] for number, external in enumerate(FORMS[form]))
        for name, content in before.items():
            (place / name).write_bytes(content)
        return place, before, after

    def _measured(self) -> tuple[float, float]:
        """Seconds of a run, and of its last part, from its first move on."""
        place, *_ = self._prepared("pair over pair")
        start = time.monotonic()
        child, told = self._start(place, "pair over pair")
        os.read(told, 1)
        moved = time.monotonic()
        os.waitpid(child, 0)
        os.close(told)
        return time.monotonic() - start, time.monotonic() - moved

    def _start(self, place: Path, form: str) -> tuple[int, int]:
        hear, tell = os.pipe()

        def work() -> int:
            announcing(tell)
            return export(self.models[1], place / TARGET, FORMS[form][1])

        child = forked(work)
        os.close(tell)
        return child, hear

    def kill(self, form: str, *, aimed: bool) -> Kill:
        """Kill one export, and let another one follow it."""
        place, old, new = self._prepared(form)
        delay = self._random.uniform(0, 1.5 * self.moves if aimed else 1.05 * self.seconds)
        child, hear = self._start(place, form)
        if aimed:
            os.read(hear, 1)
        time.sleep(delay)
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        if not ended:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(hear)
        left = ends(place, old, new)
        between = left == "old" and not new.keys() <= old.keys() and len(contents(place)) > len(old)
        return Kill(form, delay, aimed, self._afterwards(place, form, left, new), between, ended)

    def _afterwards(self, place: Path, form: str, left: str, new: Files) -> str:
        """What is left, or that a later run trips over it."""
        later = forked(lambda: export(self.models[1], place / TARGET, FORMS[form][1], "--no-verify"))
        if os.waitstatus_to_exitcode(os.waitpid(later, 0)[1]):
            return f"{left}, but the next export fails"
        if not new.items() <= contents(place).items() or what_is_wrong(place):
            return f"{left}, but the next export is not whole"
        strange = [each.name for each in place.iterdir() if each.is_dir()]
        if any(not re.fullmatch(rf"\.{re.escape(TARGET)}\..+\.part", name) for name in strange):
            return f"{left}, and {strange}"
        return left


def _model(seed: int) -> nn.Module:
    """Its weights are large enough to lie in a file of their own."""
    model = nets.net(64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * seed)
    return model


def run(count: int = 200, seed: int = 0) -> tuple[list[Kill], Kills]:
    """Kill so many exports, every fifth of them at its moves."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bntools-kills-") as folder:
        kills = Kills(Path(folder), seed)
        forms = [*FORMS]
        return [
            kills.kill(
                forms[number % len(forms)],
                aimed=number % 5 == 4,  # so that each form has its turn
            )
            for number in range(count)
        ], kills


def report(found: list[Kill], kills: Kills) -> str:
    lines = [
        f"a run takes {kills.seconds:.2f} s, its last part from the first move on {1000 * kills.moves:.1f} ms"
    ]
    for name, part in (
        ("spread over the run", [each for each in found if not each.aimed]),
        ("aimed at the moves", [each for each in found if each.aimed]),
    ):
        left = Counter(each.left for each in part)
        between = sum(each.between for each in part)
        ended = sum(each.ended for each in part)
        counted = ", ".join(f"{left.pop(word, 0)} {word}" for word in ("old", "new"))
        lines.append(
            f"{len(part)} {name}: {counted} ({ended} were over before), {between} between the two moves"
        )
        lines += [f"  {times} times: {what}" for what, times in left.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    every, kills = run(*map(int, sys.argv[1:]))
    sys.stdout.write(report(every, kills))
    sys.exit(any(each.left not in ("old", "new") for each in every))
