"""The page of a census, without a browser: what it says, that it holds together, that no model writes it."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import bntools as bn
from bntools.core.plan import Plan
from bntools.errors import UsageError
from bntools.findings import RULES, together
from bntools.findings.census import Census
from bntools.findings.finding import SEVERITIES
from bntools.report.distributions import BINS, Axis, Distribution
from bntools.report.html import check_page, page, write_page
from bntools.report.layers import layers_of
from bntools.report.markup import tag
from bntools.verbs.inspect import inspect_tensors
from tests.report import troubled
from tests.season import season

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "</style><script>alert(1)</script>",
    "\"' onmouseover='alert(1)",
    "<!--",
    "&lt;b&gt;&amp;",
    "\u202ereversed\u2066",
    "\u05d0\u05d1\u05d2",
    "\x00\x1b[2J\n\u2028",
    "{}%s$x",
]
VOID = {"meta", "input", "br"}


class Element:
    def __init__(self, name: str, attributes: list[tuple[str, str | None]], parent: Element | None) -> None:
        self.name, self.attributes, self.parent = name, dict(attributes), parent
        self.children: list[Element | str] = []

    def all(self, name: str = "") -> list[Element]:
        found = [self] if not name or self.name == name else []
        for child in self.children:
            found += child.all(name) if isinstance(child, Element) else []
        return found

    def of_class(self, kind: str) -> list[Element]:
        return [each for each in self.all() if kind in (each.attributes.get("class") or "").split()]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Tree(HTMLParser):
    """A document whose every element is closed where it should be."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.root = self.now = Element("", [], None)
        self.feed(document)
        self.close()
        assert self.now is self.root, f"{self.now.name} is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, attrs, self.now)
        self.now.children.append(made)
        if tag not in VOID:
            self.now = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.now.children.append(Element(tag, attrs, self.now))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.now.name, f"{tag} closes {self.now.name}"
        assert self.now.parent is not None
        self.now = self.now.parent

    def handle_data(self, data: str) -> None:
        self.now.children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")


@pytest.fixture(scope="module")
def ill() -> tuple[Census, str]:
    return troubled.shown(*troubled.resnet18(), "resnet18.pt")


@pytest.fixture(scope="module")
def tree(ill: tuple[Census, str]) -> Element:
    return Tree(ill[1]).root


def plain(model: nn.Module, *shape: int) -> tuple[Census, str]:
    return troubled.shown(season(model).eval(), torch.ones(shape))


def well() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Sigmoid())


# It holds together


def test_every_id_is_there_once_and_every_link_leads_to_one(tree: Element) -> None:
    ids = Counter(each.attributes["id"] for each in tree.all() if "id" in each.attributes)
    assert set(ids.values()) == {1}
    links = [
        value
        for each in tree.all()
        for name in ("href", "aria-labelledby")
        if (value := each.attributes.get(name))
    ]
    assert len(links) > 60
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_nothing_is_loaded_from_anywhere(ill: tuple[Census, str], tree: Element) -> None:
    assert not [
        each for each in tree.all() if {"src", "srcset", "action", "data", "poster"} & set(each.attributes)
    ]
    assert {each.attributes["href"][:1] for each in tree.all() if "href" in each.attributes} == {"#"}
    assert not tree.all("link") + tree.all("iframe") + tree.all("object") + tree.all("base")
    style, script = tree.all("style")[0].text, tree.all("script")[0].text
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"https?:|fetch|XMLHttp|import|eval|innerHTML|document\.write", script)


