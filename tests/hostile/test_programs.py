"""Hostile ``.pt2`` files: each way in which opening one can run code is planted, and refused by name.

All that run Python are opened twice: the twin does so with --unsafe, and there the code does run.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import bntools as bn
from bntools.__main__ import main
from bntools.core.revive import revive
from bntools.core.source import load, state_of
from bntools.errors import BntoolsError, UnsafeError
from tests.hostile.program_files import (
    CONSTANTS,
    INPUTS,
    MODEL,
    WEIGHTS,
    Plant,
    Runs,
    calls,
    edited,
    graph,
    out_spec,
    saved,
    sound,
    touch,
    written,
)

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def renamed(document: Any, old: str, new: str) -> None:
    """Everywhere: as a whole string and as a key."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {(new if key == old else key): walk(each) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        return new if value == old else value

    document["graph_module"] = walk(document["graph_module"])


def pickled_inputs(records: dict[str, bytes], code: str) -> None:
    records[INPUTS] = saved(((torch.ones(2, 3, 6, 6), Runs(code)), {}))


def old_weights(records: dict[str, bytes], code: str) -> None:
    records["data/weights/model.pt"] = saved({"conv.weight": Runs(code)})


def old_constants(records: dict[str, bytes], code: str) -> None:
    records["data/constants/model.pt"] = saved({"k": Runs(code)})


def pickled_tensor(table: str, folder: str) -> Plant:
    def plant(records: dict[str, bytes], code: str) -> None:
        document = json.loads(records[table])
        entry = next(iter(document["config"].values()))
        entry["use_pickle"] = True
        records[f"{folder}/{entry['path_name']}"] = saved(Runs(code))
        records[table] = json.dumps(document).encode()

    return plant


def opaque(records: dict[str, bytes], code: str) -> None:
    document = json.loads(records[CONSTANTS])
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    document["config"]["object"] = entry
    records[CONSTANTS] = json.dumps(document).encode()
    records["data/constants/opaque_obj_0"] = pickle.dumps(Runs(code))


def size(document: Any, code: str) -> None:
    meta = graph(document)["tensor_values"]["x"]
    meta["sizes"][0] = {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}


def value_name(document: Any, code: str) -> None:
    """In the definition of a function, where the default of a parameter is evaluated."""
    renamed(document, "spare", f"spare={code}")


def tensor_name(records: dict[str, bytes], code: str) -> None:
    """Between the quotes of an attribute's name; a dot would end it, so the code is in a module."""
    name = 'conv"), __import__("evilmod"), ("'
    for record, where in ((MODEL, "parameter_name"), (WEIGHTS, "conv.weight")):
        text = records[record].decode()
        old = f'"{where}": "conv.weight"' if record == MODEL else '"conv.weight": '
        assert text.count(old) == 1
        new = old.replace('"conv.weight"', json.dumps(name))
        records[record] = text.replace(old, new).encode()


def argument_name(document: Any, code: str) -> None:
    calls(document)["forward_arg_names"] = ["x", "shift", "spare", f"more={code}"]


def keyword_name(document: Any, code: str) -> None:
    """Between the quotes of a key in a dict."""
    spec = json.loads(calls(document)["in_spec"])
    spec[1]["children_spec"][1]["context"] = json.dumps(["shift", f"spare': {code}, 'spare"])
    calls(document)["in_spec"] = json.dumps(spec)
    calls(document)["forward_arg_names"] = ["x", "shift", "spare"]


def file_operator(document: Any, code: str) -> None:
    """An operator that makes a file, as large as asked for."""
    arguments = {
        "filename": {"as_string": code.split('"')[1]},
        "shared": {"as_bool": True},
        "size": {"as_int": 4},
    }
    graph(document)["nodes"].append(
        {
            "target": "torch.ops.aten.from_file.default",
            "inputs": [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()],
            "outputs": [{"as_tensor": {"name": "made"}}],
            "metadata": {},
        }
    )
    meta = copy.deepcopy(graph(document)["tensor_values"]["shift"])
    graph(document)["tensor_values"]["made"] = meta


DEFAULT = {"default_factory_module": "evilmod", "default_factory_name": "int", "dict_context": ["y"]}
ENUM = json.dumps([{"__enum__": True, "fqn": "evilmod:Evil", "name": "A"}])

RUNS: dict[str, tuple[Plant, str]] = {
    "inputs": (pickled_inputs, r"its example inputs: .*builtins\.exec"),
    "weights of torch 2.7": (old_weights, r"data/weights/model\.pt"),
    "constants of torch 2.7": (old_constants, r"data/constants/model\.pt"),
    "a weight": (pickled_tensor(WEIGHTS, "data/weights"), "conv.weight is a pickle"),
    "a constant": (pickled_tensor(CONSTANTS, "data/constants"), "is a pickle"),
    "an opaque object": (opaque, "opaque_obj_0"),
    "a size": (edited(MODEL, size), "the expression 'open"),
    "the name of a value": (edited(MODEL, value_name), "'spare=open"),
    "the name of a tensor": (tensor_name, "which is no name of a tensor"),
    "the name of an argument": (edited(MODEL, argument_name), "'more=open"),
    "a keyword": (edited(MODEL, keyword_name), "arguments of the type builtins.dict"),
    "a structure that imports": (
        edited(MODEL, out_spec("collections.defaultdict", DEFAULT)),
        "arguments of the type collections.defaultdict",
    ),
    "a structure of classes that imports": (
        edited(MODEL, out_spec("builtins.dict", ENUM)),
        "arguments of the type builtins.dict",
    ),
    "an operator": (edited(MODEL, file_operator), r"the operator torch\.ops\.aten\.from_file\.default"),
}
"""What runs as torch opens the file or calls what is in it, and how it is refused."""


