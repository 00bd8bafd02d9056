"""Hostile and damaged ONNX files: a clean answer to each, nothing written, nothing read from elsewhere."""

from __future__ import annotations

import faulthandler
import os
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import bntools as bn
from bntools.__main__ import main
from bntools.cli.app import EXIT_CODES
from bntools.core import child, headers, serve
from bntools.core.child import RefusalError, Runtime
from bntools.core.example import Example
from bntools.core.external import read_proto, weights_before, weights_of
from bntools.core.sides import FileSide
from bntools.core.sniff import Kind, sniff
from bntools.core.variants import variant
from bntools.errors import BntoolsError, SourceError
from bntools.verbs import verify as verifying
from tests.cli import nets
from tests.cli.conftest import digests
from tests.hostile import onnx_files
from tests.hostile.onnx_files import FILES, NAME, SOUND, File

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying

CODES = {int(code) for code in re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)} - {101, 130}
SECONDS = 60


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    took: float


Run = Callable[..., Ran]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; beside it lie what must not be read, and where temporary files go."""
    (tmp_path / "in").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "secret.data").write_bytes(np.full(1024, 31337, np.float32).tobytes())
    torch.save(nets.net(), tmp_path / "model.pt")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line here; also what a library writes past Python is seen."""

    def call(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        start = time.monotonic()
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # what hangs may not even hear a signal
        try:
            code = main([str(each) for each in arguments])
        finally:
            faulthandler.cancel_dump_traceback_later()
        return Ran(code, *capfd.readouterr(), time.monotonic() - start)

    return call


def ensure_clean(ran: Ran) -> None:
    """A documented exit code, and words that fit a screen and do nothing to it."""
    assert ran.code in CODES, ran
    assert "Traceback" not in ran.out + ran.err
    assert len([line for line in ran.err.split("\n") if line and not line.startswith("note")]) <= 2, ran.err
    assert not [line for line in (ran.out + ran.err).split("\n") if not line.isprintable()]
    assert "31337" not in ran.out + ran.err
    assert ran.took < SECONDS


def given(file: File) -> list[str]:
    return ["--input", *file.takes] if file.takes else []


NAMES = [
    pytest.param(name, marks=pytest.mark.zoo if name == "a gigabyte made" or at % 2 else ())
    for at, name in enumerate(FILES)
]
"""Half of them; one of the others takes half a minute."""


@pytest.mark.parametrize("name", NAMES)
def test_verify_answers(run: Run, place: Path, name: str) -> None:
    file = FILES[name]
    path = file.write(place)
    before = digests(place.parent)
    ran = run("verify", path, path, *given(file))
    ensure_clean(ran)
    assert (ran.code, file.says in ran.out + ran.err) == (file.code, True), ran
    beside = run("verify", "../model.pt", path, "--no-bisect", *(given(file) or ["--input", nets.SHAPE]))
    ensure_clean(beside)
    assert "passed" not in beside.out
    assert digests(place.parent) == before


@pytest.mark.parametrize("name", SOUND)
def test_the_twins_are_no_trouble(run: Run, place: Path, name: str) -> None:
    """Each has what some hostile file has, put to an honest use."""
    path = File(SOUND[name], 0, "").write(place)
    before = digests(place.parent)
    ran = run("verify", path, path)
    ensure_clean(ran)
    assert (ran.code, ran.err) == (0, "")
    assert "verdict     passed" in ran.out
    assert digests(place.parent) == before


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.zoo if at % 4 else ()) for at, name in enumerate(FILES)]
)
def test_other_commands_answer(run: Run, place: Path, name: str) -> None:
    """Whatever they do with ONNX files: they write where they are told to, if at all."""
    file = FILES[name]
    path = file.write(place)
    (place.parent / "out").mkdir()
    before = digests(place.parent)
    ensure_clean(run("inspect", path, *given(file)[:2]))
    assert digests(place.parent) == before
    ensure_clean(run("fold", path, "-o", "../out/folded.onnx", *given(file)[:2]))
    left = digests(place.parent)
    assert {key: left.pop(key) for key in list(left) if key.startswith("out/folded.onnx")}.keys() <= {
        "out/folded.onnx",
        *(f"out/{each.name}" for each in (place.parent / "out").glob("folded.onnx.*.data")),
    }
    assert left == before


