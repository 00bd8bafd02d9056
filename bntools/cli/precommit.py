"""``python -m bntools.cli.precommit [OPTIONS] FILE…``: ``bntools inspect`` for each of several files.

pre-commit hands over all files of a commit, while `inspect` takes one model: its JSON is one object, and its
page that of one. Here they are looked at in turn, in one process: importing torch takes longer than most.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import typer

from bntools.__main__ import main
from bntools.cli.app import app
from bntools.cli.config import Option, options_of
from bntools.cli.render import failure_of, say
from bntools.errors import UsageError

_OF_ONE = ("html", "write-baseline")
"""Options that name a file for the result of one model; the next would take its place."""


def inspect_each(arguments: Sequence[str]) -> int:
    """Inspect each of several files with the same options, one after the other.

    Args:
        arguments: options of ``bntools inspect``, and files; what stands behind ``--`` is a file.

    Returns:
        The highest exit code of all: a file that cannot be read does not hide behind a finding. 130 at once
        if interrupted.

    Example:
        >>> inspect_each(["--fail-on", "error"])
        2
    """
    options, files = split(arguments, options_of(typer.main.get_command(app))["inspect"])
    single = [f"--{name}" for name in _OF_ONE if any(o.split("=")[0] == f"--{name}" for o in options)]
    wrong = None
    if not files:
        wrong = UsageError("no file was named", todo="give model files behind the options")
    elif single and len(files) > 1:
        wrong = UsageError(
            f"{single[0]}: one file for {len(files)} models", todo="run bntools inspect for each of them"
        )
    if wrong is not None:
        failure = failure_of(wrong)
        say(failure)
        return failure.exit_code
    worst = 0
    for file in files:
        code = main(["inspect", *options, "--", file])
        if code == 130:
            return code
        worst = max(worst, code)
    return worst


def split(arguments: Sequence[str], known: Mapping[str, Option]) -> tuple[list[str], list[str]]:
    """*arguments* as options, each with its value, and files. An option that is not known takes no value.

    Example:
        >>> split(["--fail-on", "error", "--all", "a.pt"], {"fail-on": Option("fail_on", False, False)})
        (['--fail-on', 'error', '--all'], ['a.pt'])
    """
    options: list[str] = []
    files: list[str] = []
    waiting = iter(arguments)
    for each in waiting:
        if each == "--":
            files += waiting
        elif not each.startswith("-") or each == "-":
            files.append(each)
        else:
            option = known.get(each.removeprefix("--"))
            options.append(each)
            if option is not None and not option.is_flag:
                options += [value for value in [next(waiting, None)] if value is not None]
    return options, files


if __name__ == "__main__":
    sys.exit(inspect_each(sys.argv[1:]))
