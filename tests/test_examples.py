"""Every example is short, is told of, and is run: by `make demo`, by `make guides`, or here."""

from __future__ import annotations

import copy
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import notebook

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
HERE = ["find_faults", "fold", "replay", "swap", "transfer", "verify"]
SHARED = {"nets", "training"}
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples import what lies beside them; they share what they train, and nothing is left of them."""
    threads, before = torch.get_num_threads(), set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    torch.set_num_threads(threads)
    for name in SHARED & (set(sys.modules) - before):
        del sys.modules[name]


def recipe(target: str) -> str:
    """The commands of a target."""
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None
    return found[1]


def test_they_are_short() -> None:
    lengths = {name: len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) for name in NAMES}
    assert {name: length for name, length in lengths.items() if length >= 60} == {}


def test_each_is_run_somewhere() -> None:
    demo = recipe("demo") + (EXAMPLES / "demo").read_text("utf-8")
    listed = re.findall(r"for example in ([\w ]+);", recipe("demo"))
    by_demo = {word for names in listed for word in names.split()} | set(re.findall(r"(\w+)\.py", demo))
    assert set(NAMES) - by_demo - SHARED == set(HERE)
    guides = {path.name for path in (EXAMPLES / "guides").glob("*.py")}
    assert guides == set(re.findall(r"examples/guides/(\w+\.py)", recipe("guides")))


def test_each_is_told_of() -> None:
    text = (EXAMPLES / "README.md").read_text("utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert files == set(re.findall(r"\]\(([\w.]+)\)", text)) - {"guides"}
    assert "@" not in text


def test_each_says_how_to_run_it() -> None:
    for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("guides/*.py")):
        text = path.read_text("utf-8")
        if "__main__" in text:
            docstring = " ".join(text.partition('"""')[2].partition('"""')[0].split())
            assert f"``python {path.relative_to(ROOT).as_posix()}" in docstring, path


@pytest.mark.usefixtures("beside")
def test_they_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, which trains the network of most of them once."""
    monkeypatch.chdir(tmp_path)
    codes = {}
    for name in HERE:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        codes[name] = ended.value.code
    assert codes == dict.fromkeys(HERE, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("beside")
def test_the_notebook_shows_what_its_cells_print() -> None:
    """But for numbers: accuracies and rounding errors are others on another processor."""
    stored = notebook.read()
    done = notebook.run(stored)
    assert notebook.words(done) == notebook.words(stored), "python -m tests.notebook --write"
    assert [cell.get("execution_count") for cell in done["cells"]] == [
        cell.get("execution_count") for cell in stored["cells"]
    ]


def test_the_notebook_is_one_as_jupyter_writes_it() -> None:
    stored = notebook.read()
    assert notebook.written(stored) == notebook.NOTEBOOK.read_text("utf-8")
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in stored["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", each) for each in ids)
    text = json.dumps(stored)
    assert re.findall(r"/(?:tmp|home|root|work|Users)/", text) == []


def small(*sources: str) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"c{number}", "outputs": [], "source": [source]}
        for number, source in enumerate(sources)
    ]
    return {"cells": cells}


def test_cells_are_run_in_order_in_one_namespace() -> None:
    given = small("a = 2\nprint('two', a)", "a + 1", "b = a")
    kept = copy.deepcopy(given)
    done = notebook.run(given)
    assert given == kept
    assert [cell["execution_count"] for cell in done["cells"]] == [1, 2, 3]
    first, second, third = (cell["outputs"] for cell in done["cells"])
    assert first == [{"name": "stdout", "output_type": "stream", "text": ["two 2\n"]}]
    assert second == [
        {"data": {"text/plain": ["3"]}, "execution_count": 2, "metadata": {}, "output_type": "execute_result"}
    ]
    assert third == []


def test_a_cell_that_fails_is_named() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        notebook.run(small("a = 0", "1 / a"))
    assert raised.value.__notes__ == ["in the cell c1"]


def test_other_words_are_seen_and_other_numbers_are_not() -> None:
    said = ("a 97.8%", "a 99.1%", "b 97.8%")
    one, other, third = (notebook.run(small(f"print('{text}')")) for text in said)
    assert notebook.words(one) == notebook.words(other) != notebook.words(third)