TARGETS = [
    "external above",
    "external link",
    "external hard link",
    "external pipe",
    "external directory",
    "external in a function",
    "external, long name",
    "external, bytes that are no text",
    "names with escapes",
    "names that are no text",
    "graphs in graphs without end",
    "cycle",
]
"""A whole export for each of these takes a second or two; the others are asked the same by hand."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_hostile_target_is_replaced_and_nothing_else_happens(run: Run, place: Path, name: str) -> None:
    path = FILES[name].write(place)
    before = digests(place.parent)
    bare = ("--no-fold", "--no-verify", "--no-compare", "--input", nets.SHAPE, "--force", "-o", path)
    ran = run("export", "../model.pt", *bare)
    ensure_clean(ran)
    assert ran.code == 0, ran
    after = digests(place.parent)
    assert after.pop(f"in/{NAME}") != before.pop(f"in/{NAME}")
    assert after == before
    assert len(onnx.load(path).graph.node) > 1


@pytest.mark.parametrize("name", sorted({*FILES} - {*TARGETS}))
def test_a_target_is_looked_at_without_harm(place: Path, name: str) -> None:
    """What `bntools.core.programfile` asks of a file before it replaces it."""
    path = FILES[name].write(place)
    before = digests(place.parent)
    assert all(each.parent == place for each in weights_before(path))
    assert digests(place.parent) == before


def test_what_a_target_names_beside_it_is_known(place: Path) -> None:
    """The twin: weights that a sound file names are found, so that they can go with it."""
    path = File(SOUND["weights beside it"], 0, "").write(place)
    assert weights_before(path) == [place / "w.data"]


def test_a_pipe_is_no_target_and_keeps_nobody_waiting(place: Path) -> None:
    os.mkfifo(place / "m.onnx")
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(weights_before(place / "m.onnx")), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [[]], "it waits for somebody who writes"
    with pytest.raises(bn.UsageError, match="no ordinary file"):
        bn.export(nets.net(), torch.zeros(2, 3, 8, 8), place / "m.onnx", force=True)


def test_what_is_no_onnx_file_is_not_read_before_it_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(onnx, "load", forbidden)
    (place / "m.onnx").write_bytes(b"\x80" * 1000)
    assert weights_before(place / "m.onnx") == []
    with pytest.raises(SourceError, match="AssertionError"):
        weights_of(File(SOUND["plain"], 0, "").write(place))


@pytest.mark.parametrize("name", ["m.json", "m.onnxtxt", "m.textproto", "m.ort", "m.pb", "m"])
def test_what_a_name_ends_in_says_nothing(run: Run, place: Path, name: str) -> None:
    """The libraries read by it: JSON, text, a format of the runtime's own."""
    path = File(SOUND["plain"], 0, "").write(place, name)
    ran = run("verify", path, path)
    assert (ran.code, ran.err) == (0, "")
    assert "verdict     passed" in ran.out


def test_a_file_of_nothing_but_small_fields_is_given_up(place: Path) -> None:
    graph = onnx_files.sound().SerializeToString()
    for count, kind in ((1000, Kind.ONNX), (headers._MOST_FIELDS, None)):
        (place / "m.onnx").write_bytes(b"\x08\x0a" * count + graph)
        if kind is None:
            with pytest.raises(SourceError, match="not a model"):
                sniff(place / "m.onnx")
        else:
            assert sniff(place / "m.onnx").kind is kind


WORDS = ("opset", "IR version", "NOT_IMPLEMENTED", "Could not find an implementation")


@pytest.mark.parametrize("words", WORDS)
def test_words_in_a_name_excuse_nothing(run: Run, place: Path, words: str) -> None:
    """The runtime's messages hold paths and names: a file that is wrong is wrong in any folder."""
    (place / words).mkdir()
    proto = onnx_files.sound()
    proto.graph.node[0].input[0] = f"{words} y"
    path = place / words / f"{words}.onnx"
    path.write_bytes(proto.SerializeToString())
    ran = run("verify", path, path, "--input", nets.SHAPE)
    assert ran.code == 1, ran
    assert words in ran.out


