"""ONNX files that mean harm or nonsense, each made in code out of one that is sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

IR, OPSET = 10, 21
SHAPE = (2, 3, 8, 8)
NAME = "bad.onnx"

Change = Callable[[ModelProto, Path], None]


@dataclass(frozen=True)
class File:
    """A file to be opened.

    Args:
        change: done to a sound model; it may also put things into the folder, which lies in another one.
        code: how ``verify`` of the file against itself ends.
        says: what it then says, on either stream.
        after: done to the bytes.
        takes: the inputs as ``--input`` takes them; none where the file's own declaration is to be read.
    """

    change: Change
    code: int
    says: str
    after: Callable[[bytes], bytes] = lambda content: content
    takes: tuple[str, ...] = ("2x3x8x8",)

    def write(self, folder: Path, name: str = NAME) -> Path:
        proto = sound()
        self.change(proto, folder)
        (folder / name).write_bytes(self.after(proto.SerializeToString()))
        return folder / name


FILES: dict[str, File] = {}


def file(
    name: str, code: int, says: str, change: Change | None = None, **more: Any
) -> Callable[[Change], Change]:
    """Enter a file, or what makes one, under its name."""

    def enter(change: Change) -> Change:
        assert name not in FILES, name
        FILES[name] = File(change, code, says, **more)
        return change

    if change is not None:
        enter(change)
    return enter


def tensor(name: str, *shape: int, seed: int = 0, away: float = 0.0) -> TensorProto:
    values = np.random.default_rng(seed).normal(size=shape) + away
    return numpy_helper.from_array(values.astype(np.float32), name)


def norm(name: str, channels: int, seed: int) -> list[TensorProto]:
    """A seasoned BatchNorm: γ of both signs, μ and σ² away from 0 and 1."""
    gamma, beta, mean = (tensor(f"{name}.{part}", channels, seed=seed + n) for n, part in enumerate("gbm"))
    variance = numpy_helper.to_array(tensor("", channels, seed=seed + 9)) ** 2 + np.float32(0.5)
    return [gamma, beta, mean, numpy_helper.from_array(variance, f"{name}.v")]


def sound() -> ModelProto:
    """Convolution, BatchNorm, ReLU, convolution."""
    weights = [
        tensor("0.weight", 4, 3, 3, 3, seed=1),
        tensor("0.bias", 4, seed=2),
        *norm("1", 4, 3),
        tensor("3.weight", 5, 4, 1, 1, seed=20),
        tensor("3.bias", 5, seed=21),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], name="conv0"),
        helper.make_node("BatchNormalization", ["a", "1.g", "1.b", "1.m", "1.v"], ["b"], name="norm1"),
        helper.make_node("Relu", ["b"], ["c"], name="relu2"),
        helper.make_node("Conv", ["c", "3.weight", "3.bias"], ["y"], name="conv3"),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE[1:]])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 6, 6])
    graph = helper.make_graph(nodes, "net", [given], [out], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR)


# --- weights that are said to lie elsewhere ---


def elsewhere(tensor: TensorProto, *entries: tuple[str, str], keep: bool = False) -> None:
    """Let a tensor's values lie in a file."""
    if not keep:
        tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def weights(folder: Path, size: int = 1 << 12) -> Path:
    """Floats that are all small numbers."""
    path = folder / "w.data"
    path.write_bytes(np.full(size // 4, 0.25, np.float32).tobytes())
    return path


def at(*entries: tuple[str, str], before: Callable[[Path], Any] = weights) -> Change:
    def change(proto: ModelProto, folder: Path) -> None:
        before(folder)
        elsewhere(proto.graph.initializer[0], *entries)

    return change


def located(location: str, before: Callable[[Path], Any] = weights) -> Change:
    return at(("location", location), before=before)


_BESIDE = "not beside it"
_LOAD = "does not load"
_OWN = "no ordinary file of its own"

file("external above", 3, _BESIDE, located("../secret.data"))
file("external above and back", 3, _BESIDE, located("../in/w.data"))
file("external device", 3, _BESIDE, located("/dev/zero"))
file("external of the process", 3, _BESIDE, located("/proc/self/environ"))
file(
    "external in the memory",
    3,
    _BESIDE,
    at(("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", "432")),
)
file("external nowhere", 2, "its weights are not there", located("gone.data"))
file("external, name with NUL", 3, _BESIDE, located("w\0.data"))
file("external, name with an escape", 2, "its weights are not there", located("w\x1b[2J\x9b.data"))
file("external, long name", 2, "cannot be looked for", located("w" * 5000))
file("external, no location", 1, _LOAD, at(("offset", "0")))
file("external, nothing said", 1, _LOAD, at())
file("external, its own file", 1, _LOAD, at(("location", NAME), ("offset", "0"), ("length", "999999999")))


@file("external absolute", 3, _BESIDE)
def _(proto: ModelProto, folder: Path) -> None:
    elsewhere(proto.graph.initializer[0], ("location", str(folder.parent / "secret.data")))


@file(
    "external, bytes that are no text",
    3,
    _BESIDE,
    after=lambda content: content.replace(b"QQQQ", b"\xff\xed\xa0\x80"),
)
def _(proto: ModelProto, folder: Path) -> None:
    elsewhere(proto.graph.initializer[0], ("location", "QQQQ"))


def link(folder: Path) -> None:
    (folder / "w.data").symlink_to(folder.parent / "secret.data")


def hard_link(folder: Path) -> None:
    (folder / "w.data").hardlink_to(folder.parent / "secret.data")


def device(folder: Path) -> None:
    (folder / "w.data").symlink_to("/dev/zero")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "w.data")


def directory(folder: Path) -> None:
    (folder / "w.data").mkdir()


file("external link", 3, _BESIDE, located("w.data", link))
file("external hard link", 3, _OWN, located("w.data", hard_link))
file("external link to a device", 3, _BESIDE, located("w.data", device))
file("external pipe", 3, _OWN, located("w.data", pipe))
file("external directory", 3, _OWN, located("w.data", directory))

for _name, _entries in {
    "offset beyond": (("offset", "4096"),),
    "offset far beyond": (("offset", str(1 << 62)),),
    "offset too large for a number": (("offset", "9" * 40),),
    "offset negative": (("offset", "-4"), ("length", "432")),
    "offset no number": (("offset", "zero"),),
    "length beyond": (("length", str(1 << 20)),),
    "length far beyond": (("length", str(1 << 50)),),
    "length negative": (("length", "-1"),),
    "length no number": (("length", "all of it"),),
    "length too short": (("length", "8"),),
}.items():
    file(f"external, {_name}", 1, _LOAD, at(("location", "w.data"), *_entries))

file("external, two places", 3, _BESIDE, at(("location", "w.data"), ("location", "../secret.data")))
file("external, two places turned", 3, _BESIDE, at(("location", "../secret.data"), ("location", "w.data")))


def escaping() -> TensorProto:
    held = tensor("held", 4)
    elsewhere(held, ("location", "../secret.data"), ("length", "16"))
    return held


@file("external in a node", 3, _BESIDE)
def _(proto: ModelProto, folder: Path) -> None:
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["0.bias2"], value=escaping()))
    proto.graph.node[1].input[2] = "0.bias2"


