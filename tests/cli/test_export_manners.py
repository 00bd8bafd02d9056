"""Export where it is narrow: an ASCII terminal, a folder that cannot be written, a full disk, and SIGKILL."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from bntools.core import atomic
from tests import kills
from tests.cli import nets
from tests.cli.conftest import ROOT, digests

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)
VERBS = {"export": ("export", "--no-compare"), "fold": ("fold",)}
NAME = "modèle ☃"

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def private(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script of the shell where it may mount things that nobody else sees."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare here")
    alone = [unshare, "--user", "--map-root-user", "--mount"]
    if subprocess.run(
        [*alone, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode:
        pytest.skip("nobody may mount a file system here")
    return subprocess.run(
        [*alone, "sh", "-euc", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **environment},
        capture_output=True,
        check=False,
    )


def plain(ran: subprocess.CompletedProcess[bytes]) -> None:
    assert ran.stdout.isascii()
    assert ran.stderr == b""


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.zoo if verb == "fold" else ()) for verb in VERBS]
)
def test_an_ascii_terminal_a_name_that_is_none_and_a_working_folder_that_is_read_only(
    saved: Saved, folder: Path, verb: str
) -> None:
    """The folder is read-only for root too, which a mode is not."""
    saved(nets.partly(), f"{NAME}.pt")
    for name in ("work", "out"):
        (folder / name).mkdir()
    command, *more = VERBS[verb]
    ran = private(
        folder,
        "mount -t tmpfs none work; mount -o remount,ro work; cd work\n"
        "if touch x 2> /dev/null; then exit 99; fi\n"
        '"$PYTHON" -m bntools "$VERB" "../$NAME.pt" --input "$SHAPE" $MORE -o "../out/$NAME.onnx"',
        PYTHONIOENCODING="ascii", VERB=command, NAME=NAME, SHAPE=nets.SHAPE, MORE=" ".join(more),
    )  # fmt: skip
    assert ran.returncode == 0, ran
    plain(ran)
    assert rb"mod\xe8le \u2603.onnx" in ran.stdout
    assert [each.name for each in (folder / "out").iterdir()] == [f"{NAME}.onnx"]
    onnx.checker.check_model(str(folder / "out" / f"{NAME}.onnx"), full_check=True)


def test_an_error_about_such_a_name_is_ascii_too(saved: Saved, folder: Path) -> None:
    saved(name=f"{NAME}.pt")
    (folder / f"{NAME}.onnx").write_text("mine")
    before = digests(folder)
    ran = subprocess.run(
        [sys.executable, "-m", "bntools", "export", f"{NAME}.pt", *ON],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 2, ran
    assert rb"mod\xe8le \u2603.onnx: exists" in ran.stderr
    assert (ran.stdout, len(ran.stderr.splitlines())) == (b"", 2)
    assert digests(folder) == before


FULL = """
import json, os, sys
from pathlib import Path
from bntools.__main__ import main

def files(place):
    return {each.name: each.read_bytes().hex() for each in place.iterdir()}

found = []
for size in json.loads(sys.argv[1]):
    for more in ([], ["--external-data"]):
        place = Path(f"disk {size} {len(more)}")
        place.mkdir()
        if os.system(f"mount -t tmpfs -o size={size}k none '{place}'"):
            sys.exit(98)
        (place / "m.onnx").write_text("mine")
        before = files(place)
        code = main([*sys.argv[2:], "-o", str(place / "m.onnx"), "--force", *more])
        after = files(place)
        whole = after.pop("m.onnx", "")
        found.append([size, more, code, {"m.onnx": whole, **after} == before, whole, sorted(after)])
