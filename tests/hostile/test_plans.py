"""Plans and artefacts as an attacker writes them: an error of ours, no code run, the model as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bntools as bn
from bntools.core import store
from bntools.core.plan import Plan
from tests.golden import make

Tensors = dict[str, Tensor]
Header = dict[str, Any]
TOUCHED: list[str] = []


class Trapped(make.Tied):
    """Notices when a plan makes somebody ask it for more than its children and tensors."""

    @property
    def trap(self) -> nn.Module:
        TOUCHED.append("trap")
        return self.c

    def method(self) -> None:
        TOUCHED.append("method")


def fresh() -> Any:
    torch.manual_seed(5)
    return Trapped().eval()


def look(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, m in model.named_modules(remove_duplicate=False):
        found[f"module {path}"] = (id(m), type(m), m.training, [(k, id(v)) for k, v in vars(m).items()])
        found[f"inside {path}"] = [[(k, id(v)) for k, v in d.items()] for d in (m._modules, m._parameters)]
    for key, t in model.state_dict(keep_vars=True).items():
        found[key] = (id(t), t.detach().clone().view(-1).tolist(), t.dtype, t.requires_grad)
    return found


def parts() -> tuple[Header, Tensors]:
    """The golden artefact, taken apart."""
    artefact = store.read(make.ARTEFACT)
    tensors = {k: t for k, t in artefact.tensors.items() if k != "b.weight"}
    return {"plan": json.loads(artefact.plan.to_json()), "tied": {"b.weight": "a.weight"}}, tensors


def write(path: Path, header: Any, tensors: Tensors) -> Path:
    save_file(tensors, path, metadata={"bntools": header if isinstance(header, str) else json.dumps(header)})
    return path


def refused(tmp_path: Path, header: Any, tensors: Tensors, match: str = ".") -> None:
    """Both kinds of file, replayed in both ways."""
    paths = [write(tmp_path / "m.safetensors", header, tensors)]
    if isinstance(header, dict) and isinstance(header.get("tied"), dict) and "plan" in header:
        everything = {**tensors, **{k: tensors[n] for k, n in header["tied"].items() if str(n) in tensors}}
        content = {"model": everything, "bntools": json.dumps(header["plan"])}
        if header["tied"] == {"b.weight": "a.weight"} and header.keys() == {"plan", "tied"}:
            torch.save(content, tmp_path / "m.pt")
            paths.append(tmp_path / "m.pt")
    TOUCHED.clear()
    for path in paths:
        for inplace in (False, True):
            model = fresh()
            before = look(model)
            with pytest.raises((bn.PlanError, bn.SourceError), match=match) as caught:
                bn.replay(path, model, inplace=inplace)
            assert look(model) == before
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 1000
    assert TOUCHED == []


def test_the_original_is_accepted(tmp_path: Path) -> None:
    """The twin: what the others change is right as it is."""
    header, tensors = parts()
    path = write(tmp_path / "m.safetensors", header, tensors)
    assert isinstance(bn.replay(path, fresh()).bn, nn.Identity)
    torch.save(
        {"model": {**tensors, "b.weight": tensors["a.weight"]}, "bntools": json.dumps(header["plan"])}, path
    )
    assert isinstance(bn.replay(path, fresh()).bn, nn.Identity)


# Every place of a plan, filled with everything that JSON has

JUNK: list[Any] = [
    *(
        None,
        True,
        -1,
        10**400,
        1.5,
        float("nan"),
        "",
        "x",
        "..",
        "__class__",
        "a.__dict__",
        "trap",
        "trap.weight",
    ),
    *([], [None], ["x"], [["x"]], {}, {"x": 1}, "\ud800", "x" * 100_000),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, v in inside for p in places(v, (*at, key)))][not at :]


PLACES = places(parts()[0]["plan"])
# What says something about the plan, and decides nothing in a replay; the type is checked all the same.
TALK = {
    "verb",
    "kind",
    "eps",
    "momentum",
    "batches",
    "at",
    "name",
    "module",
    "detail",
    "into",
    "side",
    "behind",
    "rows",
    "columns",
    "through",
    "notes",
}
TALK |= {"op", "layout", "groups", "call", "path", "promise", "reason", "args", "refusals", "channels"}


def put(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return tree


@pytest.mark.parametrize("place", PLACES, ids=lambda p: "/".join(map(str, p)))
def test_junk_in_any_place(place: tuple[Any, ...], tmp_path: Path) -> None:
    """Junk that means nothing may be let through, but then the model is the one that the file describes."""
    header, tensors = parts()
    old = header["plan"]
    for key in place:
        old = old[key]
    talk = bool({k for k in place if isinstance(k, str)} & TALK)
    TOUCHED.clear()
    told: list[str] = []
    for junk in JUNK:
        if (junk == old and type(junk) is type(old)) or (place[-1] in ("keeps", "bias") and junk == []):
            continue  # what a plan leaves behind, or does not change, is its own affair
        artefact_header = {**header, "plan": put(header["plan"], place, junk)}
        path = write(tmp_path / "m.safetensors", artefact_header, tensors)
        model = fresh()
        before = look(model)
        try:
            bn.replay(path, model, inplace=True)
        except (bn.PlanError, bn.SourceError) as error:
            assert look(model) == before
            told.append(str(error))
        else:
            assert talk, f"{junk!r} was accepted"
            right = bn.replay(make.ARTEFACT, fresh())
            assert list(model.state_dict()) == list(right.state_dict())
            assert all(torch.equal(t, right.state_dict()[k]) for k, t in model.state_dict().items())
    assert TOUCHED == []
    assert not [text for text in told if "\n" in text or len(text) > 1000]


@pytest.mark.parametrize(
    "place", [p for p in PLACES if isinstance(p[-1], str)], ids=lambda p: "/".join(map(str, p))
)
def test_a_missing_or_foreign_field(place: tuple[Any, ...], tmp_path: Path) -> None:
    header, tensors = parts()
    missing = copy.deepcopy(header)
    inner = missing["plan"]
    for key in place[:-1]:
        inner = inner[key]
    inner["foreign"] = inner.pop(place[-1])
    refused(tmp_path, missing, tensors, "plan: ")
    inner[place[-1]] = inner["foreign"]
    refused(tmp_path, missing, tensors, r"has other fields: foreign")


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, -1, 5.0, True, "5", None, [5], 10**30])
def test_another_version(version: Any, tmp_path: Path) -> None:
    header, tensors = parts()
    header["plan"]["version"] = version
    refused(tmp_path, header, tensors, "expected version 5, it has .*; use the bntools that wrote it")


# Plans that are well-formed and lie

BN, DECONV = ("edits", 0), ("hosts", 2)
PATHS = [
    *("", ".", "..", "a..", "../a", "/etc/passwd", "__class__", "__dict__", "__init__", "forward", "method"),
    *("trap", "_modules", "bn.__class__", "act.forward", "training", "nobody", "a.weight"),
]
NAMES = [
    *("", ".", "..", "weight", "a.", "a.weight.data", "a.__class__", "a.__dict__", "a.forward", "a.training"),
    *("a._parameters", "a.in_channels", "a.padding_mode", "trap.weight", "method", "a._backward_hooks"),
    *("bn.running_mean", "last.running", "a.stride", "nobody.weight", "a.nothing", "act.act0.weight"),
    *("a._is_full_backward_hook", "c.nothing"),
]


@pytest.mark.parametrize("path", PATHS)
def test_removing_what_is_no_batchnorm(path: str, tmp_path: Path) -> None:
    header, tensors = parts()
    refused(
        tmp_path, {**header, "plan": put(header["plan"], (*BN, "removes"), [path])}, tensors, "^plan: bn: "
    )
    both = put(header["plan"], (*BN, "removes"), ["bn", path])
    refused(tmp_path, {**header, "plan": both}, tensors, "^plan: bn: ")


@pytest.mark.parametrize("path", ["a", "b", "c", "last", "act"])
def test_removing_another_module(path: str, tmp_path: Path) -> None:
    header, tensors = parts()
    refused(tmp_path, {**header, "plan": put(header["plan"], (*BN, "removes"), [path])}, tensors, "^plan: ")


def test_removing_nothing(tmp_path: Path) -> None:
    header, tensors = parts()
    refused(
        tmp_path,
        {**header, "plan": put(header["plan"], (*BN, "removes"), [])},
        tensors,
        "removes no BatchNorm",
    )


@pytest.mark.parametrize("field", ["weight", "bias", "new_weight", "new_bias"])
@pytest.mark.parametrize("name", NAMES)
def test_keys_of_what_is_no_place_for_a_tensor(name: str, field: str, tmp_path: Path) -> None:
    header, tensors = parts()
    one = field.startswith("new")
    host = header["plan"]["hosts"][2]
    if host[field] == (name if one else [name]):
        return
    for others in ({}, {name: torch.ones(3)}, {name: tensors["c.weight"].clone()}):
        plan = put(header["plan"], (*DECONV, field), name if one else [name])
        refused(tmp_path, {**header, "plan": plan}, {**tensors, **others}, "^plan: |damaged|no weights")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("new_weight", "c.weight"),
        ("new_weight", "c.bias"),
        ("new_bias", "last.bias"),
        ("new_bias", "a.bias"),
        ("new_bias", ""),
        ("bias", ["a.bias"]),
        ("weight", []),
        ("weight", ["c.weight", "c.weight", "a.weight"]),
        ("weight", ["c.weight", "last.running_mean"]),
        ("bake", "weight"),
        ("bake", "forward"),
        ("bake", "__class__"),
        ("layout", "table"),
    ],
)
def test_a_host_that_is_not_one(field: str, value: Any, tmp_path: Path) -> None:
    header, tensors = parts()
    plan = put(header["plan"], (*DECONV, field), value)
    refused(tmp_path, {**header, "plan": plan}, tensors, "^plan: ")


@pytest.mark.parametrize(
    "part",
    [
        ("act", "Linear", [10**9, 10**9]),
        ("act", "Bilinear", []),
        ("act", "Module", []),
        ("act", "Sequential", []),
        ("act", "__builtins__", []),
        ("act", "os.system", ["true"]),
        ("act", "modules", []),
        ("act", "relu", []),
        ("act", "ReLU", [True]),
        ("act", "ReLU", [1.0]),
        ("act", "LeakyReLU", []),
        ("act", "LeakyReLU", ["0.3"]),
        ("act", "LeakyReLU", [True]),
        ("act", "LeakyReLU", [0.3, 0.3]),
        ("act", "Hardtanh", [1.0, 0.0]),
        ("act", "GELU", ["evil"]),
        ("act", "GELU", [1.0]),
        ("act", "Threshold", [1.0, 1.0]),
        ("", "ReLU", []),
        ("a.b", "ReLU", []),
        ("forward", "ReLU", []),
        ("append", "ReLU", []),
        ("training", "ReLU", []),
        ("_modules", "ReLU", []),
        ("__class__", "ReLU", []),
        ("nobody", "", []),
        ("running_mean", "", []),
        ("__class__", "", []),
    ],
    ids=str,
)
def test_leaving_something_behind(part: tuple[str, str, list[Any]], tmp_path: Path) -> None:
    header, tensors = parts()
    name, op, args = part
    plan = put(header["plan"], (*BN, "keeps"), [{"name": name, "op": op, "args": args}])
    refused(tmp_path, {**header, "plan": plan}, tensors, "^plan: bn: ")


def test_leaving_two_things_under_one_name(tmp_path: Path) -> None:
    header, tensors = parts()
    relu = {"name": "act", "op": "ReLU", "args": []}
    refused(
        tmp_path, {**header, "plan": put(header["plan"], (*BN, "keeps"), [relu, relu])}, tensors, "no name"
    )


def test_another_fingerprint(tmp_path: Path) -> None:
    header, tensors = parts()
    header["plan"]["fingerprint"] = "0" * 64
    refused(tmp_path, header, tensors, "other tensors")


# Tensors

TENSORS: dict[str, Callable[[Tensors], Any]] = {
    "a missing one": lambda t: t.pop("c.bias"),
    "a missing one that no edit needs": lambda t: t.pop("last.bias"),
    "one too many": lambda t: t.update(extra=torch.ones(1)),
    "one of the removed": lambda t: t.update({"bn.weight": torch.ones(2)}),
    "a long bias": lambda t: t.update({"c.bias": torch.ones(4)}),
    "a huge bias": lambda t: t.update({"c.bias": torch.ones(1_000_000)}),
    "a scalar bias": lambda t: t.update({"c.bias": torch.tensor(1.0)}),
    "an empty bias": lambda t: t.update({"c.bias": torch.ones(0)}),
    "a bias in float64": lambda t: t.update({"c.bias": torch.ones(3, dtype=torch.float64)}),
    "a bias of integers": lambda t: t.update({"c.bias": torch.ones(3, dtype=torch.int64)}),
    "another weight": lambda t: t.update({"c.weight": torch.ones(3, 2, 1, 1)}),
    "a weight in half": lambda t: t.update({"c.weight": t["c.weight"].half()}),
    "another type where nothing folds": lambda t: t.update({"last.bias": torch.ones(3).double()}),
    "another shape where nothing folds": lambda t: t.update({"last.bias": torch.ones(1)}),
    "a counter in float": lambda t: t.update({"last.num_batches_tracked": torch.tensor(77.0)}),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit(what: str, tmp_path: Path) -> None:
    header, tensors = parts()
    TENSORS[what](tensors)
    refused(tmp_path, header, tensors, "^plan: ")


def test_nan_is_a_value_like_any_other(tmp_path: Path) -> None:
    """A trained model may hold some; it is replayed bit for bit."""
    header, tensors = parts()
    tensors["c.bias"][0] = float("nan")
    model: Any = bn.replay(write(tmp_path / "m.safetensors", header, tensors), fresh())
    assert model.c.bias.isnan().tolist() == [True, False, False]


# The header

TIED: list[Any] = [
    *(
        None,
        [],
        "a.weight",
        3,
        ["b.weight", "a.weight"],
        {"b.weight": None},
        {"b.weight": 3},
        {"b.weight": ["a.weight"]},
    ),
    *({"b.weight": "nobody"}, {"b.weight": "b.weight"}, {"b.weight": "x", "x": "b.weight"}, {"b.weight": {}}),
    *({"b.weight": "a.weight", "c.bias": "a.bias"}, {"b.weight": "a.weight", "a.bias": "b.bias"}),
    *({"b.weight": "a.weight", "__class__": "a.weight"}, {}, {"b.weight": "a.weight", "x": "b.weight"}),
]


@pytest.mark.parametrize("tied", TIED, ids=str)
def test_ties_that_are_none(tied: Any, tmp_path: Path) -> None:
    header, tensors = parts()
    refused(tmp_path, {**header, "tied": tied}, tensors)


DEEP = "[" * 100_000 + "]" * 100_000
HEADERS = {
    "empty": "",
    "no JSON": "{'plan': 1}",
    "null": "null",
    "a list": "[]",
    "a number": "3",
    "an empty object": "{}",
    "no plan": '{"tied": {}}',
    "no ties": '{"plan": {}}',
    "plan null": '{"plan": null, "tied": {}}',
    "plan of text": '{"plan": "{}", "tied": {}}',
    "more than that": '{"plan": {}, "tied": {}, "run": "me"}',
    "deep": DEEP,
    "deep plan": f'{{"plan": {DEEP}, "tied": {{}}}}',
    "deep notes": json.dumps(parts()[0]).replace('"notes": []', f'"notes": {DEEP}'),
    "a huge number": f'{{"plan": {"9" * 100_000}, "tied": {{}}}}',
    "lone surrogates": '{"plan": "\\ud800", "tied": {"\\ud800": "\\ud800"}}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers(what: str, tmp_path: Path) -> None:
    refused(tmp_path, HEADERS[what], parts()[1])


@pytest.mark.parametrize(
    "text", [*HEADERS.values(), '{"version": 5}', '{"version": 5, "edits": {}}'], ids=lambda t: t[:20]
)
def test_texts_that_are_no_plan(text: str, tmp_path: Path) -> None:
    with pytest.raises(bn.PlanError):
        Plan.from_json(text)
    torch.save({"model": parts()[1], "bntools": text}, tmp_path / "m.pt")
    with pytest.raises(bn.PlanError):
        bn.replay(tmp_path / "m.pt", fresh())


# graft_ itself


def test_a_plan_is_judged_before_anything_is_cut() -> None:
    """Two good edits and a bad one: none is done."""
    header, tensors = parts()
    header["plan"]["edits"][2]["removes"] = ["c"]
    plan = Plan.from_json(json.dumps(header["plan"]))
    model = fresh()
    before = look(model)
    needed = {"a.weight", "a.bias", "b.bias", "c.weight", "c.bias"}
    with pytest.raises(bn.PlanError, match="act: c is no BatchNorm"):
        bn.graft_(model, plan, {k: t for k, t in tensors.items() if k in needed})
    assert look(model) == before


def test_a_host_to_bake_that_is_another_module() -> None:
    """What is baked is what the keys name, or undoing would not know of it."""
    model = fresh()
    nn.utils.parametrizations.weight_norm(model.c)
    nn.utils.parametrizations.weight_norm(model.b)
    from bntools.core.example import Example
    from bntools.core.planning import plan_folds

    plan, tensors = plan_folds(model, Example((make.INPUTS,)), bake=True)
    assert any(h.bake for h in plan.hosts)
    raw = json.loads(plan.to_json())
    for host in raw["hosts"]:
        for path in ("b", "a", "nobody", "", "trap"):
            if host["bake"] and path != host["path"]:
                kept, host["path"] = host["path"], path
                before = look(model)
                with pytest.raises(bn.PlanError):
                    bn.graft_(model, Plan.from_json(json.dumps(raw)), tensors)
                assert look(model) == before
                host["path"] = kept