@file("external in a subgraph", 3, _BESIDE)
def _(proto: ModelProto, folder: Path) -> None:
    inner = helper.make_graph([], "inner", [], [output("held", 4)], [escaping()])
    branch(proto, inner)


@file("external in a function", 3, _BESIDE)
def _(proto: ModelProto, folder: Path) -> None:
    constant = helper.make_node("Constant", [], ["k"], value=escaping())
    function(proto, "F", ["v"], ["w"], [constant, helper.make_node("Identity", ["v"], ["w"])])


@file("external in a sparse tensor", 3, _BESIDE)
def _(proto: ModelProto, folder: Path) -> None:
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(escaping())
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), ""))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["k"], sparse_value=sparse))


@file("external in the training part", 3, _BESIDE)
def _(proto: ModelProto, folder: Path) -> None:
    proto.training_info.add().initialization.initializer.append(escaping())


# --- tensors that are not what they say ---


def first(**fields: Any) -> Change:
    """Give the first weight other fields."""

    def change(proto: ModelProto, folder: Path) -> None:
        held = proto.graph.initializer[0]
        for field, value in fields.items():
            if isinstance(value, list):
                held.ClearField(field)
                getattr(held, field).extend(value)
            else:
                setattr(held, field, value)

    return change


file("tensor of huge dims", 1, _LOAD, first(dims=[1 << 40, 3, 3, 3]))
file("tensor whose product overflows to nothing", 1, _LOAD, first(dims=[1 << 32, 1 << 32], raw_data=b""))
file("tensor whose product overflows to its size", 1, _LOAD, first(dims=[(1 << 62) + 27, 4]))
file("tensor of negative dims", 1, _LOAD, first(dims=[-4, 3, 3, 3]))
file("tensor of two negative dims", 1, _LOAD, first(dims=[-4, -3, 3, 3]))
file("tensor of the least dim", 1, _LOAD, first(dims=[-(1 << 63)]))
file("tensor of many dims", 1, _LOAD, first(dims=[1] * 5000))
file("tensor with too few bytes", 1, _LOAD, first(raw_data=b"1234"))
file("tensor with too many bytes", 1, _LOAD, first(raw_data=bytes(4321)))
file("tensor with bytes for half a number", 1, _LOAD, first(raw_data=bytes(433)))
file("tensor of no type", 1, _LOAD, first(data_type=0))
file("tensor of an unknown type", 1, _LOAD, first(data_type=999))
file("tensor of a negative type", 1, _LOAD, first(data_type=-1))
file("tensor of text", 1, _LOAD, first(data_type=TensorProto.STRING))
file("tensor of another type", 1, _LOAD, first(data_type=TensorProto.INT32))
file("tensor of bytes of another type", 1, _LOAD, first(raw_data=b"", int64_data=[1] * 108))
file("tensor without a name", 1, _LOAD, first(name=""))