@pytest.fixture
def evilmod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that runs the code when it is imported."""
    code = touch(tmp_path / "canary")
    (tmp_path / "evilmod.py").write_text(f"{code}\nclass Evil:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("evilmod", None)


@pytest.mark.usefixtures("evilmod")
@pytest.mark.parametrize("place", RUNS)
def test_code_in_a_program_does_not_run(tmp_path: Path, place: str) -> None:
    canary, records = tmp_path / "canary", sound()
    plant, said = RUNS[place]
    plant(records, touch(canary))
    path = written(tmp_path / "m.pt2", records)
    with pytest.raises(UnsafeError, match=said) as caught:
        revive(path)
    assert "nothing was run" in caught.value.message
    assert "--unsafe" in caught.value.todo
    assert not canary.exists()
    with pytest.raises(UnsafeError, match=said):
        bn.verify(path, path)
    for verb in ("fold", "export", "verify"):
        assert main([verb, str(path), *([str(path)] if verb == "verify" else []), "-q"]) == 3
    assert main(["inspect", str(path), "-q"]) in (0, 3)
    with pytest.raises(BntoolsError):
        load(path)
    with suppress(BntoolsError):  # the weights of some of them are plain bytes, and may be looked at
        state_of(path)
    assert not canary.exists()
    assert not (tmp_path / "m.folded.pt2").exists()


@pytest.mark.usefixtures("evilmod")
@pytest.mark.parametrize("place", RUNS)
def test_the_canary_can_sing(tmp_path: Path, place: str) -> None:
    """The twin: with --unsafe torch opens the same file, and its code runs."""
    canary, records = tmp_path / "canary", sound()
    RUNS[place][0](records, touch(canary))
    path = written(tmp_path / "m.pt2", records)
    with suppress(Exception):  # what torch says of what is left of the file
        held = revive(path, unsafe=True)
        held.module.forward(*held.example.args, **held.example.kwargs)  # type: ignore[union-attr]
    assert canary.exists()


def test_a_plain_program_opens(tmp_path: Path) -> None:
    """The twin of all that is refused here: each file differs from this one in one thing."""
    path = written(tmp_path / "m.pt2", sound())
    held, reference = revive(path), torch.export.load(path)
    assert held.example is not None
    ours, theirs = held.example(held.module), held.example(reference.module())
    assert torch.equal(ours, theirs)
    assert not held.unsafe


def test_guards_are_left_out(tmp_path: Path) -> None:
    """They are source code, and say only which sizes the exporter saw."""
    canary, records = tmp_path / "canary", sound()
    document = json.loads(records[MODEL])
    document["guards_code"] = [f"{touch(canary)} is None"]
    records[MODEL] = json.dumps(document).encode()
    held = revive(written(tmp_path / "m.pt2", records))
    assert held.example is not None
    held.example(held.program.module())
    assert not canary.exists()
    with suppress(AssertionError):  # the guard itself
        held.example(torch.export.load(tmp_path / "m.pt2").module())
    assert canary.exists()


def test_notes_on_nodes_are_left_out_but_for_plain_paths(tmp_path: Path) -> None:
    """torch looks some of them up by attributes of its modules; paths become the names of layers."""
    records = sound()
    document = json.loads(records[MODEL])
    convolution = next(node for node in graph(document)["nodes"] if ".conv2d." in node["target"])
    norm = next(node for node in graph(document)["nodes"] if ".batch_norm." in node["target"])
    convolution["metadata"]["source_fn_stack"] = "conv,torch.hub.load"
    norm["metadata"]["nn_module_stack"] = "L,__class__.forward,torch.nn.BatchNorm2d"
    records[MODEL] = json.dumps(document).encode()
    metas = {n.name: n.meta for n in revive(written(tmp_path / "m.pt2", records)).program.graph.nodes}
    assert [path for path, _ in metas["conv2d"]["nn_module_stack"].values()] == ["", "conv"]
    assert "source_fn_stack" not in metas["conv2d"]
    assert metas["batch_norm"]["nn_module_stack"] == {}


def test_programs_of_torch_2_7_are_refused(tmp_path: Path) -> None:
    """All their weights are pickles."""
    canary, path = tmp_path / "canary", tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.5")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", saved(Runs(touch(canary))))
    for open_it in (revive, state_of):
        with pytest.raises(UnsafeError, match=r"torch 2\.7"):
            open_it(path)
    assert not canary.exists()
