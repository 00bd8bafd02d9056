"""Findings as JUnit XML: what readers of the format count on, and what comes back of it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from bntools.findings import RULES, Finding, Severity
from bntools.report.junit import junit

ASKED = ["BN001", "BN002", "BN013", "BN026"]
ERROR = Finding("BN002", Severity.ERROR, "layer1.0.bn", "σ² is below 0")
FOUND = [ERROR, Finding("BN013", Severity.NOTE, "a", "a.bias"), Finding("BN013", Severity.NOTE, "", "bias")]


def well_formed(document: str) -> ET.Element:
    """The suite, after what every reader of JUnit goes by holds: one suite in a root, whose attributes agree
    with what is in it, and cases that each have a name, a class, a time and at most one outcome.
    """
    root = ET.fromstring(document.encode("utf-8"))
    assert root.tag == "testsuites"
    (suite,) = root
    assert (suite.tag, suite.get("name")) == ("testsuite", "bntools inspect")
    cases = suite.findall("testcase")
    counts = {"tests": len(cases)}
    for outcome in ("failure", "error", "skipped"):
        counts[f"{outcome.removesuffix('d')}s"] = len(suite.findall(f"testcase/{outcome}"))
    expected = {"tests": counts["tests"], "failures": counts["failures"], "errors": counts["errors"]}
    assert {name: int(root.get(name, "-1")) for name in expected} == expected
    expected["skipped"] = len(suite.findall("testcase/skipped"))
    assert {name: int(suite.get(name, "-1")) for name in expected} == expected
    total = sum(float(case.attrib["time"]) for case in cases)
    assert float(suite.attrib["time"]) == float(root.attrib["time"]) == pytest.approx(total)
    for case in cases:
        assert case.attrib.keys() == {"classname", "name", "time"}
        assert len([each for each in case if each.tag in ("failure", "error", "skipped")]) <= 1
        assert {each.tag for each in case} <= {"failure", "error", "skipped", "system-out"}
        for each in case.iter("failure"):
            assert each.attrib.keys() == {"type", "message"}
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    tags = [each.tag for each in suite]
    assert tags == sorted(tags)  # properties stand before the cases
    return suite


def outcomes(suite: ET.Element) -> dict[str, str]:
    """What became of each case; empty for one that passed and says nothing."""
    return {
        f"{case.attrib['classname'].rpartition('.')[2]} {case.attrib['name']}": " ".join(e.tag for e in case)
        for case in suite.iter("testcase")
    }


def test_a_case_for_each_rule_and_layer() -> None:
    suite = well_formed(junit(ASKED, FOUND))
    assert outcomes(suite) == {
        "BN001 not-finite": "",
        "BN002 negative-variance: layer1.0.bn": "failure",
        "BN013 redundant-bias: a": "system-out",
        "BN013 redundant-bias: the model": "system-out",
        "BN026 small-batch": "",
    }
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "0")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("fatal", [False, True])
def test_severities(rule: object, fatal: bool) -> None:
    about = RULES[rule.id]
    found = [Finding(about.id, about.severity, "bn", "the detail")]
    suite = well_formed(junit([about.id], found, fatal=[about.id] if fatal else ["BN999"]))
    failed = fatal or about.severity is not Severity.NOTE
    (case,) = suite.iter("testcase")
    (outcome,) = case
    assert outcome.tag == ("failure" if failed else "system-out")
    assert about.remedy in (outcome.text or "")
    assert about.means in (outcome.text or "")
    if failed:
        assert (outcome.get("type"), outcome.get("message")) == (about.severity.value, "the detail")
    else:
        assert (outcome.text or "").startswith("the detail\n")


def test_the_model_as_a_whole() -> None:
    suite = well_formed(junit(["BN026"], [Finding("BN026", Severity.WARNING, None, "")]))
    assert outcomes(suite) == {"BN026 small-batch": "failure"}


def test_properties() -> None:
    suite = well_formed(junit([], [], about={"model": "a<b>&\"'.pt", "version": "1.2"}))
    values = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert values == {"model": "a<b>&\"'.pt", "version": "1.2"}
    assert well_formed(junit([], [])).find("properties") is None


def test_an_error() -> None:
    suite = well_formed(junit(ASKED, FOUND, error="it does not run\x1b"))
    assert (suite.get("tests"), suite.get("errors")) == ("6", "1")
    (error,) = suite.iter("error")
    assert error.get("message") == "it does not run\\x1b"


@pytest.mark.parametrize("code", [*range(32), 0x7F, 0x85, 0x2028, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF])
def test_what_xml_cannot_hold_is_written_out(code: int) -> None:
    odd = f"a{chr(code)}b"
    suite = well_formed(junit(["BN002"], [Finding("BN002", Severity.ERROR, odd, odd)], about={"model": odd}))
    (case,), (failure,), (model,) = (list(suite.iter(tag)) for tag in ("testcase", "failure", "property"))
    written = odd.encode("unicode_escape").decode("ascii")
    assert case.get("name") == f"negative-variance: {written}"
    assert failure.get("message") == written
    assert model.get("value") == written


def test_other_characters_come_back_as_they_are() -> None:
    name = "modèle 图 🙂 <[CDATA[ ]]> &amp; 'x' \"y\""
    document = junit(["BN002"], [Finding("BN002", Severity.ERROR, name, name)])
    assert document.isascii()
    (case,) = well_formed(document).iter("testcase")
    assert case.get("name") == f"negative-variance: {name}"


def test_equal_findings_give_equal_bytes() -> None:
    assert junit(ASKED, FOUND) == junit(tuple(ASKED), tuple(FOUND))
    assert junit(ASKED, FOUND) != junit(ASKED, FOUND[:1])