def sparse(dims: list[int], values: int, indices: Sequence[int], kind: type = np.int64) -> Change:
    def change(proto: ModelProto, folder: Path) -> None:
        held = onnx.SparseTensorProto(dims=dims)
        held.values.CopyFrom(tensor("0.bias", values))
        held.indices.CopyFrom(numpy_helper.from_array(np.asarray(indices, kind), "at"))
        del proto.graph.initializer[1]
        proto.graph.sparse_initializer.append(held)

    return change


file("sparse beyond its end", 1, _LOAD, sparse([4], 2, [0, 4000]))
file("sparse before its start", 1, _LOAD, sparse([4], 2, [-1, 1]))
file("sparse and huge", 1, _LOAD, sparse([1 << 44], 2, [0, 1]))
file("sparse with too few places", 1, _LOAD, sparse([4], 4, [0, 1]))
file("sparse with places of another type", 1, _LOAD, sparse([4], 2, [0, 1], np.float32))
file("sparse of negative dims", 1, _LOAD, sparse([-4], 2, [0, 1]))

# --- what comes in ---


def given(*sizes: int | str, kind: int = TensorProto.FLOAT) -> Change:
    def change(proto: ModelProto, folder: Path) -> None:
        del proto.graph.input[:]
        proto.graph.input.append(helper.make_tensor_value_info("x", kind, sizes))

    return change


_LARGE = "open or very large axes"

file("input of a huge shape", 2, _LARGE, given(2, 3, 1 << 40, 8), takes=())
file("input whose product overflows", 2, _LARGE, given(1 << 32, 1 << 32), takes=())
file("input of a negative shape", 2, _LARGE, given(2, 3, -8, 8), takes=())
file("input of all negative shapes", 2, _LARGE, given(-2, -3, -8, -8), takes=())
file(
    "input of no shape at all",
    2,
    _LARGE,
    lambda proto, _: proto.graph.input[0].type.tensor_type.ClearField("shape"),
    takes=(),
)
file("input of an unknown type", 1, _LOAD, given(*SHAPE, kind=999), takes=())
file("input of an unknown type, given", 1, _LOAD, given(*SHAPE, kind=999))
file("input of text", 1, _LOAD, given(*SHAPE, kind=TensorProto.STRING), takes=())
file("input of many axes", 1, _LOAD, given(*[1] * 200), takes=())
file("input of another type", 1, _LOAD, given(*SHAPE, kind=TensorProto.INT64), takes=())


@file("input that is a list", 2, "", takes=())
def _(proto: ModelProto, folder: Path) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    proto.graph.input[0].type.CopyFrom(kind)


@file("input of no type", 2, "", takes=())
def _(proto: ModelProto, folder: Path) -> None:
    proto.graph.input[0].ClearField("type")


file("no input", 1, _LOAD, lambda proto, _: proto.graph.ClearField("input"), takes=())

# --- graphs that are none ---


def output(name: str, *sizes: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, sizes)


def nodes(change: Callable[[Any], Any]) -> Change:
    return lambda proto, folder: change(proto.graph.node)


def wire(number: int, at: int, name: str) -> Change:
    return nodes(lambda all_of: all_of[number].input.__setitem__(at, name))


