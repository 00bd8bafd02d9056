"""What a release is made of: it is built, installed where nothing of the repository is, and used there.

``python -m tests.release`` builds a source archive and a wheel of that, checks both, and leaves them in
``dist`` if they pass. `tests/test_release.py` asks the same of what is in them, and makes no environment.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parent.parent
TWINE = ("twine==7.0.0", "readme_renderer[md]==46.0")
ENDINGS = {".py", ".typed", ".css", ".js"}
"""Of the files in the package; another one is a leftover, or belongs in this list."""
NEEDED = ("py.typed", "report/page.css", "report/page.js")
SOURCES = (".ci", ".github", "action", "bntools", "docs", "examples", "tests")
BESIDE = (
    ".pre-commit-hooks.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "action.yml",
    "constraints.txt",
    "mkdocs.yml",
    "pyproject.toml",
)
"""What the tests read, and `make test` goes by, besides the folders."""

MODEL = """
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
nn.init.normal_(net[1].weight)
nn.init.normal_(net[1].bias)
net[1].running_mean.normal_()
net[1].running_var.uniform_(0.5, 2)
torch.save(net.eval(), "model.pt")
"""
USED = """
import bntools as bn, torch
from torch import nn

old, new = bn.load("model.pt"), bn.load("model.folded.pt")
assert any(isinstance(m, nn.BatchNorm2d) for m in old.modules())
assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
assert [getattr(bn, name) for name in bn.__all__]
print(bn.verify(old, new, torch.ones(2, 3, 8, 8), exact=False).verdict)
"""
ON = ("--input", "2x3x8x8")


def build(folder: Path, *options: str, of: Path = ROOT) -> list[Path]:
    """Build what *options* of ``python -m build`` say, into *folder*."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), *options, str(of)]
    told = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if told.returncode:
        raise SystemExit(told.stdout)
    return sorted(folder.glob("bntools-*"))


def files_of(*folders: str, root: Path = ROOT) -> set[str]:
    """The files of the repository in these folders, by their paths, without what tools leave there."""
    return {
        path.relative_to(root).as_posix()
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file()
        and not any(p.startswith((".", "__pycache__")) for p in path.relative_to(root / folder).parts)
    }


def faults_of_wheel(names: Sequence[str]) -> list[str]:
    """What is wrong with a wheel that holds these files."""
    ours, about = split(names, "bntools/")
    meta, strange = split(about, ".dist-info/", anywhere=True)
    wanted = files_of("bntools")
    expected = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    told = {name.partition(".dist-info/")[2] for name in meta}
    return [
        *(f"{name}: missing" for name in sorted(wanted - ours)),
        *(f"{name}: not in the repository" for name in sorted(ours - wanted)),
        *(f"{name}: of no known kind" for name in sorted(ours) if Path(name).suffix not in ENDINGS),
        *(f"bntools/{name}: missing" for name in NEEDED if f"bntools/{name}" not in ours),
        *(f"{name}: outside the package" for name in sorted(strange)),
        *(f".dist-info/{name}: one too many, or missing" for name in sorted(told ^ expected)),
    ]


def faults_of_sdist(names: Sequence[str]) -> list[str]:
    """What is wrong with a source archive that holds these files, by their paths below its folder."""
    wanted = files_of(*SOURCES) | set(BESIDE)
    known = wanted | {"PKG-INFO", ".gitignore"}
    return [
        *(f"{name}: missing" for name in sorted(wanted - set(names))),
        *(f"{name}: nobody asked for it" for name in sorted(set(names) - known)),
    ]


def split(names: Sequence[str] | set[str], mark: str, *, anywhere: bool = False) -> tuple[set[str], set[str]]:
    """Those that begin with *mark*, or have it in them, and the others."""
    chosen = {name for name in names if (mark in name if anywhere else name.startswith(mark))}
    return chosen, set(names) - chosen