def test_only_its_own_style_and_script_may_work(tree: Element) -> None:
    (policy,) = (
        each.attributes["content"] or ""
        for each in tree.all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for kind in ("style", "script"):
        (element,) = tree.all(kind)
        digest = b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    assert not [
        name for each in tree.all() for name in each.attributes if name.startswith("on") or name == "style"
    ]


def test_what_is_asked_and_pointed_at_has_a_name(tree: Element) -> None:
    for field in tree.all("input"):
        assert field.parent is not None
        assert field.parent.name == "label"
        assert field.parent.text.strip()
    for link in tree.all("a"):
        spoken = (
            link.text.strip() or link.attributes.get("title") or "".join(t.text for t in link.all("title"))
        )
        assert spoken.strip()
    for picture in tree.all("svg"):
        hidden = picture.attributes.get("aria-hidden") == "true"
        assert hidden or picture.attributes.get("aria-label")
    assert all(section.attributes.get("aria-labelledby") for section in tree.all("section"))
    assert tree.all("html")[0].attributes["lang"] == "en"
    assert tree.all("title")[0].text == "resnet18.pt: BatchNorms"


def test_headings_go_down_by_one(tree: Element) -> None:
    levels = [int(each.name[1]) for each in tree.all() if re.fullmatch(r"h\d", each.name)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


# What it says


def test_every_site_is_there_in_order_with_its_verdict(ill: tuple[Census, str], tree: Element) -> None:
    census, _ = ill
    rows = tree.of_class("site")
    assert [row.of_class("name")[0].all("bdi")[0].text for row in rows] == [
        site.name for site in census.sites
    ]
    assert isinstance(census.plan, Plan)
    into = {edit.site.name: edit.into for edit in census.plan.edits}
    why = {each.site.name: each for each in census.plan.refusals}
    assert set(why) == {"layer2.0.bn1", "layer2.1.bn2", "layer3.1.bn2.1"}
    for row, site in zip(rows, census.sites, strict=True):
        kinds = (row.attributes["class"] or "").split()
        if site.name in into:
            assert "folds" in kinds
            assert into[site.name][0] in row.of_class("verdict")[0].text
        else:
            refusal = why[site.name]
            assert "stays" in kinds
            for told in (refusal.reason.value, refusal.detail, refusal.behind, refusal.remedy):
                assert told in row.text


def test_the_map_has_a_cell_for_each_site_that_says_the_same(ill: tuple[Census, str], tree: Element) -> None:
    cells = tree.of_class("strip")[0].of_class("cell")
    rows = tree.of_class("site")
    assert len(cells) == len(rows) == 20
    for at, (cell, row, site) in enumerate(zip(cells, rows, ill[0].sites, strict=True), start=1):
        title = cell.attributes["title"] or ""
        assert cell.attributes["href"] == f"#{row.of_class('inside')[0].attributes['id']}"
        assert title.startswith(f"{at}. {site.name}: ")
        kinds = set((cell.attributes["class"] or "").split())
        assert set((row.attributes["class"] or "").split()) - {"site"} == kinds - {"cell"}
        assert ("stays" in title, "folds" in title) == ("stays" in kinds, "folds" in kinds)
        assert cell.text == {"error": "×", "warning": "!", "note": "i"}.get(
            (kinds - {"cell", "folds", "stays"}).pop(), ""
        )
    assert [part.text for part in tree.of_class("part")] == ["bn1", "layer1", "layer2", "layer3", "layer4"]


def test_a_site_is_as_bad_as_its_worst_finding(ill: tuple[Census, str], tree: Element) -> None:
    found: dict[str, list[int]] = {}
    for finding in ill[0].findings:
        found.setdefault(finding.layer or "", []).append(SEVERITIES.index(finding.severity))
    wanted = [SEVERITIES[min(found[s.name])].value if s.name in found else "clean" for s in ill[0].sites]
    assert {"error", "warning", "note", "clean"} == set(wanted)
    grades = [(row.attributes["class"] or "").split()[1] for row in tree.of_class("site")]
    assert grades == wanted


def test_findings_come_worst_first_with_links_to_their_layers(ill: tuple[Census, str], tree: Element) -> None:
    groups = together(ill[0].findings)
    cards = tree.of_class("card")
    assert [card.attributes["id"] for card in cards] == [group[0].rule for group in groups]
    names = {
        row.of_class("inside")[0].attributes["id"]: row.of_class("name")[0].all("bdi")[0].text
        for row in tree.of_class("site")
    }
    for card, group in zip(cards, groups, strict=True):
        links = [(names[(a.attributes["href"] or "")[1:]], a.text) for a in card.all("a")]
        assert links == [(finding.layer, finding.layer) for finding in group]
        for told in (
            group[0].severity.value,
            RULES[group[0].rule].remedy,
            *(finding.detail for finding in group),
        ):
            assert told in card.text


def test_it_begins_with_what_is_wrong(ill: tuple[Census, str], tree: Element) -> None:
    head = tree.of_class("headline")[0]
    assert head.of_class("first")[0].text == "×What 2 layers compute is wrong: layer2.0.bn1 is the first."
    assert "17 of 20 BatchNorms fold; 3 stay: 2 bad-statistics, 1 blocked." in head.text
    tiles = [" ".join(tile.text.split()) for tile in tree.of_class("tile")]
    assert tiles == ["×2 errors", "!3 warnings", "i2 notes", "17 fold", "3 stay"]


def test_the_first_in_order_of_the_worst_is_named_whatever_the_rules_are() -> None:
    """BN001 comes before BN002, and here stands behind it; something lesser stands in front of both."""
    norms = [nn.BatchNorm2d(3, momentum=m) for m in (0.2, 0.1, 0.1, 0.1)]
    model = season(nn.Sequential(*norms)).eval()
    model[1].running_var[0], model[2].running_mean[0] = -1, torch.nan
    tree = Tree(troubled.shown(model, torch.ones(1, 3, 2, 2))[1]).root
    assert not {"clean", "error"} & set((tree.of_class("site")[0].attributes["class"] or "").split())
    assert [a.text for a in tree.of_class("first")[0].all("a")] == ["1"]


@pytest.mark.parametrize(
    ("momentum", "bias", "told"),
    [
        (0.9, False, "!No error; 1 layer does what hardly anybody means: 1."),
        (0.1, True, "iNo error, no warning; 1 layer has something worth knowing: 1."),
        (0.1, False, "Nothing was found to be wrong."),
    ],
)
def test_it_begins_with_the_worst_that_there_is(momentum: float, bias: bool, told: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, momentum=momentum))
    head = Tree(plain(model, 1, 3, 4, 4)[1]).root.of_class("headline")[0]
    assert head.of_class("first")[0].text == told
    assert head.all("p")[-1].text == "The BatchNorm folds."


def test_a_batchnorm_that_is_the_whole_model_has_its_findings() -> None:
    model = season(nn.BatchNorm2d(3)).eval()
    model.running_var[0] = -1
    tree = Tree(troubled.shown(model, torch.ones(1, 3, 2, 2))[1]).root
    (row,) = tree.of_class("site")
    assert "error" in (row.attributes["class"] or "").split()
    assert "BN002" in row.text
    assert next(a.text for card in tree.of_class("card") for a in card.all("a")) == "the model"


def test_a_finding_about_the_model_stands_in_no_row() -> None:
    model = season(well()).eval()
    census = bn.inspect(model, torch.ones(1, 3, 4, 4), batch_size=2)
    tree = Tree(page(census, layers_of(model, census.sites))).root
    assert "One warning, about the model as a whole." in tree.of_class("headline")[0].text
    assert "clean" in (tree.of_class("site")[0].attributes["class"] or "")
    assert "BN026" in [card.attributes["id"] for card in tree.of_class("card")]


def test_a_finding_of_a_layer_is_told_of_each_of_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(torch.relu(self.bn(x)))

    tree = Tree(plain(Twice(), 1, 3, 4, 4)[1]).root
    first, second = tree.of_class("site")
    assert "of bn; " in second.text
    assert "of bn; " not in first.text
    assert all("warning" in (row.attributes["class"] or "") for row in (first, second))
    links = [a.attributes["href"] for card in tree.of_class("card") for a in card.all("a")]
    assert set(links) == {f"#{first.of_class('inside')[0].attributes['id']}"}


def test_many_layers_of_a_finding_are_behind_a_click_and_none_is_lost() -> None:
    census, told = troubled.shown(*troubled.tall(120))
    tree = Tree(told).root
    group = next(group for group in together(census.findings) if group[0].rule == "BN002")
    (card,) = (card for card in tree.of_class("card") if card.attributes["id"] == "BN002")
    assert [a.text for a in card.all("a")] == [finding.layer for finding in group]
    hidden = [a.text for details in card.all("details") for a in details.all("a")]
    assert hidden == [finding.layer for finding in group][8:]
    assert f"and {len(hidden)} more layers" in card.text


def test_known_findings_are_left_out_and_that_is_said() -> None:
    assert "leaves out: 3" in page(Census(()), known=3)
    assert "leaves out" not in page(Census(()), known=0)


# The numbers


def numbers(row: Element) -> dict[str, list[str]]:
    return {
        line.all("th")[0].text.split()[0]: [cell.text for cell in line.all("td")]
        for line in row.all("tr")[1:]
    }


def test_the_numbers_are_those_of_the_layer() -> None:
    model = season(well()).eval()
    gamma, beta, mean, var = ([1.0, -2.0, 3.0, 5.0], [0.5] * 4, [-4.0, 4.0, 8.0, 0.0], [0.25, 1.0, 4.0, 16.0])
    for tensor, values in zip(
        (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var),
        (gamma, beta, mean, var),
        strict=True,
    ):
        tensor.data.copy_(torch.tensor(values))
    tree = Tree(troubled.shown(model, torch.ones(1, 3, 4, 4))[1]).root
    (row,) = tree.of_class("site")
    told = numbers(row)
    assert told["γ"] == ["-2", "-1.55", "2", "4.7", "5"]
    assert told["β"] == ["0.5"] * 5
    assert told["μ"] == ["-4", "-3.4", "2", "7.4", "8"]
    assert told["σ²"][::4] == ["0.25", "16"]
    labels = [
        " ".join(each.text.split())
        for each in row.of_class("labels")[0].children
        if isinstance(each, Element)
    ]
    assert labels == ["γ 2", "β 0.5", "μ 2", "σ² 2.5"]


def test_numbers_that_are_none_are_counted_beside_the_column_they_are_in(
    ill: tuple[Census, str], tree: Element
) -> None:
    rows = {row.of_class("name")[0].all("bdi")[0].text: row for row in tree.of_class("site")}
    bad = {name: [em.text for em in row.all("em")] for name, row in rows.items()}
    assert {name: told for name, told in bad.items() if told} == {
        "layer2.0.bn1": ["3 below 0"],
        "layer2.1.bn2": ["1 not finite"],
    }


def test_a_layer_that_is_all_nan_or_has_no_scale() -> None:
    model = season(nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2))).eval()
    model[1].running_var.fill_(torch.nan)
    first, second = Tree(troubled.shown(model, torch.ones(1, 2, 2, 2))[1]).root.of_class("site")
    assert [
        " ".join(each.text.split())
        for each in first.of_class("labels")[0].children
        if isinstance(each, Element)
    ][:2] == ["γ none", "β none"]
    assert set(numbers(first)) == {"μ", "σ²"}
    assert "no number 2 not finite" in second.text
    assert numbers(second)["σ²"] == [""] * 5


