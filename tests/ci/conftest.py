"""A workspace as a job finds it, and a machine to run jobs on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ci import models
from tests.ci.serving import Server, serving
from tests.ci.workflow import ROOT, Runner


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


@pytest.fixture(scope="session")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    models.write(folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, _models: Path) -> Path:
    """``model.pt``, which is well, ``broken.pt``, which is not, and ``calibration.npy``."""
    return Path(shutil.copytree(_models, tmp_path / "workspace"))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Of what is set here, only what a runner has as well."""
    own = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ
    }
    return {**own, "PYTHONPATH": str(ROOT), "SOURCE": str(ROOT), "RUNNER_TEMP": str(tmp_path / "runner")}


@pytest.fixture
def runner(workspace: Path, environ: dict[str, str], server: Server) -> Runner:
    return Runner(workspace, environ, server.execute)