def names_in(archive: Path) -> list[str]:
    """The files in a wheel, or in a source archive below its folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.namelist()
    with tarfile.open(archive) as sdist:
        return [member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()]


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def notes_on(version: str, readme: str, changes: str) -> Iterator[str]:
    """What still keeps this from being published, which nobody but a person can settle."""
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        yield f"CHANGELOG.md: no section `## [{version}] - DATE`"
    links = sorted(set(re.findall(r"\]\((?!\w+:|#)([^)]+)\)", readme)))
    if links:
        yield f"README.md: links that lead nowhere on a package index: {', '.join(links)}"


class Release:
    """The steps of one release, each told as it is taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = folder / "fresh" / ("Scripts" if os.name == "nt" else "bin")
        self._start = time.monotonic()
        hidden = ("PYTHON", "BNTOOLS_", "VIRTUAL_ENV")
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}

    def told(self, line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._start:5.0f} s  {line}\n")
        sys.stdout.flush()

    def run(self, *command: str | Path, folder: Path | None = None) -> str:
        """Run a command in the folder, outside the repository, and return what it says."""
        told = subprocess.run(
            [str(word) for word in command],
            cwd=folder or self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if told.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {told.returncode}\n{told.stdout}")
        return told.stdout

    def built(self) -> tuple[Path, Path]:
        """The source archive and the wheel of it, with the right files."""
        wheel, sdist = build(self._folder / "dist")
        faults = [*faults_of_wheel(names_in(wheel)), *faults_of_sdist(names_in(sdist))]
        if faults:
            raise SystemExit("\n".join(faults))
        self.told(f"built {sdist.name} and {wheel.name}: the files that they should hold")
        return sdist, wheel

    def checked(self, *archives: Path) -> None:
        """As the index would check them, with the tool that uploads."""
        self.run(sys.executable, "-m", "venv", "tools")
        python = self._folder / "tools" / self._bin.name / "python"
        self.run(python, "-m", "pip", "install", "--quiet", *TWINE)
        self.run(python, "-m", "twine", "check", "--strict", *archives)
        self.told("twine check --strict: passed")

    def tested(self, sdist: Path) -> None:
        """The tests that look at the files around the package, in what the source archive holds."""
        with tarfile.open(sdist) as archive:
            archive.extractall(self._folder / "sdist", filter="data")
        (unpacked,) = (self._folder / "sdist").iterdir()
        house = ("tests/test_house.py", "tests/test_docs.py", "tests/test_api.py")
        told = self.run(sys.executable, "-m", "pytest", "-q", *house, folder=unpacked)
        self.told(f"tests in the source archive: {told.splitlines()[-1]}")

    def installed(self, wheel: Path) -> None:
        self.run(sys.executable, "-m", "venv", "fresh")
        pip = (self._bin / "python", "-m", "pip")
        self.run(*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
        self.run(*pip, "check")
        self.told("installed in a new environment; pip check: passed")

    def used(self, version: str) -> None:
        """What a user does first."""
        python, command = self._bin / "python", self._bin / "bntools"
        told = self.run(command, "--version")
        if told.splitlines()[0] != f"bntools {version}" or "not installed" in told:
            raise SystemExit(f"bntools --version:\n{told}")
        self.told(", ".join(told.splitlines()))
        where = Path(self.run(python, "-c", "import bntools; print(bntools.__file__)").strip())
        if not where.is_relative_to(self._folder):
            raise SystemExit(f"bntools is imported from {where}")
        self.run(python, "-c", MODEL)
        self.run(command, "fold", "model.pt", *ON, "--strict")
        if (verdict := self.run(python, "-c", USED).strip()) != "passed":
            raise SystemExit(f"the folded model: {verdict}")
        self.told("bntools fold model.pt --strict; loaded and verified in Python: passed")
        self.run(command, "inspect", "model.pt", *ON, "--html", "page.html")
        page = (self._folder / "page.html").read_text("utf-8")
        if "<style>" not in page or "<script>" not in page:
            raise SystemExit("page.html: without its style or its script")
        self.told(f"bntools inspect --html: {len(page)} characters")
        self.run(command, "export", "model.pt", *ON, "--strict", "-o", "model.onnx")
        self.run(command, "verify", "model.pt", "model.onnx", *ON, "--strict")
        self.told("bntools export and verify, with ONNX Runtime: passed")


def main() -> int:
    """Make a release in ``dist``."""
    with tempfile.TemporaryDirectory(prefix="bntools-release-") as name:
        folder = Path(name).resolve()
        release = Release(folder)
        sdist, wheel = release.built()
        release.checked(sdist, wheel)
        release.tested(sdist)
        release.installed(wheel)
        about: Mapping[str, str] = metadata_of(wheel)
        release.used(about["Version"])
        target = ROOT / "dist"
        target.mkdir(exist_ok=True)
        for archive in (sdist, wheel):
            (target / archive.name).write_bytes(archive.read_bytes())
            release.told(f"dist/{archive.name}: {archive.stat().st_size} bytes")
    texts = ((ROOT / page).read_text("utf-8") for page in ("README.md", "CHANGELOG.md"))
    for note in notes_on(about["Version"], *texts):
        release.told(f"before it is published: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
