"""What is released: the files of a wheel and a source archive, and a fold by what is in the wheel alone."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

import bntools
from bntools.cli import version
from tests import release
from tests.cli import nets

RUN_TIME = {
    "greenlet",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "rich",
    "safetensors",
    "torch",
    "typer",
}
"""Few, on purpose: another one is a decision."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel and a source archive, made with what is installed: nothing is fetched."""
    wheel, sdist = release.build(tmp_path_factory.mktemp("built"), "--no-isolation", "--wheel", "--sdist")
    return wheel, sdist


@pytest.fixture
def unpacked(built: tuple[Path, Path], tmp_path: Path) -> Path:
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_the_files(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    assert release.faults_of_wheel(release.names_in(wheel)) == []
    assert release.faults_of_sdist(release.names_in(sdist)) == []


def test_the_metadata(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    found = metadata.PathDistribution(info)
    about = found.metadata
    assert (about["Name"], about["Version"]) == ("bntools", bntools.__version__)
    assert (about["License-Expression"], about.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/markdown"
    needs = [need for need in found.requires or () if "extra ==" not in need]
    assert {re.split(r"[^\w-]", need)[0] for need in needs} == RUN_TIME
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", need) for need in needs)  # a cap is a conflict to come
    scripts = [(point.group, point.name, point.value) for point in found.entry_points]
    assert scripts == [("console_scripts", "bntools", "bntools.__main__:main")]


COMMAND = """
import sys

sys.path[:0] = [sys.argv[1]]
sys.path += sys.argv[2].split("|")
from bntools.__main__ import main

code = main(sys.argv[3:])
ours = {module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "bntools"}
print(*ours, sep="\\n", file=sys.stderr)
sys.exit(code)
"""


def test_a_fold_by_what_is_in_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    """Without ``site`` no .pth is read, so nothing leads to the editable installation."""
    torch.save(nets.net(), tmp_path / "model.pt")
    installed = "|".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    command = [sys.executable, "-I", "-S", "-c", COMMAND, unpacked, installed]
    run = subprocess.run(
        [*command, "fold", "model.pt", "--input", nets.SHAPE, "--strict", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    files = [Path(line) for line in run.stderr.splitlines()]
    assert len(files) > 50
    assert [file for file in files if not file.is_relative_to(unpacked)] == []
    old, new = (bntools.load(tmp_path / name) for name in ("model.pt", "model.folded.pt"))
    assert "BatchNorm2d" in str(old)
    assert "BatchNorm2d" not in str(new)
    shipped = bntools.verify(old, new, torch.ones(2, 3, 8, 8), exact=False)  # its weights have been rounded
    assert shipped.verdict == "passed"


RIGHT = [
    *sorted(release.files_of("bntools")),
    *(f"bntools-1.dist-info/{n}" for n in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")),
    "bntools-1.dist-info/licenses/LICENSE",
]


def test_what_is_wrong_with_a_wheel_is_named() -> None:
    assert release.faults_of_wheel(RIGHT) == []
    for name in ("bntools/py.typed", "bntools/report/page.css", "bntools/core/plan.py"):
        assert f"{name}: missing" in release.faults_of_wheel([n for n in RIGHT if n != name])
    for name, why in [
        ("tests/test_api.py", "outside the package"),
        ("bntools/__pycache__/errors.cpython-311.pyc", "not in the repository"),
        ("bntools/core/plan.py.orig", "of no known kind"),
        ("bntools-1.data/scripts/bntools", "outside the package"),
    ]:
        assert f"{name}: {why}" in release.faults_of_wheel([*RIGHT, name])
    assert release.faults_of_wheel(RIGHT[:-1]) == [".dist-info/licenses/LICENSE: one too many, or missing"]


def test_what_is_wrong_with_a_source_archive_is_named() -> None:
    right = [*release.files_of(*release.SOURCES), *release.BESIDE, "PKG-INFO"]
    assert release.faults_of_sdist(right) == []
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "tests/golden/tied.safetensors", "docs/schema/fold.json"):
        assert release.faults_of_sdist([n for n in right if n != name]) == [f"{name}: missing"]
    strange = "tests/__pycache__/zoo.cpython-311.pyc"
    assert release.faults_of_sdist([*right, strange]) == [f"{strange}: nobody asked for it"]


def test_what_is_left_to_do_by_hand_is_told() -> None:
    done = "## [Unreleased]\n\n## [1.2.0] - 2030-01-31\n"
    linked = "[a](https://example.org/a) and [b](#b)"
    assert list(release.notes_on("1.2.0", linked, done)) == []
    assert len(list(release.notes_on("1.3.0", linked, done))) == 1
    assert len(list(release.notes_on("1x2.0", linked, done))) == 1
    (note,) = release.notes_on("1.2.0", linked + " [c](docs/c.md) ![d](d.png)", done)
    assert note.endswith(": d.png, docs/c.md")


def test_the_versions_are_those_of_all_that_it_stands_on() -> None:
    lines = version.versions().splitlines()
    assert lines[0] == f"bntools {bntools.__version__}"
    assert lines[1] == f"python {sys.version.split()[0]}"
    assert dict(line.split(" ", 1) for line in lines[2:]) == {n: metadata.version(n) for n in RUN_TIME}
    about = tomllib.loads((release.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {need.partition(">=")[0] for need in about["dependencies"]} == RUN_TIME


def test_a_package_that_is_missing_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfway-1.0.dist-info").mkdir()  # pip was stopped while it removed this one
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(version, "STANDS_ON", ("typer", "no-such-package", "halfway"))
    lines = version.versions().splitlines()[2:]
    assert lines[0] == f"typer {metadata.version('typer')}"
    assert lines[1:] == ["no-such-package not installed", "halfway not installed"]