def makes(number: int, name: str) -> Change:
    return nodes(lambda all_of: all_of[number].output.__setitem__(0, name))


file("cycle", 1, _LOAD, wire(0, 0, "y"))
file("node that reads itself", 1, _LOAD, wire(2, 0, "c"))
file("node that reads what nobody makes", 1, _LOAD, wire(2, 0, "nobody"))
file("no such weight", 1, _LOAD, lambda proto, _: proto.graph.initializer.pop(0))
file("two values of a name", 1, _LOAD, makes(1, "a"))
file(
    "two weights of a name",
    0,
    "passed",
    lambda proto, _: proto.graph.initializer.append(proto.graph.initializer[0]),
)
file("two inputs of a name", 1, _LOAD, lambda proto, _: proto.graph.input.append(proto.graph.input[0]))
file("value that is a weight too", 1, _LOAD, makes(0, "1.g"))
file("output that nobody makes", 1, _LOAD, makes(3, "z"))
file("output twice", 0, "passed", lambda proto, _: proto.graph.output.append(proto.graph.output[0]))
file("no output", 1, "does not run", lambda proto, _: proto.graph.ClearField("output"))
file("no node", 1, _LOAD, lambda proto, _: proto.graph.ClearField("node"))
file("nothing in the graph", 1, _LOAD, lambda proto, _: proto.graph.Clear())
file("no graph", 2, "not a model", lambda proto, _: proto.ClearField("graph"))
file("nodes in a wrong order", 0, "passed", nodes(lambda all_of: all_of.append(all_of.pop(0))))
file("node without a name of its operator", 1, _LOAD, nodes(lambda all_of: setattr(all_of[2], "op_type", "")))
file("node with too many inputs", 1, _LOAD, nodes(lambda all_of: all_of[2].input.extend(["a"] * 50)))
file("node with too few inputs", 1, _LOAD, nodes(lambda all_of: all_of[0].ClearField("input")))

# --- operators that are none ---

_DOMAIN = "com.example"

file("unknown operator", 1, _LOAD, nodes(lambda all_of: setattr(all_of[2], "op_type", "Explode")))
file("unknown domain", 0, "unverified", nodes(lambda all_of: setattr(all_of[2], "domain", _DOMAIN)))


@file("unknown domain, imported", 1, _LOAD)
def _(proto: ModelProto, folder: Path) -> None:
    proto.graph.node[2].domain = _DOMAIN
    proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def opset(*versions: int) -> Change:
    def change(proto: ModelProto, folder: Path) -> None:
        del proto.opset_import[:]
        proto.opset_import.extend(helper.make_opsetid("", version) for version in versions)

    return change


file("opset of the far future", 0, "unverified", opset(10**9))
file("opset beyond numbers", 1, _LOAD, opset((1 << 63) - 1))
file("opset of nought", 1, _LOAD, opset(0))
file("negative opset", 1, _LOAD, opset(-1))
file("no opset", 1, _LOAD, opset())
file("two opsets", 0, "passed", opset(OPSET, 7))
file("version of the far future", 0, "unverified", lambda proto, _: setattr(proto, "ir_version", 999))
file(
    "version beyond what is a version",
    2,
    "not a model",
    lambda proto, _: setattr(proto, "ir_version", 1 << 40),
)
file("negative version", 2, "not a model", lambda proto, _: setattr(proto, "ir_version", -1))


def attribute(number: int, name: str, value: Any, kind: int | None = None) -> Change:
    def change(proto: ModelProto, folder: Path) -> None:
        made = helper.make_attribute(name, value)
        if kind is not None:
            made.type = kind
        proto.graph.node[number].attribute.append(made)

    return change


def unknown(proto: ModelProto, folder: Path) -> None:
    attribute(0, "pads", [0, 0, 0, 0])(proto, folder)
    proto.graph.node[0].attribute[-1].MergeFromString(b"\xa0\x01\xe7\x07")  # type: 999