def test_text_of_the_runtime_is_printable(place: Path) -> None:
    path = FILES["names with escapes"].write(place)
    with Runtime() as runtime, pytest.raises(RefusalError) as caught:
        runtime.open(path, optimise=False)
    assert r"\x1b[2J\x1b]0;owned\x07\x9b31m" in str(caught.value)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


@pytest.mark.parametrize("limit", ["1e10", "inf"])
def test_a_limit_may_be_beyond_what_a_clock_can_wait(run: Run, place: Path, limit: str) -> None:
    path = File(SOUND["plain"], 0, "").write(place)
    ran = run("verify", path, path, "--limit", limit)
    assert (ran.code, ran.err) == (0, "")


def test_the_runtime_s_process_is_the_first_to_go_where_memory_runs_out() -> None:
    if not Path("/proc/self/oom_score_adj").exists():
        pytest.skip("only Linux says which process goes first")
    with Runtime() as runtime:
        assert runtime.name
        assert runtime._process is not None
        score = Path(f"/proc/{runtime._process.pid}/oom_score_adj")
        assert score.read_text().strip() == "1000"
    assert Path("/proc/self/oom_score_adj").read_text().strip() != "1000"


def test_an_answer_that_is_larger_than_the_memory_is_a_refusal(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: object) -> None:
        raise MemoryError

    path = File(SOUND["plain"], 0, "").write(place)
    with Runtime() as runtime:
        assert runtime.name
        with monkeypatch.context() as patch:
            patch.setattr(serve, "read", full)
            with pytest.raises(RefusalError, match="memory"):
                runtime.open(path, optimise=False)
        assert runtime.open(path, optimise=False).number == 0, "half of an answer was left in the pipe"


