"""HTML that escapes by default: whatever is a plain string came from a model, and a model is a stranger's."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from bntools.printable import printable

_VOID: Final = frozenset({"meta", "input", "br"})
_SHAPES: Final = frozenset({"path", "rect", "use"})
"""Of SVG, which may end themselves."""

Attribute = str | int | bool | None


class Html(str):
    """Text that is HTML already; only this module makes it of what it has escaped."""

    __slots__ = ()


def tag(name: str, /, *inside: str, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: of the element.
        inside: `Html` as it is, all else escaped.
        attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; True is an attribute without a
            value, None and False are none.

    Returns:
        The element, in attributes too with everything escaped that is no `Html`.

    Example:
        >>> tag("a", "<b>", tag("br"), href="#1", class_="n", hidden=False)
        '<a href="#1" class="n">&lt;b&gt;<br></a>'
    """
    shown = "".join(map(_attribute, attributes.items()))
    if name in _VOID:
        return Html(f"<{name}{shown}>")
    if name in _SHAPES and not inside:
        return Html(f"<{name}{shown}/>")
    return Html(f"<{name}{shown}>{''.join(map(_inside, inside))}</{name}>")


def _attribute(item: tuple[str, Attribute]) -> str:
    key, value = item[0].removesuffix("_").replace("_", "-"), item[1]
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{_inside(str(value))}"'


def _inside(text: str) -> str:
    return text if isinstance(text, Html) else escape(printable(text))


def joined(*parts: str) -> Html:
    """Several in a row, escaped as in `tag`."""
    return Html("".join(map(_inside, parts)))


def listed(parts: Iterable[str]) -> Html:
    """The same with commas between them.

    Example:
        >>> listed(["a", tag("b", "<")])
        'a, <b>&lt;</b>'
    """
    return joined(*[each for part in parts for each in (", ", part)][1:])


def called(name: str) -> Html:
    """The name of a layer: one that is written from right to left must not turn the sentence around.

    Example:
        >>> called("layer1.bn"), called("")
        ('<bdi>layer1.bn</bdi>', '<bdi>the model</bdi>')
    """
    return tag("bdi", name or "the model")


def unseen(text: str) -> Html:
    """Words for who does not see the page."""
    return tag("span", text, class_="unseen")
