"""Programs whose document, records or tensors have another shape than torch writes: errors of one line."""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bntools.__main__ import main
from bntools.core.revive import revive
from bntools.errors import BntoolsError, SourceError, UnsafeError
from tests.hostile.program_files import (
    INPUTS,
    MODEL,
    ROOT,
    WEIGHTS,
    Plant,
    calls,
    edited,
    graph,
    out_spec,
    saved,
    sound,
    target,
    written,
)

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying

OPERATORS = [
    "torch.hub.load",
    "torch.ops.load_library",
    "torch.os.system",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.save.default",
    "torch.ops.aten.add.out",
    "torch.ops.aten.add.__class__",
    "torch.ops.aten.__class__.default",
    "torch.ops.aten._native_batch_norm_legit_no_training.default",
    "torch.ops.aten.empty.memory_format",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.higher_order.cond",
    "torch.ops.higher_order.call_torchbind",
    "torch.ops.torchvision.nms.default",
    "torch.ops.aten.add.Tensor.x",
    "_operator.attrgetter",
    "_operator.pow",
    "math.factorial",
    "#evil:op",
    "evilmod.function",
]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_that_are_not_on_the_list_are_refused(tmp_path: Path, name: str) -> None:
    records = sound()
    target(name)(records, "")
    with pytest.raises(UnsafeError, match=re.escape(f"the operator {name}, at ")):
        revive(written(tmp_path / "m.pt2", records))
    assert main(["fold", str(tmp_path / "m.pt2")]) == 3


Change = Callable[[Any, str], None]
SYMBOL = "Symbol('s0', positive=True, integer=True)"


def in_node(**change: Any) -> Change:
    return lambda document, code: graph(document)["nodes"][-1].update(change)


def in_input(value: Any) -> Change:
    return lambda document, code: graph(document)["nodes"][-1]["inputs"][1].update(arg=value)


def in_size(expression: str) -> Change:
    size = {"as_expr": {"expr_str": expression, "hint": None}}
    return lambda document, code: graph(document)["tensor_values"]["x"].update(sizes=[size])


def in_program(**change: Any) -> Change:
    return lambda document, code: document.update(change)


def in_module(**change: Any) -> Change:
    return lambda document, code: document["graph_module"].update(change)


def arguments(count: int) -> Change:
    """Only so many of the two: arguments and keywords."""

    def change(document: Any, code: str) -> None:
        spec = json.loads(calls(document)["in_spec"])
        spec[1]["children_spec"] = spec[1]["children_spec"][:count]
        calls(document)["in_spec"] = json.dumps(spec)

    return change


def keywords(*names: str) -> Change:
    def change(document: Any, code: str) -> None:
        spec = json.loads(calls(document)["in_spec"])
        spec[1]["children_spec"][1]["context"] = json.dumps(names)
        calls(document)["in_spec"] = json.dumps(spec)

    return change


def parameter(name: str) -> Change:
    spec = {"arg": {"name": "p_conv_weight"}, "parameter_name": name}
    return lambda document, code: document["graph_module"]["signature"]["input_specs"][0].update(
        parameter=spec
    )


