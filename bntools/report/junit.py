"""Findings as JUnit XML, which CI servers show beside the tests. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from xml.etree import ElementTree as ET

from bntools.findings import RULES, Finding, Rule, Severity
from bntools.printable import printable

SUITE = "bntools inspect"
_PACKAGE = "bntools.inspect"
_TIME = "0.000"  # rules are not timed one by one, and equal findings give equal bytes


def junit(
    asked: Iterable[str],
    findings: Sequence[Finding],
    *,
    fatal: Collection[str] = (),
    about: Mapping[str, str] | None = None,
    error: str = "",
) -> str:
    """The findings as a suite with a case for each rule and layer.

    A rule that found nothing is one case, which passes. An error or a warning is a failure, and so is a note
    of a rule in *fatal*; other notes pass, and stand in the case's output.

    Args:
        asked: the ids of the rules that were asked.
        findings: of them.
        fatal: the rules whose findings are not wanted, whatever their severity.
        about: the properties of the suite.
        error: why there is no more to tell; empty if there is nothing to say of that.

    Returns:
        A document in ASCII, so that any encoding of a stream will do.

    Source: the format that Apache Ant's JUnitReport reads, as Jenkins and GitLab do.

    Example:
        >>> made = Finding("BN002", Severity.ERROR, "bn1", "σ² is below 0 in 1 of 4 channels")
        >>> ET.fromstring(junit(["BN001", "BN002"], [made])).get("failures")
        '1'
    """
    suite = ET.Element("testsuite")
    if about:
        properties = ET.SubElement(suite, "properties")
        for name, value in about.items():
            ET.SubElement(properties, "property", name=name, value=printable(value))
    for rule in (RULES[each] for each in asked):
        found = [finding for finding in findings if finding.rule == rule.id]
        for finding in found:
            _tell(_case(suite, rule, finding.layer), rule, finding, failed=rule.id in fatal)
        if not found:
            _case(suite, rule, None)
    if error:
        case = ET.SubElement(suite, "testcase", classname=_PACKAGE, name="run", time=_TIME)
        ET.SubElement(case, "error", type="error", message=printable(error))
    counts = {"tests": len(suite.findall("testcase"))}
    counts |= {f"{kind}s": len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error")}
    told = {name: str(count) for name, count in counts.items()}
    suite.attrib |= {"name": SUITE, **told, "skipped": "0", "time": _TIME}
    root = ET.Element("testsuites", {"name": SUITE, **told, "time": _TIME})
    root.append(suite)
    ET.indent(root)
    body = ET.tostring(root, encoding="us-ascii").decode("ascii")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'


def _case(suite: ET.Element, rule: Rule, layer: str | None) -> ET.Element:
    where = "" if layer is None else f": {layer or 'the model'}"
    return ET.SubElement(
        suite,
        "testcase",
        classname=f"{_PACKAGE}.{rule.id}",
        name=printable(f"{rule.name}{where}"),
        time=_TIME,
    )


def _tell(case: ET.Element, rule: Rule, finding: Finding, *, failed: bool) -> None:
    means = f"{rule.means}\n{rule.remedy}"
    if failed or rule.severity is not Severity.NOTE:
        failure = ET.SubElement(case, "failure", type=rule.severity.value, message=printable(finding.detail))
        failure.text = means
    else:
        ET.SubElement(case, "system-out").text = f"{printable(finding.detail)}\n{means}"
