"""The blocks of code on a page, and how each kind of them is run, read, or held against what it names."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bntools.__main__ import main
from bntools.cli.config import defaults, options_of
from tests.reference import COMMAND

ROOT = Path(__file__).parent.parent
LANGUAGES = {"sh", "python", "toml", "yaml", "json", "text"}


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Args:
        page: from the repository's root.
        line: the number of the first line of the text.
        language: as the fence says; empty if it says nothing.
        text: the lines, without what they are indented by.
        behind: whether nothing but empty lines stands between it and the block in front of it.
    """

    page: str
    line: int
    language: str
    text: str
    behind: bool = False


def blocks_of(page: Path, root: Path = ROOT) -> list[Block]:
    """The blocks of a page, in order."""
    name = str(page.relative_to(root))
    found, opened, behind = list[Block](), None, False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.match(r"( *)(```+|~~~+) *(.*?) *$", line)
        if opened is None and fence:
            opened = (fence[1], fence[2], fence[3], number, list[str]())
        elif opened and fence and fence[2] == opened[1] and not fence[3]:
            indent, _, language, start, lines = opened
            text = "".join(each.removeprefix(indent) + "\n" for each in lines)
            found.append(Block(name, start + 1, language, text, behind))
            opened, behind = None, True
        elif opened:
            opened[4].append(line)
        elif line.strip():
            behind = False
    assert opened is None, f"{name}:{opened and opened[3]}: this block does not end"
    return found


class Wrong(AssertionError):
    """A block does not do what its page says."""


def run(blocks: list[Block], names: dict[str, Any]) -> None:
    """Run or read the blocks of a page, one after the other, in the working directory.

    Args:
        blocks: of any language.
        names: what the Python of the page takes as given; it grows.

    Raises:
        Wrong: with the page and the line.
    """
    said = ""
    for block in blocks:
        match block.language:
            case "sh":
                said = "".join(_shell(block, line, command) for line, command in _commands(block))
            case "python":
                _python(block, names)
            case "toml" | "yaml" | "json":
                _read(block)
            case "text":
                _words(block)
                if block.behind and said:
                    _shown(block, said)
            case _:
                where = f"{block.page}:{block.line}"
                raise Wrong(f"{where}: the language is {block.language!r}, not of {sorted(LANGUAGES)}")
        said = said if block.language == "sh" else ""


def _commands(block: Block) -> Iterator[tuple[int, str]]:
    """The command lines, those that go on over several put together."""
    start, text = block.line, ""
    for number, line in enumerate(block.text.splitlines(), block.line):
        start = start if text else number
        text += line.removesuffix("\\")
        if not line.endswith("\\"):
            if text.strip() and not text.lstrip().startswith("#"):
                yield start, text.strip()
            text = ""


def _shell(block: Block, line: int, command: str) -> str:
    """Run ``bntools`` in this process, and return what it prints; of other commands, check what they name.

    It has to end with 0, or as its comment says. A page shows alternatives one below the other, so a line may
    replace what a line above has written.
    """
    where = f"{block.page}:{line}: {command}"
    words = shlex.shlex(command, posix=True, punctuation_chars=">")
    words.whitespace_split, words.commenters = True, "#"
    said = re.search(r"#.*exit code (\d+)", command)
    expected = int(said[1]) if said else 0
    parts = [os.path.expandvars(word) for word in words]
    target, append = None, False
    if len(parts) > 2 and parts[-2] in (">", ">>"):
        *parts, arrow, target = parts
        append = arrow == ">>"
    if ">" in "".join(parts[1:]) and target is None:
        raise Wrong(f"{where}: what is written where?")
    arguments = _of_bntools(parts)
    if arguments is None:
        if not _sound(parts):
            raise Wrong(f"{where}: not one of the commands that tests/blocks.py can run or check")
        return ""
    verb = COMMAND.commands.get(arguments[0]) if arguments else None
    if verb and any("--force" in each.opts for each in verb.params) and "--force" not in arguments:
        arguments.append("--force")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    if code != expected:
        raise Wrong(f"{where}: exit code {code}, not {expected}\n{out.getvalue()}{err.getvalue()}")
    if target:
        with open(target, "a" if append else "w", encoding="utf-8") as file:
            file.write(out.getvalue())
        return ""
    return out.getvalue() + err.getvalue()