file("attribute of another type", 1, _LOAD, attribute(0, "pads", "everywhere"))
file(
    "attribute that lies about its type", 1, _LOAD, attribute(0, "pads", [0, 0, 0, 0], AttributeProto.STRINGS)
)
file("attribute of an unknown type", 0, "passed", unknown)
file("attribute that nobody knows", 1, _LOAD, attribute(0, "colour", "red"))
file(
    "attribute twice",
    1,
    _LOAD,
    lambda proto, _: proto.graph.node[0].attribute.extend(
        [helper.make_attribute("group", n) for n in (1, 3)]
    ),
)
file("group of nought", 1, "does not run", attribute(0, "group", 0))
file("negative group", 1, "does not run", attribute(0, "group", -1))
file("huge pads", 1, "does not", attribute(0, "pads", [1 << 62] * 4))
file("negative strides", 1, "does not", attribute(0, "strides", [-1, -1]))
file("strides of nought", 1, "does not", attribute(0, "strides", [0, 0]))
file("huge dilations", 1, "does not", attribute(0, "dilations", [1 << 40, 1 << 40]))

# --- graphs in graphs ---


def branch(proto: ModelProto, inner: onnx.GraphProto) -> None:
    """Read the first bias from a node that takes it out of *inner*, whatever the condition."""
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    other = onnx.GraphProto()
    other.CopyFrom(inner)
    other.name = "other"
    node = helper.make_node("If", ["yes"], ["bias"], name="if", then_branch=inner, else_branch=other)
    proto.graph.node.insert(0, node)
    proto.graph.node[1].input[2] = "bias"


def nested(depth: int) -> onnx.GraphProto:
    graph = helper.make_graph([helper.make_node("Identity", ["0.bias"], ["i0"])], "g0", [], [output("i0", 4)])
    for number in range(1, depth):
        node = helper.make_node(
            "If", ["yes"], [f"i{number}"], name=f"if{number}", then_branch=graph, else_branch=leaf(number)
        )
        graph = helper.make_graph([node], f"g{number}", [], [output(f"i{number}", 4)])
    return graph


def leaf(number: int) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Identity", ["0.bias"], [f"e{number}"])],
        f"e{number}",
        [],
        [output(f"e{number}", 4)],
    )


file("graphs in graphs", 0, "passed", lambda proto, _: branch(proto, nested(10)))


@file("graphs in graphs without end", 2, "damaged ONNX file", after=lambda content: _deep(content, 400))
def _(proto: ModelProto, folder: Path) -> None:
    pass


def _deep(content: bytes, depth: int) -> bytes:
    """More levels than any reader of protobuf takes, written by hand as no writer would either."""

    def field(number: int, body: bytes) -> bytes:
        size, head = len(body), bytearray()
        while size > 0x7F:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([number << 3 | 2, *head, size]) + body

    graph = b""
    for _ in range(depth):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        graph = field(1, field(5, field(6, graph)))
    return content + field(7, graph)