def filled(d: str) -> list[list[tuple[int, int]]]:
    """Of a path of histograms, the bins of each that have a height."""
    panels = []
    for part in filter(None, d.split("z")):
        steps = re.findall(r"([Mhv])(-?\d+)(?: (\d+))?", part)
        x, height, bins = int(steps[0][1]) % 72, 0, []
        for kind, by, _ in steps[1:]:
            if kind == "v":
                height -= int(by)
            else:
                bins += [(at // 2, height) for at in range(x, x + int(by), 2) if height]
                x += int(by)
        assert height == 0
        panels.append(bins)
    return panels


def test_histograms_stand_where_the_numbers_are_on_the_axis_that_all_share() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)).eval()
    model[0].weight.data.copy_(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    model[1].weight.data.copy_(torch.tensor([2.0, 2.0, 2.0, 2.0]))
    model[0].running_var.copy_(torch.tensor([0.01, 1.0, 1.0, 100.0]))
    first, second = (
        filled(row.all("path")[0].attributes["d"] or "")
        for row in Tree(troubled.shown(model, torch.ones(2, 4))[1]).root.of_class("site")
    )
    axis = Axis.over([model[0].weight.detach().numpy(), model[1].weight.detach().numpy()], positive=False)
    one = int(axis.place(np.array([1.0]))[0] * BINS)
    assert first[0] == [(0, 7), (one, 20)]
    assert second[0] == [(BINS - 1, 20)]
    assert 0 < one < BINS - 1
    assert first[3] == [(0, 10), (BINS // 2, 20), (BINS - 1, 10)]
    assert second[3] == [(BINS // 2, 20)]


def test_one_channel_in_a_thousand_is_seen() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1000)).eval()
    model[0].running_mean.fill_(1.0)[7] = -3.0
    (row,) = Tree(troubled.shown(model, torch.ones(2, 1000))[1]).root.of_class("site")
    assert (0, 2) in filled(row.all("path")[0].attributes["d"] or "")[2]


def test_an_axis_is_not_stretched_by_one_number_and_not_lost_on_odd_ones() -> None:
    many = np.linspace(0.5, 1.5, 101)
    wide = Axis.over([many, np.array([1e19, -np.inf, np.nan])], positive=False)
    assert (wide.low, wide.high) == (0.0, pytest.approx(10 * 1.005))
    variance = Axis.over([many, np.array([1e-30, 0.0, -5.0])], positive=True)
    assert (variance.low, variance.high) == (pytest.approx(0.995e-4), 1.5)
    assert variance.place(np.array([0.0, -1.0, 1e-30, np.inf])).tolist() == [0, 0, 0, 1]
    for empty in ([], [np.zeros(3)], [np.full(2, np.nan)]):
        for positive in (True, False):
            axis = Axis.over(empty, positive=positive)
            assert 0 <= axis.origin <= 1
    found = Distribution.of(np.array([1e19, 1.0]), wide, positive=False)
    assert found.bins[-1] == 1
    assert found.quantiles[-1] == 1e19


def test_a_profile_has_a_mark_for_each_site(ill: tuple[Census, str], tree: Element) -> None:
    for picture in tree.of_class("profile"):
        (middles,) = (p.attributes["d"] or "" for p in picture.all("path") if p.attributes["class"] == "m")
        assert middles.count("M") == len(ill[0].sites)
        assert [a.attributes["href"] for a in picture.all("a")] == [f"#s{n}" for n in range(1, 21)]
        assert all(a.attributes["tabindex"] == "-1" for a in picture.all("a"))
        assert (picture.attributes["aria-label"] or "").count("20 sites") == 1


# What was looked at


def test_bare_weights_have_numbers_and_findings_and_no_verdict() -> None:
    model = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    model[1].running_var[0] = -1
    state = model.state_dict()
    census = inspect_tensors(state)
    tree = Tree(page(census, layers_of(state, census.sites), model="w.pt")).root
    (row,) = tree.of_class("site")
    assert (row.attributes["class"] or "").split() == ["site", "error", "unknown"]
    assert row.of_class("verdict")[0].text == ""
    assert numbers(row).keys() == {"γ", "β", "μ", "σ²"}
    assert "eps and momentum unknown, 77 batches counted" in row.text
    assert "order of execution" not in tree.text
    assert not [f for f in tree.all("input") if f.attributes.get("name") == "verdict"]
    live = troubled.shown(model, torch.ones(1, 3, 4, 4))[1]
    assert numbers(Tree(live).root.of_class("site")[0]) == numbers(row)


def test_a_model_that_does_not_run_says_so_first() -> None:
    model = season(well()).eval()
    _, told = troubled.shown(model, torch.ones(1, 7, 4, 4))
    tree = Tree(told).root
    assert tree.of_class("headline")[0].all("p")[0].text == "×The model does not run on this input."
    assert "whether they fold is unknown" in tree.of_class("headline")[0].text
    assert "Nothing was found" not in tree.text
    assert "give inputs that the model runs on" in tree.of_class("site")[0].text
    assert "does not run" not in troubled.shown(model, torch.ones(1, 3, 4, 4))[1]


def test_a_program() -> None:
    model = season(well()).eval()
    program = torch.export.export(model, (torch.ones(1, 3, 4, 4),), strict=False)
    census = bn.inspect(program)
    tree = Tree(page(census, layers_of(program, census.sites))).root
    (row,) = tree.of_class("site")
    assert numbers(row) == numbers(
        Tree(troubled.shown(model, torch.ones(1, 3, 4, 4))[1]).root.of_class("site")[0]
    )


def test_without_a_batchnorm_there_is_a_page_all_the_same() -> None:
    tree = Tree(troubled.shown(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.ones(1, 3, 4, 4))[1]).root
    assert "There is no BatchNorm." in tree.of_class("headline")[0].text
    assert not tree.of_class("site")


def test_switchablenorm_has_its_table() -> None:
    model = season(well()).eval()
    changed = bn.swap(model, "switchable").model
    told = troubled.shown(changed, torch.ones(1, 3, 4, 4))[1]
    tree = Tree(told).root
    (section,) = (each for each in tree.all("section") if each.attributes["id"] == "mixtures")
    (head, line) = section.all("tr")
    assert head.all("th")[0].text == "mean by instance"
    assert line.all("th")[0].text == "1"
    assert len(line.all("td")) == 6
    assert "mixtures" not in troubled.shown(model, torch.ones(1, 3, 4, 4))[1]


# A stranger's names


def hostile(name: str) -> str:
    """A page on which *name* stands everywhere: of the model, of layers, of hosts, of a reader in the way."""
    model = nn.Sequential()
    clean = name.replace(".", "_")
    model.add_module(f"c{clean}", nn.Conv2d(3, 4, 3))
    model.add_module(f"b{clean}", nn.BatchNorm2d(4))
    model.add_module(f"s{clean}", nn.Sigmoid())
    model.add_module(f"d{clean}", nn.BatchNorm2d(4))
    season(model).eval()
    model[1].running_var[0] = -1
    census = bn.inspect(model, torch.ones(1, 3, 4, 4))
    return page(census, layers_of(model, census.sites), model=name, what=name, versions={name: name})


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_is_only_ever_text(name: str) -> None:
    told = hostile(name)
    told.encode("utf-8")
    tree = Tree(told).root
    tame = Tree(hostile("name")).root
    assert [(each.name, *each.attributes) for each in tree.all()] == [
        (each.name, *each.attributes) for each in tame.all()
    ]
    ids = [[each.attributes["id"] for each in t.all() if "id" in each.attributes] for t in (tree, tame)]
    assert ids[0] == ids[1]
    style, script = (Tree(hostile("name")).root.all(kind)[0].text for kind in ("style", "script"))
    assert (tree.all("style")[0].text, tree.all("script")[0].text) == (style, script)
    unseen = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert f"b{unseen}".replace(".", "_") in tree.of_class("site")[0].text
    assert all(c.isprintable() or c == "\n" for c in told)


@pytest.mark.parametrize("name", ["\u05d0\u05d1", "\u202ex"])
def test_a_name_that_turns_the_line_is_held_apart(name: str) -> None:
    for each in Tree(hostile(name)).root.of_class("name"):
        assert each.all("bdi")


def test_half_a_character_is_written_out() -> None:
    """A pickle can hold one, a file cannot."""
    ones = {f"\ud800.{name}": torch.ones(2) for name in ("running_mean", "running_var")}
    census = inspect_tensors(ones)
    told = page(census, layers_of(ones, census.sites), model="\udc80")
    assert "<bdi>\\ud800</bdi>" in told
    assert "<bdi>\\udc80</bdi>" in told
    told.encode("utf-8")


def test_a_tag_escapes_what_is_in_it_and_in_its_attributes() -> None:
    assert tag("b", "<", tag("i", "&"), title='"<') == '<b title="&quot;&lt;">&lt;<i>&amp;</i></b>'


# The file


def test_equal_models_give_equal_bytes_and_others_others() -> None:
    one, two = (troubled.shown(*troubled.tall(10))[1] for _ in range(2))
    assert one == two
    assert one != troubled.shown(*troubled.tall(11))[1]
    assert not re.search(r"20\d\d-\d\d", one)


def test_a_thousand_sites_are_less_than_three_megabytes() -> None:
    model, _ = troubled.tall(1000)
    state = model.state_dict()
    census = inspect_tensors(state)
    assert len(page(census, layers_of(state, census.sites)).encode()) < 2.4e6


def test_what_is_no_page_or_is_there_already(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.html"
    path.write_text("mine")
    for wrong, told in (
        (path, "exists"),
        (tmp_path / "x.pt", "no ending of a page"),
        (tmp_path / "no" / "x.html", "no folder"),
    ):
        for ask in (check_page, lambda path, force: write_page("new", path, force=force)):
            with pytest.raises(UsageError, match=told):
                ask(wrong, force=False)
    assert path.read_text() == "mine"
    assert write_page("new é", path, force=True) == 6
    assert path.read_text("utf-8") == "new é"
    assert [each.name for each in tmp_path.iterdir()] == ["x.html"]
