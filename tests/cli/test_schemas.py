"""What is printed with ``--json`` is what the published schemas say, and what is not they refuse."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from torch import nn

from bntools.cli.render import SCHEMA
from bntools.core.plan import Promise, Side
from bntools.core.reasons import Reason
from bntools.findings import Needs, Severity
from tests import schemas
from tests.cli import nets
from tests.cli.conftest import Run
from tests.cli.test_exit_codes import break_graft
from tests.cli.test_inspect import ill, switched

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)
FILES = {path.name: json.loads(path.read_text("utf-8")) for path in schemas.FOLDER.glob("*.json")}
VERBS = [name.removesuffix(".json") for name in FILES if name != schemas.SHARED]


def closed(schema: Any) -> Any:
    """The same, but nothing that it does not speak of: the output has no more than that today."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = (
        {"additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else {}
    )
    return {key: closed(value) for key, value in schema.items()} | shut


def validator(verb: str) -> Draft202012Validator:
    shared = Resource.from_contents(closed(FILES[schemas.SHARED]))
    registry: Registry[Any] = Registry().with_resource(schemas.SHARED, shared)
    return Draft202012Validator(closed(FILES[f"{verb}.json"]), registry=registry)


def printed(run: Run, verb: str, *arguments: str | Path) -> Any:
    """The object that a command prints, which must be what the schema says."""
    about = json.loads(run(verb, *arguments, "--json").out)
    faults = [f"{list(each.path)}: {each.message[:200]}" for each in validator(verb).iter_errors(about)]
    assert faults == []
    return about