STRANGE: dict[str, tuple[Change, str]] = {
    "an inner program": (
        in_input({"as_graph": {"name": "g", "graph": {}}}),
        "a value of the kind 'as_graph'",
    ),
    "an object": (in_input({"as_custom_obj": {"name": "o", "class_fqn": "c"}}), "'as_custom_obj'"),
    "an operator as a value": (in_input({"as_operator": "torch.hub.load"}), "'as_operator'"),
    "two values": (in_input({"as_int": 1, "as_float": 1.0}), "2 entries"),
    "a list for a number": (in_input({"as_int": [1]}), "no whole number"),
    "a true for a number": (in_input({"as_int": True}), "no whole number"),
    "a number of many digits": (in_input({"as_int": 10**30}), "no whole number"),
    "a device": (in_input({"as_device": {"type": "privateuseone", "index": None}}), "no device"),
    "a text of two lines": (in_input({"as_string": "a\nb"}), "no short plain text"),
    "a field that is not known": (in_node(callback="x"), "an entry 'callback'"),
    "the name of a node": (in_node(name="a;b"), "'a;b' as the name of a value"),
    "a name with underscores": (in_node(name="__import__"), "'__import__' as the name"),
    "a name of a keyword": (in_node(name="lambda"), "'lambda' as the name"),
    "a tower of powers": (in_size(f"Pow({SYMBOL}, Pow(Integer(9), Integer(9)))"), "the expression"),
    "a power of a power": (in_size(f"Pow(Pow({SYMBOL}, Integer(8)), Integer(8))"), "the expression"),
    "a power of powers that are added": (
        in_size(f"Pow(Add(Pow({SYMBOL}, Integer(8)), Integer(1)), Integer(8))"),
        "the expression",
    ),
    "a function of sympy": (in_size(f"lambdify({SYMBOL}, {SYMBOL})"), "the expression"),
    "an attribute": (in_size("Integer(2).__class__"), "the expression"),
    "a symbol of code": (in_size("Symbol('s0); exit(')"), "the expression"),
    "a call inside": (in_size(f"Add({SYMBOL}, exit())"), "the expression"),
    "an unpacked argument": (in_size(f"Add(*[{SYMBOL}])"), "the expression"),
    "a keyword": (in_size(f"Add({SYMBOL}, evaluate=exit())"), "the expression"),
    "a long expression": (in_size(f"Add({', '.join(['Integer(1)'] * 1000)})"), "the expression"),
    "symbols without end": (
        in_program(range_constraints={"u99999999": {"min_val": 0, "max_val": 1}}),
        "no symbol",
    ),
    "a verifier": (in_program(verifiers=["EVIL"]), "no dialect"),
    "a later format": (in_program(schema_version={"major": 9, "minor": 0}), "version 9 of torch's schema"),
    "classes of tuples": (in_module(treespec_namedtuple_fields={"a.B": {"field_names": []}}), "nothing"),
    "a class of arguments": (out_spec("evilmod.Evil", "[]"), "arguments of the type evilmod.Evil"),
    "a keyword with an annotation": (keywords("shift", "spare:x"), "'spare:x' as the name of a value"),
    "a keyword too many": (keywords("shift", "spare", "more"), "arguments of the type builtins.dict"),
    "a call without keywords": (arguments(1), "a call that has not arguments and keywords"),
    "a text for a structure": (
        lambda document, code: calls(document).update(out_spec="exec"),
        "no structure",
    ),
    "no call": (in_module(module_call_graph=[]), "how it is called"),
    "a name that leads to a class": (parameter("__class__.weight"), "'__class__' in the name of a tensor"),
    "a name of torch's": (parameter("graph.weight"), "'graph' in the name of a tensor"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_document_of_another_shape_is_refused(tmp_path: Path, what: str) -> None:
    change, said = STRANGE[what]
    records = sound()
    edited(MODEL, change)(records, "")
    with pytest.raises(UnsafeError, match=re.escape(said)):
        revive(written(tmp_path / "m.pt2", records))


RECORDS = {
    "data/aotinductor/model/a.wrapper.so": "compiled code",
    "data/constants/custom_obj_0": "an object of a C++ class",
    "data/executorch/program.pte": "a program of ExecuTorch",
    "data/evil": "not known",
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_are_no_part_of_a_plain_program_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeError, match=re.escape(f"{name} ({RECORDS[name]})")):
        revive(written(tmp_path / "m.pt2", {**sound(), name: b"x"}))


def in_weight(**change: Any) -> Plant:
    return edited(WEIGHTS, lambda table, code: table["config"]["conv.weight"]["tensor_meta"].update(change))


def sizes(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


def put(name: str, data: bytes | None) -> Plant:
    """Another record in its place, or none."""

    def plant(records: dict[str, bytes], code: str) -> None:
        if data is None:
            del records[name]
        else:
            records[name] = data

    return plant


DAMAGED: dict[str, tuple[Plant, str]] = {
    "an offset beyond the bytes": (in_weight(storage_offset={"as_int": 1}), "'conv.weight' has 432 bytes"),
    "sizes beyond the bytes": (in_weight(sizes=sizes(5, 3, 3, 3)), "'conv.weight' has 432 bytes"),
    "a negative stride": (in_weight(strides=sizes(-27, 9, 3, 1)), "conv.weight: sizes"),
    "a type that is none": (in_weight(dtype=99), "its type is 99"),
    "a wider type": (in_weight(dtype=8), "'conv.weight' has 432 bytes"),
    "no bytes": (put("data/weights/weight_0", b""), "has 0 bytes"),
    "no record": (put("data/weights/weight_0", None), "there is no data/weights/weight_0"),
    "no table": (put(WEIGHTS, None), "there is no data/weights"),
    "no program": (put(MODEL, b"{"), "is no JSON"),
    "a deep program": (put(MODEL, b"[" * 10**6), "is no JSON"),
    "another version": (put("archive_version", b"1"), "archive_version"),
    "big-endian numbers": (put("byteorder", b"big"), "little-endian"),
    "inputs of another kind": (put(INPUTS, saved([1])), "no arguments"),
    "a value that is not there": (edited(MODEL, in_input({"as_tensor": {"name": "nobody"}})), "nobody"),
    "an overload that is not there": (target("torch.ops.aten.add.Nothing"), "failed to resolve torch.ops"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_programs_are_one_line(tmp_path: Path, what: str) -> None:
    plant, said = DAMAGED[what]
    records = sound()
    plant(records, "")
    path = written(tmp_path / "m.pt2", records)
    with pytest.raises(SourceError, match=re.escape(said)) as caught:
        revive(path)
    assert "\n" not in str(caught.value)
    assert main(["fold", str(path)]) == 2


def test_views_that_are_far_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    records = sound()
    in_weight(sizes=sizes(10**9, 3, 3, 3), strides=sizes(0, 9, 3, 1))(records, "")
    with pytest.raises(UnsafeError, match=r"its tensors claim 108\.0 GB"):
        revive(written(tmp_path / "m.pt2", records))


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_holds_one_program(tmp_path: Path, count: int) -> None:
    records = {name: data for name, data in sound().items() if name != MODEL}
    records |= {f"models/m{i}.json": b"{}" for i in range(count)}
    with pytest.raises(UnsafeError, match=f"a file with {count} programs"):
        revive(written(tmp_path / "m.pt2", records))


def test_compressed_programs_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sound().items():
            archive.writestr(f"{ROOT}/{name}", data)
    with pytest.raises(UnsafeError, match=r"a torch\.export program with .* compressed records"):
        revive(tmp_path / "m.pt2")


def test_noise_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A byte of the document changed at a time: it opens, or there is one line."""
    rng, document, opened = random.Random(0), sound()[MODEL], 0
    for _ in range(60):
        at = rng.randrange(len(document))
        noisy = document[:at] + bytes([rng.randrange(32, 127)]) + document[at + 1 :]
        said = ""
        try:
            revive(written(tmp_path / "m.pt2", {**sound(), MODEL: noisy}))
        except BntoolsError as error:
            said = str(error)
        assert "\n" not in said
        opened += not said
    assert 0 < opened < 60