def _shown(block: Block, said: str) -> None:
    """What stands straight behind a command is what it prints, but for numbers and what ``…`` leaves out."""
    printed = _words_of(said)
    for number, line in enumerate(block.text.splitlines(), block.line):
        for part in line.split("…"):
            if _words_of(part) not in printed:
                raise Wrong(f"{block.page}:{number}: the command does not print {part.strip()!r} but\n{said}")


def _words_of(text: str) -> str:
    return " ".join(re.sub(r"[0-9][0-9.]*(e[+-]?[0-9]+)?", "0", text).split())


def _of_bntools(words: list[str]) -> list[str] | None:
    """The arguments of bntools; None if something else is run. What torchrun does, test_torchrun.py asks."""
    if words[0] == "torchrun" and "-m" in words:
        launcher, words = words[1 : words.index("-m")], ["python", *words[words.index("-m") :]]
        if not re.fullmatch(r"(--standalone )?--nproc-per-node \d+", " ".join(launcher)):
            return None
    if words[0] == "bntools":
        return words[1:]
    return words[3:] if words[:3] == ["python", "-m", "bntools"] else None


def _sound(words: list[str]) -> bool:
    """Whether a command that no test runs names what is there: the closed list of those."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    match words:
        case ["make", target]:
            return re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE) is not None
        case ["pip", "install", "." | "bntools"]:
            return True
        case ["pip", "install", what]:
            extra = re.fullmatch(r"(?:\.|bntools)\[(\w+)\]", what)
            return extra is not None and extra[1] in project["optional-dependencies"]
        case ["python", "-m", module, *_]:
            return (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["python", script, *_]:
            return (ROOT / script).is_file()
    return False


def _python(block: Block, names: dict[str, Any]) -> None:
    """Run a block, with the line numbers of its page.

    What it shows behind prompts, and as a comment behind a `print`, is held against what comes.
    """
    where = f"{block.page}:{block.line}"
    if block.text.startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.text, names, where, block.page, block.line - 1)
        said = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test, out=said.write, clear_globs=False)
        names.update(test.globs)
        if said.getvalue():
            raise Wrong(f"{where}: {said.getvalue()}")
        return
    try:
        tree = ast.parse("\n" * (block.line - 1) + block.text, block.page)
        for path in _written(tree):
            Path(path).unlink(missing_ok=True)
        printed = list[tuple[int, str]]()
        names["print"] = lambda *values: printed.append(
            (sys._getframe(1).f_lineno, " ".join(map(str, values)))
        )
        exec(compile(tree, block.page, "exec"), names)
    except Exception as error:
        inside = error.__traceback__
        lines = []
        while inside is not None:
            lines += [inside.tb_lineno] if inside.tb_frame.f_code.co_filename == block.page else []
            inside = inside.tb_next
        line = lines[-1] if lines else getattr(error, "lineno", None) or block.line
        raise Wrong(f"{block.page}:{line}: {type(error).__name__}: {error}") from error
    for line, text in printed:
        comment = re.search(r"\)  # (.*)$", block.text.splitlines()[line - block.line])
        if comment and not text.startswith(comment[1].removesuffix("…").rstrip()):
            raise Wrong(f"{block.page}:{line}: it prints {text!r}")


def _written(tree: ast.Module) -> Iterator[str]:
    """The files that a block writes: it may find them written by the command line that stands above it."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("save", "export")
        ):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value


def _read(block: Block) -> None:
    """What is a file can be read; and what is a configuration of bntools, bntools reads."""
    try:
        if block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif "bntools" in tomllib.loads(block.text).get("tool", {}):
            folder = Path("configured")
            folder.mkdir(exist_ok=True)
            (folder / "pyproject.toml").write_text(block.text, "utf-8")
            defaults(options_of(COMMAND), folder)
    except Exception as error:
        raise Wrong(f"{block.page}:{block.line}: {type(error).__name__}: {error}") from error


def _words(block: Block) -> None:
    """A command among the words would be one that nobody runs."""
    for number, line in enumerate(block.text.splitlines(), block.line):
        if re.match(r"\s*(\$ |>>> |(bntools|python|pip|make|git|torchrun|import|from) )", line):
            raise Wrong(f"{block.page}:{number}: a command in a block of text: {line}")