def broken(about: Any, optional: bool = False) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Every way to leave out one field of a record, and to put something else in place of one value.

    Args:
        about: the object.
        optional: whether its own keys may be left out, as those of a mapping may.
    """
    keys = list(about) if isinstance(about, dict) else list(range(len(about)))
    for key in keys:
        value = about[key]
        if isinstance(about, dict) and not optional:
            yield f"no {key}", lambda x, key=key: x.pop(key)
        if isinstance(value, dict | list) and value:
            for name, change in broken(value, key in ("rules", "nodes")):
                yield f"{key}.{name}", lambda x, key=key, change=change: change(x[key])
        yield f"other {key}", lambda x, key=key: x.__setitem__(key, {"odd": [0]})


def test_the_files_are_those_of_the_code() -> None:
    assert {name: schemas.text(made) for name, made in schemas.documents().items()} == {
        path.name: path.read_text("utf-8") for path in schemas.FOLDER.iterdir()
    }, "python -m tests.schemas --write"


@pytest.mark.parametrize("name", FILES)
def test_each_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(FILES[name])
    with pytest.raises(Exception, match="not valid"):
        Draft202012Validator.check_schema(FILES[name] | {"type": "record"})


def test_there_is_one_for_each_verb_with_its_version(run: Run) -> None:
    front = run("--help").out
    assert [verb for verb in VERBS if f"│ {verb} " not in front] == []
    assert len(VERBS) == sum(line.startswith("│ ") and line[2].islower() for line in front.splitlines())
    for verb in VERBS:
        properties = FILES[f"{verb}.json"]["properties"]
        assert (properties["schema"], properties["command"]) == ({"const": SCHEMA}, {"const": verb})


def test_closed_lists_are_those_of_the_code() -> None:
    records = FILES[schemas.SHARED]["$defs"]
    for record, name, kind in [
        ("Refusal", "reason", Reason),
        ("Edit", "side", Side),
        ("Plan", "promise", Promise),
        ("Rule", "severity", Severity),
        ("Rule", "needs", Needs),
    ]:
        assert records[record]["properties"][name]["enum"] == [each.value for each in kind]


# Inspect


def infinite() -> nn.Module:
    model = ill()
    model[1].running_mean[0] = float("inf")
    model[1].running_var[1] = float("-inf")
    return model


@pytest.mark.parametrize("make", [nets.net, nets.partly, nets.plain, nets.odd_names, ill, infinite])
@pytest.mark.parametrize("weights", [False, True])
def test_inspect(run: Run, saved: Saved, make: Callable[[], nn.Module], weights: bool) -> None:
    model = saved(make().state_dict() if weights else make())
    about = printed(run, "inspect", model, *ON, "--batch-size", "2", "--fail-on", "note")
    assert (about["plan"] is None) == weights


def test_inspect_of_a_switchablenorm(run: Run, saved: Saved) -> None:
    assert printed(run, "inspect", saved(switched()), *ON, "--trust", "bntools.norms")["mixtures"]


def test_inspect_with_a_baseline(run: Run, saved: Saved) -> None:
    model = saved(ill())
    assert printed(run, "inspect", model, *ON, "--write-baseline", "known.json")["baseline"]["written"]
    saved(nets.net())
    assert printed(run, "inspect", model, *ON, "--baseline", "known.json")["baseline"]["gone"]


@pytest.mark.parametrize("verb", VERBS)
def test_of_a_file_that_is_none_there_is_an_error_alone(run: Run, verb: str) -> None:
    more = {"recalibrate": ["--data", "x"], "verify": ["b.pt"], "replay": ["b.pt"]}.get(verb, [])
    assert printed(run, verb, "gone.pt", *more).keys() == {"schema", "command", "error", "report"}


def test_inspect_of_a_model_that_does_not_run_has_both(run: Run, saved: Saved) -> None:
    about = printed(run, "inspect", saved(ill()), "--input", "2x7x8x8")
    assert about["error"]["exit_code"] == 4
    assert about["findings"]


# The other verbs


def test_fold_and_replay(run: Run, saved: Saved) -> None:
    model = saved(nets.partly())
    assert printed(run, "fold", model, *ON, "--dry-run")["output"] is None
    assert printed(run, "fold", model, *ON, "--strict")["error"]["exit_code"] == 1
    assert printed(run, "fold", model, *ON, "-o", "a.safetensors")["output"]
    assert printed(run, "replay", "a.safetensors", model)["output"]
    assert printed(run, "fold", model, *ON, "-o", "a.onnx")["output"]["check"]


def test_a_fold_that_went_wrong(run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    break_graft(monkeypatch, float("nan"))
    about = printed(run, "fold", saved(), *ON)
    assert about["report"]["shipped_error"] is None


def test_freeze_and_unfreeze(run: Run, saved: Saved) -> None:
    assert printed(run, "freeze", saved(), "-o", "frozen.pt")["frozen"]["statistics"]
    assert printed(run, "unfreeze", "frozen.pt")["plan"]["verb"] == "unfreeze"


def test_swap(run: Run, saved: Saved) -> None:
    assert printed(run, "swap", saved(), *ON)["change"]["layers"]
    assert printed(run, "swap", saved(), "--to", "batch", "--dry-run", *ON)["plan"]["refusals"]


def test_recalibrate(run: Run, saved: Saved, folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    np.savez(folder / "x.npz", x=torch.randn(16, 3, 8, 8, generator=generator).numpy())
    assert printed(run, "recalibrate", saved(), "--data", "x.npz", "--batch-size", "8")["drift"]["layers"]


def test_export_and_verify(run: Run, saved: Saved) -> None:
    model = saved(nets.partly())
    assert printed(run, "export", model, *ON, "-o", "a.onnx")["graph"]["nodes"]
    assert printed(run, "verify", model, "a.onnx", *ON)["report"]["verdict"] == "passed"
    other = nets.partly()
    with torch.no_grad():
        other[0].weight[0] *= 1.1
    about = printed(run, "verify", model, saved(other, "other.pt"), *ON)
    assert about["report"]["verdict"] == "failed"
    assert about["report"]["place"]


# What they refuse


def test_one_wrong_field_is_refused(run: Run, saved: Saved) -> None:
    about = printed(run, "inspect", saved(ill()), *ON, "--batch-size", "2")
    check = validator("inspect")
    tried = 0
    for name, change in broken(about):
        other = copy.deepcopy(about)
        change(other)
        assert not check.is_valid(other), name
        tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.update(schema=2),
        lambda x: x.update(command="fold"),
        lambda x: x.update(odd=1),
        lambda x: x["sites"][0].update(odd=1),
        lambda x: x["sites"][0].update(channels=1.5),
        lambda x: x["sites"][0].update(channels="4"),
        lambda x: x["findings"][0].update(severity="fatal"),
        lambda x: x["plan"]["refusals"][0].update(reason="because"),
        lambda x: x["plan"].update(promise=None),
        lambda x: x.update(error={"message": "", "todo": ""}),
        lambda x: [x.pop("findings"), x.update(error={"message": "", "todo": "", "exit_code": 1})],
    ],
)
def test_nor_is_another_wrong_one(run: Run, saved: Saved, change: Callable[[Any], Any]) -> None:
    about = printed(run, "inspect", saved(ill()), *ON)
    change(about)
    assert not validator("inspect").is_valid(about)


def test_a_field_more_is_no_fault_of_a_reader(run: Run, saved: Saved) -> None:
    """A version is about what goes or changes; whoever reads with the published file may get more."""
    about = printed(run, "inspect", saved(ill()), *ON)
    registry: Registry[Any] = Registry().with_resource(
        schemas.SHARED, Resource.from_contents(FILES[schemas.SHARED])
    )
    check = Draft202012Validator(FILES["inspect.json"], registry=registry)
    about["odd"] = about["sites"][0]["odd"] = 1
    assert check.is_valid(about)
    del about["sites"][0]["name"]
    assert not check.is_valid(about)
