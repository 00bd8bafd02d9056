"""Run the notebook of the examples, cell by cell in one namespace: ``python -m tests.notebook [--write]``.

With ``--write`` what the cells print is stored in the file, as Jupyter would store it, so that it can be read
where nothing runs. No kernel is needed for this: the cells use no magic, and a dozen packages would have to
be installed to start one.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent.parent / "examples" / "story.ipynb"
Notebook = dict[str, Any]


def read(path: Path = NOTEBOOK) -> Notebook:
    notebook: Notebook = json.loads(path.read_text("utf-8"))
    return notebook


def run(notebook: Notebook) -> Notebook:
    """The notebook with the outputs of a run of its code, in a folder of its own.

    Raises:
        Exception: what a cell raises, with a note that says which.
    """
    done, names, number = copy.deepcopy(notebook), dict[str, Any](__name__="__main__"), 0
    kept = list(sys.path)
    sys.path.insert(0, str(NOTEBOOK.parent))
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for cell in done["cells"]:
                if cell["cell_type"] == "code":
                    number += 1
                    cell["execution_count"] = number
                    cell["outputs"] = _outputs("".join(cell["source"]), names, number, cell["id"])
    finally:
        sys.path[:] = kept
    return done


def _outputs(source: str, names: dict[str, Any], number: int, place: str) -> list[dict[str, Any]]:
    """What a cell prints, and the value of an expression at its end."""
    tree = ast.parse(source, place)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, place, "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), place, "eval"), names)
    except BaseException as error:
        error.add_note(f"in the cell {place}")
        raise
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append(
            {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        )
    return outputs


def written(notebook: Notebook) -> str:
    """As Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def words(notebook: Notebook) -> list[list[str]]:
    """What each cell shows, without numbers: training goes another way on another processor."""
    return [
        [_bare("".join(each.get("text") or each["data"]["text/plain"])) for each in cell["outputs"]]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def _bare(text: str) -> str:
    return " ".join(re.sub(r"[0-9][0-9.]*(e[+-]?[0-9]+)?", "0", text).split())


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = run(read())
    if "--write" in sys.argv[1:]:
        NOTEBOOK.write_text(written(done), "utf-8")
    else:
        for cell in done["cells"]:
            for output in cell.get("outputs", ()):
                sys.stdout.write("".join(output.get("text") or output["data"]["text/plain"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
