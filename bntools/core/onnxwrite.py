"""A folded program goes back into the ONNX graph that it came from: only what was folded is another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, fx, nn

from bntools.core.onnxhosts import Place, Slot
from bntools.core.onnxmodel import Origin
from bntools.core.operator import Operator
from bntools.core.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir


def rewritten(program: fx.GraphModule, plan: Plan, origin: Origin) -> Any:
    """The file's model with what was folded, as protobuf; the one in memory stays as it was.

    A weight that others read too gets a new name. What nothing reads any more goes, and nothing else.

    Args:
        program: that *plan* was carried out on.
        plan: says which layers changed.
        origin: of the program.
    """
    import onnx_ir as ir

    writer = _Writer(ir.from_proto(ir.to_proto(origin.source.model)), origin)
    changed = {key.rpartition(".")[0] for host in plan.hosts for key in host.keys}
    writer.write(program, changed)
    return ir.to_proto(writer.model)


class _Writer:
    def __init__(self, model: ir.Model, origin: Origin) -> None:
        self.model, self.graph, self.origin = model, model.graph, origin
        old = origin.source.model.graph
        self.nodes = dict(zip(old, self.graph, strict=True))
        self.values: dict[str, ir.Value] = {v.name: v for v in self._all() if v.name}
        self.gone: list[ir.Node] = []

    def _all(self) -> Iterable[ir.Value]:
        yield from self.graph.inputs
        yield from self.graph.initializers.values()
        for node in self.graph:
            yield from node.outputs

    def write(self, program: fx.GraphModule, changed: set[str]) -> None:
        """Carry over what the program is now."""
        made: dict[fx.Node, ir.Value] = {}
        for node in program.graph.nodes:
            value = self.origin.values.get(node.name)
            if value is not None:
                made[node] = self.values[value.name or ""]
            if node.op != "call_module":
                continue
            path, module = str(node.target), program.get_submodule(str(node.target))
            if isinstance(module, nn.Identity):
                x = made[node.args[0]]
                self._replace(made[node], x)
                made[node] = x
            elif value is None and isinstance(module, Operator):
                made[node] = self._sum(module, [made[each] for each in node.args], path)
            elif path in changed:
                made[node] = self._fill(module, self.origin.places[path], made[node])
        self._sweep()

    def _fill(self, module: nn.Module, place: Place, y: ir.Value) -> ir.Value:
        """Put a layer's new tensors where its old ones lie; returns what it returns."""
        if not place.slots:
            return self._spelt(module, place, y)
        for name, slot in place.slots.items():
            tensor = getattr(module, name)
            if tensor is None:
                continue
            node = self.nodes[slot.node]
            self._put(node, slot, _array(tensor), name)
            for factor in ("alpha", "beta"):  # of a Gemm: they are in its weight and its bias now
                node.attributes.pop(factor, None)
        bias = getattr(module, "bias", None)
        if "bias" in place.slots or bias is None:
            return y
        return self._added(self.nodes[place.nodes[0]], _array(bias))  # a product has no bias

    def _spelt(self, module: nn.Module, place: Place, y: ir.Value) -> ir.Value:
        """A BatchNorm that was spelt out, with another scale and shift: one product and one sum."""
        import onnx_ir as ir

        first = self.nodes[place.nodes[0]]
        x = next(v for v in first.inputs if v is not None and v.name == place.reads)
        shape = (-1, *(1,) * (place.rank - 2))
        stem = first.name or y.name or "spelt"
        values, last = [x], first
        for op, tensor in (("Mul", module.weight), ("Add", module.bias)):
            assert isinstance(tensor, Tensor)
            with_it = self._initializer(f"{stem}.{op.lower()}", _array(tensor).reshape(shape))
            new = ir.Value(name=self._name(f"{y.name}_{op.lower()}"), shape=y.shape, type=y.type)
            node = ir.Node("", op, [values[-1], with_it], outputs=[new], name=f"{stem}_{op.lower()}")
            last.append(node)
            last = node
            values.append(new)
        self._replace(y, values[-1])
        return values[-1]

    def _added(self, node: ir.Node, bias: np.ndarray) -> ir.Value:
        """The addition of a bias right behind a node, that all who read that one read now."""
        import onnx_ir as ir

        out = node.outputs[0]
        stem = node.name or out.name
        new = ir.Value(name=self._name(f"{out.name}_add"), shape=out.shape, type=out.type)
        self._replace(out, new)
        row = self._initializer(f"{stem}.bias", bias)
        node.append(ir.Node("", "Add", [out, row], outputs=[new], name=f"{stem}_add"))
        return new

    def _sum(self, module: Operator, values: list[ir.Value], path: str) -> ir.Value:
        """A term of a sum that stayed when the others became one layer."""
        import onnx_ir as ir

        op = "Sub" if "sub" in str(module.target) else "Add"
        new = ir.Value(name=self._name(path), shape=values[0].shape, type=values[0].type)
        node = ir.Node("", op, values, outputs=[new], name=path)
        makers = [maker for value in values if (maker := value.producer()) is not None]
        last = max(makers, key=self.graph.index)
        last.append(node)
        return new

    def _put(self, node: ir.Node, slot: Slot, array: np.ndarray, name: str) -> None:
        """Give an input of a node other numbers, under a new name if somebody else reads it too."""
        import onnx_ir as ir

        array = array.T if slot.turned else array
        old = node.inputs[slot.at] if slot.at < len(node.inputs) else None
        if old is not None and slot.shape is not None and array.size == np.prod(slot.shape):
            array = array.reshape(slot.shape[::-1] if slot.turned else slot.shape)
        if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
            old.const_value = ir.Tensor(np.ascontiguousarray(array), name=old.name)
            old.shape = ir.Shape(array.shape)
            return
        stem = f"{old.name}_folded" if old is not None else f"{node.name or node.outputs[0].name}.{name}"
        if len(node.inputs) <= slot.at:
            node.resize_inputs(slot.at + 1)
        node.replace_input_with(slot.at, self._initializer(stem, array))
        self._forget(old)

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        import onnx_ir as ir

        tensor = ir.Tensor(np.ascontiguousarray(array), name=self._name(name))
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        self.values[value.name or ""] = value
        if (self.model.ir_version or 8) < 4:  # there every initializer stands among the inputs
            self.graph.inputs.append(value)
        return value

    def _name(self, name: str) -> str:
        number, unique = 1, name
        while unique in self.values:
            number += 1
            unique = f"{name}_{number}"
        return unique

    def _replace(self, y: ir.Value, x: ir.Value) -> None:
        """Let all who read y read x; what the model returns keeps its name."""
        import onnx_ir as ir

        for at, output in enumerate(self.graph.outputs):
            if output is not y:
                continue
            maker = x.producer()
            if maker is None or x.is_graph_output() or maker.graph is not self.graph:
                copy = ir.Value(name=y.name, shape=y.shape, type=y.type)
                y.name = self._name(f"{y.name}_before")
                self.graph.append(ir.Node("", "Identity", [x], outputs=[copy], name=f"{copy.name}_identity"))
                self.graph.outputs[at] = copy
            else:
                x.name, y.name = y.name, x.name
                x.shape, x.type = y.shape, y.type
                self.graph.outputs[at] = x
        y.replace_all_uses_with(x)
        producer = y.producer()
        if producer is not None:
            self.gone.append(producer)

    def _sweep(self) -> None:
        """Take out what nobody reads any more, and what only that read."""
        todo = self.gone
        while todo:
            node = todo.pop()
            if node is None or node.graph is not self.graph:
                continue
            if any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            reads = [value for value in node.inputs if value is not None]
            self.graph.remove(node, safe=True)
            for value in reads:
                self._forget(value)

    def _forget(self, value: ir.Value | None) -> None:
        """An initializer that nobody reads goes; a node that nobody reads is looked at."""
        if value is None or value.uses() or value.is_graph_output():
            return
        if value.is_initializer() and value.name not in self.origin.source.overridable:
            self.graph.initializers.pop(value.name or "")
            if value.is_graph_input():
                self.graph.inputs.remove(value)
        elif (producer := value.producer()) is not None:
            self.gone.append(producer)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
