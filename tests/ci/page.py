"""What stands in the fenced blocks of docs/ci.md, so that it can be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

PAGE = Path("docs", "ci.md")


def blocks(source: Path) -> dict[str, list[Any]]:
    """The blocks of the page by what they are, in order: text of shell scripts, content of YAML.

    Args:
        source: the repository.

    Raises:
        AssertionError: if there is one that nobody would run.
    """
    found: dict[str, list[Any]] = {}
    text = (source / PAGE).read_text("utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(fenced) * 2 == text.count("```"), "a fence that is not closed, or not at the start of its line"
    for language, content in fenced:
        found.setdefault(_kind(language, content), []).append(
            content if language == "sh" else yaml.safe_load(content)
        )
    return found


def _kind(language: str, content: str) -> str:
    if language == "sh":
        return "script" if len(content.splitlines()) > 1 else "command"
    assert language == "yaml", f"{language}: nobody runs such a block"
    keys = yaml.safe_load(content).keys()
    if "jobs" in keys:
        return "action" if "OWNER/bntools@" in content else "workflow"
    if "repos" in keys:
        return "local hook" if "repo: local" in content else "hook"
    assert keys == {"model"}, f"{keys}: nobody runs such a block"
    return "gitlab"