Path("found.json").write_text(json.dumps(found))
"""


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.zoo if verb == "fold" else ()) for verb in VERBS]
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved: Saved, folder: Path, verb: str) -> None:
    """A disk of a few pages: the old file, the temporary folder and the weights do not fit, or they do."""
    saved(nets.net(width=400))
    (folder / "full.py").write_text(FULL)
    command, *more = VERBS[verb]
    small, large = [8, 16, 48], [256]
    arguments = shlex.join([json.dumps(small + large), command, "model.pt", *ON, *more])
    ran = private(folder, f'exec "$PYTHON" full.py {arguments}')
    assert ran.returncode == 0, ran
    found = json.loads((folder / "found.json").read_text())
    assert len(found) == 8
    for size, more_of, code, untouched, whole, others in found:
        if verb == "fold" and more_of:
            assert code == 2  # it has no such option
            continue
        if size in small:
            assert (code, untouched) == (2, True), (size, more_of, others)
        else:
            assert (code, untouched) == (0, False)
            assert len(others) == len(more_of)
            assert len(onnx.load_from_string(bytes.fromhex(whole)).graph.node) == 3
    errors = [line for line in ran.stderr.decode().splitlines() if "cannot be written" in line]
    assert len(errors) == (6 if verb == "export" else 3), ran.stderr
    assert all("No space left" in line for line in errors)


@pytest.mark.zoo  # in `make test` a run is ended before each move, below
def test_killed_at_any_moment_the_target_is_the_old_file_or_the_new_one() -> None:
    """Eight here; two hundred with ``make kills``."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kills", "8"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert "6 spread over the run" in ran.stdout or "7 spread over the run" in ran.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[int, str], kills.Files]]:
    """Two models, and the files that they become in either form."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    for number in (0, 1):
        torch.save(kills._model(number), folder / f"{number}.pt")
        for external in ("", "--external-data"):
            place = folder / f"{number}{external}"
            place.mkdir()
            assert exported(folder, number, place, external) == 0
            found[number, external] = kills.contents(place)
    return folder, found


def exported(folder: Path, number: int, place: Path, external: str) -> int:
    return kills.export(folder / f"{number}.pt", place / kills.TARGET, external, "--no-verify")


MOVES = [(form, move) for form, (_, after) in kills.FORMS.items() for move in range(3 if after else 2)]


@pytest.mark.parametrize(
    ("form", "move"),
    [pytest.param(*each, marks=pytest.mark.zoo if at % 3 else ()) for at, each in enumerate(MOVES)],
)
def test_ended_before_each_move(
    made: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, form: str, move: int
) -> None:
    """Each point between moves, which a random kill seldom hits; the last is behind them all."""
    models, files = made
    before, after = kills.FORMS[form]
    old, new = files[0, before], files[1, after]
    for name, content in old.items():
        (folder / name).write_bytes(content)
    settle, seen = atomic._settle, []

    def ended(part: Path, path: Path) -> None:
        if len(seen) == move:
            raise KeyboardInterrupt
        seen.append(path)
        settle(part, path)

    over = move == len(new)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_settle", ended)
        assert exported(models, 1, folder, after) == (0 if over else 130)
    assert kills.ends(folder, old, new) == ("new" if over else "old")
    assert len(kills.contents(folder)) == (len(new) if over else len(old) + move)
    assert exported(models, 1, folder, after) == 0
    assert kills.contents(folder) == new


def test_the_judge_of_a_kill_can_say_no(made: Any, folder: Path) -> None:
    """What `tests.kills` calls old or new is whole; half of a pair is not, nor is a file of other bytes."""
    pair, place = made[1][0, "--external-data"], folder
    for name, content in pair.items():
        (place / name).write_bytes(content)
    (weights,) = (name for name in pair if name != kills.TARGET)
    other = {kills.TARGET: b"other"}
    assert kills.ends(place, pair, other) == "old"
    assert kills.ends(place, other, pair) == "new"
    (place / "stray").write_bytes(b"")
    assert "left" in kills.ends(place, pair, other)
    (place / "stray").unlink()
    (place / weights).write_bytes(pair[weights][:-1])
    assert kills.ends(place, pair, other) not in ("old", "new")
    (place / weights).unlink()
    assert kills.ends(place, pair, other) not in ("old", "new")
    (place / weights).write_bytes(pair[weights])
    (place / kills.TARGET).write_bytes(pair[kills.TARGET][:-1])
    assert kills.ends(place, pair, other) not in ("old", "new")
    (place / kills.TARGET).unlink()
    assert kills.ends(place, pair, other) == "the target is gone"


def test_the_moments_of_a_kill_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        kills,
        "Kills",
        lambda *args: type("K", (), {"kill": lambda self, form, aimed: found.append((form, aimed))})(),
    )
    kills.run(200)
    over_pair = sum(form.endswith("over pair") for form, _ in found)
    assert (len(found), over_pair, sum(aimed for _, aimed in found)) == (200, 100, 40)
    assert {form for form, aimed in found if aimed} == {*kills.FORMS}
