"""What `inspect` found as one page: a file that loads nothing, and runs nothing but its own script."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from bntools import __version__
from bntools.core.atomic import check_place, replacing
from bntools.errors import UsageError
from bntools.findings.census import Census
from bntools.findings.layer import NormLayer
from bntools.findings.passed import Pass
from bntools.report.entries import axes_of, entries_of
from bntools.report.markup import Html, tag
from bntools.report.sections import footer, header, sections

_ENDINGS = (".html", ".htm")


def check_page(path: str | os.PathLike[str], *, force: bool) -> None:
    """An error now rather than after the work, if a page could not be written.

    Args:
        path: where to.
        force: replace a file that is there.

    Raises:
        UsageError: if the ending is neither .html nor .htm, the folder is not there, or the path is taken.

    Example:
        >>> check_page("model.pt", force=True)
        Traceback (most recent call last):
        bntools.errors.UsageError: model.pt: .pt is no ending of a page; name a .html
    """
    path = Path(path)
    if path.suffix not in _ENDINGS:
        raise UsageError(f"{path}: {path.suffix or 'no ending'} is no ending of a page", todo="name a .html")
    check_place(path, force)


def write_page(text: str, path: str | os.PathLike[str], *, force: bool = False) -> int:
    """Write a page, which appears whole or not at all.

    Args:
        text: from `page`.
        path: as for `check_page`.
        force: replace a file that is there.

    Returns:
        The number of bytes.

    Raises:
        UsageError: as `check_page`.
        SourceError: if the file cannot be written.
    """
    check_page(path, force=force)
    content = text.encode("utf-8")
    with replacing(Path(path), force=force) as part:
        part.write_bytes(content)
    return len(content)


def page(
    census: Census,
    layers: Iterable[NormLayer] = (),
    *,
    model: str = "",
    what: str = "",
    versions: Mapping[str, str] | None = None,
    known: int = 0,
) -> str:
    """The page of a census; equal arguments give equal text.

    Args:
        census: of `bntools.inspect`.
        layers: with the numbers of the layers, as `bntools.report.layers.layers_of` gives them.
        model: what it is called.
        what: what kind of file that is.
        versions: of the libraries that looked at it, by name.
        known: how many findings are left out of the census, since a baseline has them.

    Returns:
        HTML, with its style and its script in it.

    Example:
        >>> "There is no BatchNorm." in page(Census(()), model="model.pt")
        True
    """
    norms = [_with_drift(norm, census.passed) for norm in layers]
    axes = axes_of(norms)
    entries = entries_of(census, norms, axes)
    style, script = _beside("page.css"), _beside("page.js")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{model or 'a model'}: BatchNorms"),
        tag("style", style),
    )
    body = tag(
        "body",
        tag("a", "Skip to the findings", href="#findings", class_="skip"),
        tag("a", "Skip to the sites", href="#sites", class_="skip"),
        header(census, entries, model=model, what=what, known=known),
        tag("main", *sections(census, entries, axes)),
        footer({"bntools": __version__, **(versions or {})}),
        tag("script", script),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _with_drift(norm: NormLayer, passed: Pass | None) -> NormLayer:
    found = passed.reached.get(norm.path) if passed is not None else None
    return norm if found is None else replace(norm, divergence=found.divergence)


def _beside(name: str) -> Html:
    return Html(files("bntools.report").joinpath(name).read_text("utf-8"))


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and nothing runs or styles but what stands in the page itself."""
    hashes = (b64encode(sha256(text.encode("utf-8")).digest()).decode("ascii") for text in (style, script))
    allowed = "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*hashes)
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
