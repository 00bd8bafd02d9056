"""The peers: what each makes of a model, and how many BatchNorms it leaves.

Each is used as its documentation says, by way of what is public, and with the switches that let it take more
models. A peer may change the model that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Forward = Callable[[Tensor], Any]
# What to call instead of the model, and how many BatchNorms its graph has; without a graph they are counted
# as they are called.
Folded = tuple[Forward, int | None]


class Calls(TorchDispatchMode):
    """Counts the calls of BatchNorm that read running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in func.name():
            given = dict(zip((each.name for each in func._schema.arguments), args, strict=False))
            self.count += not given.get("training", False)
        return func(*args, **(kwargs or {}))


def by_fx(model: nn.Module, example: Tensor) -> Folded:
    from torch.fx.experimental.optimization import fuse

    return fuse(model, inplace=True), None


def by_freeze(model: nn.Module, example: Tensor) -> Folded:
    # Not strict, so that a model may return a dict.
    traced = torch.jit.trace(model, example, strict=False, check_trace=False)
    frozen = torch.jit.freeze(traced)
    return frozen, _left_in_script(frozen)


def by_optimize_for_inference(model: nn.Module, example: Tensor) -> Folded:
    frozen, _ = by_freeze(model, example)
    optimized = torch.jit.optimize_for_inference(frozen)
    return optimized, _left_in_script(optimized)


def _left_in_script(module: Any) -> int:
    def kinds(block: Any) -> Iterator[str]:
        for node in block.nodes():
            yield node.kind()
            for inner in node.blocks():
                yield from kinds(inner)

    return sum("batch_norm" in kind for kind in kinds(module.inlined_graph))


def by_onnx(model: nn.Module, example: Tensor) -> Folded:
    import onnxruntime

    program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
    assert program is not None
    proto = program.model_proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    (entrance,) = session.get_inputs()

    def forward(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {entrance.name: x.numpy()})]

    return forward, _left_in_onnx(proto)


def _left_in_onnx(proto: Any) -> int:
    functions = {(each.domain, each.name): each for each in proto.functions}

    def calls(nodes: Iterable[Any]) -> int:
        count = 0
        for node in nodes:
            inner = functions.get((node.domain, node.op_type))
            count += calls(inner.node) if inner else node.op_type == "BatchNormalization"
            count += sum(calls(each.g.node) for each in node.attribute if each.HasField("g"))
        return count

    return calls(proto.graph.node)


def by_torchao(model: nn.Module, example: Tensor) -> Folded:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import Quantizer

    class Nothing(Quantizer):
        """Quantizes nothing: what is left of prepare and convert is what they fold."""

        def annotate(self, model: Any) -> Any:
            return model

        def validate(self, model: Any) -> None:
            return None

    exported = torch.export.export(model, (example,)).module()
    return convert_pt2e(prepare_pt2e(exported, Nothing())), None


def by_aimet(model: nn.Module, example: Tensor) -> Folded:
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.meta import connectedgraph

    connectedgraph.jit_trace_args["strict"] = False  # so that a model may return a dict
    fold_all_batch_norms(model, None, example)
    return model, None


@dataclass(frozen=True)
class Peer:
    """A tool that folds: the module that must be there for it, and whether it can work in float64."""

    name: str
    module: str
    fold: Callable[[nn.Module, Tensor], Folded]
    double: bool = True


# torchao and AIMET change things in torch as they are imported, so they come last.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch.fx", "torch.fx.experimental.optimization", by_fx),
        Peer("jit.freeze", "torch.jit", by_freeze),
        Peer("jit.optimize_for_inference", "torch.jit", by_optimize_for_inference),
        Peer("onnx.export", "onnxruntime", by_onnx, double=False),  # ONNX Runtime has no float64 convolution
        Peer("torchao", "torchao.quantization.pt2e.quantize_pt2e", by_torchao),
        Peer("AIMET", "aimet_torch.batch_norm_fold", by_aimet),
    )
}