@pytest.mark.parametrize("how", ["it ends at once", "there is none"])
def test_a_runtime_that_does_not_start(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = File(SOUND["plain"], 0, "").write(place)
    if how == "there is none":
        monkeypatch.setattr(child.sys, "executable", str(place / "no-python"))
    else:
        (place.parent / "serve.py").write_text("raise SystemExit(3)\n")
        monkeypatch.setattr(serve, "__file__", str(place.parent / "serve.py"))
    before = digests(place.parent)
    for arguments in (
        ("verify", path, path),
        ("export", "../model.pt", "--input", nets.SHAPE, "--no-compare", "--force", "-o", path),
    ):
        ran = run(*arguments)
        ensure_clean(ran)
        assert ran.code == 4, ran
        assert "ONNX Runtime does not start" in ran.err
    assert digests(place.parent) == before


def test_a_file_does_not_say_how_it_is_run(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime takes options from a file, one of which is to write a profile."""
    proto = onnx_files.sound()
    entry = proto.metadata_props.add()
    entry.key, entry.value = "ort_config", '{"session_options": {"enable_profiling": true}}'
    (place / "m.onnx").write_bytes(proto.SerializeToString())
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    before = digests(place.parent)
    assert run("verify", "m.onnx", "m.onnx").code == 0
    assert digests(place.parent) == before


def test_no_room_for_a_changed_copy(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = File(SOUND["plain"], 0, "").write(place)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place.parent / "secret.data"))
        ran = run("verify", path, path)
    ensure_clean(ran)
    assert ran.code == 2
    assert "a changed copy of it cannot be written" in ran.err


def test_a_change_that_a_file_does_not_bear(place: Path) -> None:
    path = FILES["tensor with too few bytes"].write(place)

    def change(proto: onnx.ModelProto) -> None:
        onnx.numpy_helper.to_array(proto.graph.initializer[0])

    with pytest.raises(SourceError, match="cannot be read whole"), variant(path, change):
        pass
    with pytest.raises(ZeroDivisionError), variant(path, lambda proto: None):
        raise ZeroDivisionError  # an error of the block is its own


# --- two thousand damaged files ---

COUNT = 2000
STARTS = {name: SOUND[name] for name in SOUND}


def originals(folder: Path) -> dict[str, bytes]:
    found = {}
    for name, change in STARTS.items():
        proto = onnx_files.sound()
        change(proto, folder)
        found[name] = proto.SerializeToString()
    return found


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    match rng.randrange(6):
        case 0:
            return bytes(data[: rng.randrange(len(data))])
        case 1:  # another file's bytes from somewhere on
            at = rng.randrange(8, len(data))
            return bytes(data[:at]) + rng.randbytes(rng.choice([1, 20, len(data) - at]))
        case 2:  # something is left out, and all lengths are wrong
            at = rng.randrange(8, len(data))
            del data[at : at + rng.choice([1, 2, 30])]
        case 3:
            at = rng.randrange(8, len(data))
            data[at:at] = rng.randbytes(rng.choice([1, 2, 30]))
        case _:
            for _ in range(rng.choice([1, 1, 2, 8])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def made(number: int, contents: dict[str, bytes]) -> bytes:
    """The file of a number: always the same."""
    rng = random.Random(f"file {number}")
    name = rng.choice([*contents, "noise"])
    if name == "noise":
        head = rng.choice(
            [b"\x08\x0a", b"\x08\x0a\x12\x00", contents["plain"][:30], contents["a function"][:300]]
        )
        return head + rng.randbytes(rng.choice([0, 3, 40, 3000]))
    return damaged(contents[name], rng)


def open_everything(path: Path) -> None:
    """All that is done to a file before the runtime has it."""
    if sniff(path).kind is not Kind.ONNX:
        raise AssertionError("it passes for something else")
    read_proto(path)
    weights_of(path)
    side = FileSide(path, Runtime())
    example = verifying._guessed(side)
    assert len(side.feeds(example)) == len(side.inputs)
    assert side.takes(example)
    side.stand_in()


def test_damaged_files_give_an_error_of_ours_or_open(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_MOST", 1 << 16)
    contents, path = originals(place), place / "m.onnx"
    for content in contents.values():
        path.write_bytes(content)
        open_everything(path)
    opened = refused = 0
    start = time.process_time()
    for number in range(COUNT):
        path.write_bytes(made(number, contents))
        try:
            open_everything(path)
            opened += 1
        except BntoolsError as error:
            refused += error.exit_code in CODES
        except Exception as error:
            pytest.fail(f"file {number}, made({number}, originals(folder)): {error!r}")
        assert {each.parent for each in weights_before(path)} <= {place}, number
    assert opened + refused == COUNT
    assert opened > COUNT / 10
    assert refused > COUNT / 4
    assert time.process_time() - start < 45
    assert sorted(each.name for each in place.iterdir()) == ["m.onnx", "w.data"]


@pytest.mark.zoo
def test_a_sample_of_them_through_the_whole_of_verify(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_MOST", 1 << 16)
    contents, path = originals(place), place / "m.onnx"
    shutil.copy(place.parent / "model.pt", place / "model.pt")
    ended: dict[int, int] = {}
    for number in range(0, COUNT, COUNT // 40):
        path.write_bytes(made(number, contents))
        before = digests(place.parent)
        for pair in ((path, path), ("model.pt", path, "--no-bisect", "--input", nets.SHAPE)):
            ran = run("verify", *pair, "--limit", "20")
            try:
                ensure_clean(ran)
            except AssertionError as error:
                pytest.fail(f"file {number}, made({number}, originals(folder)): {error}")
            ended[ran.code] = ended.get(ran.code, 0) + 1
        assert digests(place.parent) == before
    assert {0, 1, 2} <= ended.keys(), ended


def test_the_example_of_a_file_fits_it(place: Path) -> None:
    """The twin of what is refused for its shapes: an open axis has two rows."""
    side = FileSide(File(SOUND["plain"], 0, "").write(place), Runtime())
    (tensor,) = verifying._guessed(side).tensors
    assert tuple(tensor.shape) == onnx_files.SHAPE
    assert isinstance(verifying._guessed(side), Example)