def function(proto: ModelProto, name: str, takes: list[str], gives: list[str], body: list[Any]) -> None:
    """A function of the file's own, and a node that calls it in place of the ReLU."""
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_DOMAIN, 1)]
    proto.functions.append(helper.make_function(_DOMAIN, name, takes, gives, body, opsets))
    if not any(each.domain == _DOMAIN for each in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        proto.graph.node[2].op_type, proto.graph.node[2].domain = name, _DOMAIN


def calls(name: str, takes: str, gives: str) -> onnx.NodeProto:
    return helper.make_node(name, [takes], [gives], domain=_DOMAIN)


@file("function that calls itself", 1, _LOAD)
def _(proto: ModelProto, folder: Path) -> None:
    function(proto, "F", ["v"], ["w"], [calls("F", "v", "w")])


@file("functions that call each other", 1, _LOAD)
def _(proto: ModelProto, folder: Path) -> None:
    function(proto, "F", ["v"], ["w"], [calls("G", "v", "w")])
    function(proto, "G", ["v"], ["w"], [calls("F", "v", "w")])


@file("functions of one name", 1, _LOAD)
def _(proto: ModelProto, folder: Path) -> None:
    for _ in range(2):
        function(proto, "F", ["v"], ["w"], [helper.make_node("Relu", ["v"], ["w"])])


@file("function that is not there", 1, _LOAD)
def _(proto: ModelProto, folder: Path) -> None:
    function(proto, "F", ["v"], ["w"], [calls("H", "v", "w")])


@file("functions that double forty times", 0, "unverified", takes=("2x3x8x8", "--limit", "2"))
def _(proto: ModelProto, folder: Path) -> None:
    for number in range(40):
        twice = [calls(f"F{number + 1}", "v", "a"), calls(f"F{number + 1}", "a", "w")]
        last = [helper.make_node("Relu", ["v"], ["w"])]
        function(proto, f"F{number}", ["v"], ["w"], twice if number < 39 else last)


# --- names ---


def named(text: str, after: bytes | None = None) -> dict[str, Any]:
    """Put *text* into each name of the file; in the end, bytes that are no text can take its place."""

    def change(proto: ModelProto, folder: Path) -> None:
        graph = proto.graph
        renamed = {
            each.name: f"{text}{each.name}" for each in (*graph.input, *graph.output, *graph.initializer)
        }
        for node in graph.node:
            renamed |= {name: f"{text}{name}" for name in node.output}
            node.name = f"{text}{node.name}"
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        for each in (*graph.input, *graph.output, *graph.initializer):
            each.name = renamed[each.name]
        graph.name, proto.producer_name, graph.doc_string = text, text, text
        entry = proto.metadata_props.add()
        entry.key, entry.value = text, text
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = text
        graph.node[2].op_type = f"Relu{text}"  # so that there is something to say about it

    return {
        "change": change,
        **({"after": lambda content: content.replace(text.encode(), after)} if after else {}),
    }


file("names with escapes", 1, _LOAD, **named("\x1b[2J\x1b]0;owned\x07\x9b31m"))
file("names with line ends", 1, _LOAD, **named("one\r\nerror  two\u2028three"))
file("names with NUL", 1, _LOAD, **named("n\0"))
file("names that turn the line round", 1, _LOAD, **named("\u202e\u2066"))
file("names of markup", 1, _LOAD, **named("[bold red]::error::"))
file("names that are very long", 1, _LOAD, **named("long" * 5000))
file("names that are no text", 1, _LOAD, **named("QQQQ", b"\xff\xfe\xed\xa0"))
file("names of surrogates", 1, _LOAD, **named("QQQ", b"\xed\xa0\x80"))

# --- what runs for ever, or takes all there is ---


@file("loop without end", 0, "unverified", takes=("2x3x8x8", "--limit", "2"))
def _(proto: ModelProto, folder: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [output("i", kind=TensorProto.INT64), output("go", kind=TensorProto.BOOL), output("v", 4)],
        [output("on", kind=TensorProto.BOOL), output("w", 4)],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray((1 << 63) - 1), "many"))
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    node = helper.make_node("Loop", ["many", "yes", "0.bias"], ["bias"], name="loop", body=body)
    proto.graph.node.insert(0, node)
    proto.graph.node[1].input[2] = "bias"


def filled(count: int) -> Change:
    """Return so many numbers that stand nowhere in the file."""

    def change(proto: ModelProto, folder: Path) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray([count]), "count"))
        proto.graph.node.append(helper.make_node("ConstantOfShape", ["count"], ["filled"], name="fill"))
        proto.graph.output.append(output("filled", count))

    return change


@file("a gigabyte made", 0, "passed")
def _(proto: ModelProto, folder: Path) -> None:
    filled(1 << 28)(proto, folder)
    proto.graph.node.append(helper.make_node("Size", ["filled"], ["size"], name="size"))
    proto.graph.output[1].CopyFrom(output("size", kind=TensorProto.INT64))


file("a thousand terabytes made", 1, "does not", filled(1 << 50))
file("more made than there are numbers", 1, "does not", filled((1 << 63) - 1))
file("less than nothing made", 1, "does not", filled(-1))


@file("output of text", 1, "does not run")
def _(proto: ModelProto, folder: Path) -> None:
    proto.graph.node.append(helper.make_node("Cast", ["y"], ["text"], name="cast", to=TensorProto.STRING))
    proto.graph.output.append(output("text", *(2, 5, 6, 6), kind=TensorProto.STRING))


@file("output that is a list", 1, "does not run")
def _(proto: ModelProto, folder: Path) -> None:
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["list"], name="list"))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.output.append(helper.make_value_info("list", kind))


@file("a plan that is none", 0, "passed")
def _(proto: ModelProto, folder: Path) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = "bntools", '{"schema": ["\x1b[2J'


# --- the twins: unusual, and sound ---

SOUND: dict[str, Change] = {
    "plain": lambda proto, folder: None,
    "a branch": lambda proto, folder: branch(proto, nested(1)),
    "a function": lambda proto, folder: function(
        proto, "F", ["v"], ["w"], [helper.make_node("Relu", ["v"], ["w"])]
    ),
    "weights beside it": at(("location", "w.data"), ("offset", "0"), ("length", "432")),
    "weights at an offset": at(("location", "w.data"), ("offset", "1024"), ("length", "432")),
    "a sparse weight": sparse([4], 2, [0, 2]),
}
"""Changes that ``verify`` has nothing against."""
