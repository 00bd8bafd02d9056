"""A program from its file, as ``torch.export.load`` makes it, without running anything that is in the file.

``torch.export.load`` retries with unsafe pickles whatever does not open otherwise, and evaluates strings.
Here the parts are read one by one: tensors from raw bytes, the program from a document that
`bntools.core.program_safety` made anew, the inputs by the reader of state dicts. torch's own deserialiser
puts them together.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bntools.core.example import Example
from bntools.core.inputs import draw
from bntools.core.opcodes import read_pickles
from bntools.core.payloads import constants_of, weights_of
from bntools.core.pickles import open_pickle
from bntools.core.program_safety import harmless_program
from bntools.core.pt2 import ProgramFile, read_program_file
from bntools.core.quiet import quiet
from bntools.core.schema import Stranger
from bntools.core.sniff import ARTEFACT_KEY, Kind, Sniffed
from bntools.core.states import ensure_sane
from bntools.core.zips import read_directory
from bntools.errors import BntoolsError, SourceError, UnsafeError, first_line

_PROGRAMS: WeakKeyDictionary[nn.Module, torch.export.ExportedProgram] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Revived:
    """A program that was in a file.

    Args:
        program: as torch has it.
        module: the same, called as the original was, and such that it can be exported again.
        example: what it was exported on; drawn by its shapes if that is not in the file.
        plan: of the fold that it went through, as text; empty if there was none.
        unsafe: whether code from the file was allowed to run.
    """

    program: torch.export.ExportedProgram = field(repr=False)
    module: fx.GraphModule = field(repr=False)
    example: Example | None
    plan: str = field(repr=False)
    unsafe: bool

    @property
    def what(self) -> str:
        """A phrase for the report."""
        before = ", folded before" if self.plan else ""
        return f"a torch.export program{before}{', opened with --unsafe' if self.unsafe else ''}"


def revive(path: Path, *, unsafe: bool = False) -> Revived:
    """Open a ``.pt2`` file of ``torch.export.save``.

    Args:
        path: what `bntools.core.sniff` takes for a program.
        unsafe: let torch open it, which runs code of the file. Never a fallback: the caller asks for it.

    Raises:
        UnsafeError: there is more in it than computation and tensors; it is named.
        SourceError: it is damaged, or for another device.
    """
    if unsafe:
        return _by_torch(path)
    file = read_program_file(path)
    file.ensure_no_more()
    try:
        document = harmless_program(file.document())
    except (Stranger, RecursionError) as error:
        stranger = error if isinstance(error, Stranger) else Stranger("entries that are nested without end")
        raise file.refused(stranger) from None
    state, constants, inputs = weights_of(file), constants_of(file), _sample_inputs(file)
    program = _assembled(file, document, state, constants, inputs)
    try:
        module = _module(program)
    except Exception as error:  # a document may fit the schema and make no sense
        raise file.damaged(first_line(error)) from error
    return Revived(program, module, _example(program, inputs), file.extra(ARTEFACT_KEY), unsafe=False)


def program_of(model: Any) -> torch.export.ExportedProgram | None:
    """The program that *model* is, or that `revive` or `revived` made it of; None for any other module."""
    if isinstance(model, torch.export.ExportedProgram):
        return model
    return _PROGRAMS.get(model) if isinstance(model, nn.Module) else None


def taken(
    model: nn.Module | torch.export.ExportedProgram, inputs: Any
) -> tuple[nn.Module, Any, torch.export.ExportedProgram | None]:
    """A model as a module, its inputs if none were given, and its program if it is one."""
    program = program_of(model)
    if program is None:
        assert not isinstance(model, torch.export.ExportedProgram)
        return model, inputs, None
    module = model if isinstance(model, nn.Module) else _module(program)
    return module, _example(program, program.example_inputs) if inputs is None else inputs, program


def revived(program: torch.export.ExportedProgram) -> Revived:
    """The same for a program that is in memory already."""
    return Revived(program, _module(program), _example(program, program.example_inputs), "", unsafe=False)


def _by_torch(path: Path) -> Revived:
    extra = {ARTEFACT_KEY: ""}
    try:
        with quiet():
            program = torch.export.load(str(path), extra_files=extra)
        module = _module(program)
    except Exception as error:  # code of the file may raise anything
        raise SourceError(
            f"{path}: torch.export cannot open it: {first_line(error)}", todo="export it again"
        ) from error
    example = _example(program, program.example_inputs)
    return Revived(program, module, example, extra[ARTEFACT_KEY], unsafe=True)


def _module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    with quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        # Constants of the code are detached in place, which torch.export writes and does not take back.
        if node.target is torch.ops.aten.detach_.default:
            node.target = torch.ops.aten.detach.default
    module.recompile()
    for each in module.modules():  # containers of tensors: in which mode it works is written in the graph
        each.training = False
    _PROGRAMS[module] = program
    return module


def _assembled(
    file: ProgramFile,
    document: Any,
    state: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    inputs: Any,
) -> torch.export.ExportedProgram:
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    devices = {str(meta["device"]["type"]) for meta in _metas(document)}
    if "cuda" in devices and not torch.cuda.is_available():
        raise SourceError(
            f"{file.path}: a program for a GPU, and there is none here", todo="export it on the CPU"
        )
    if devices == {"cuda"}:
        state, constants = ({k: _moved(t) for k, t in each.items()} for each in (state, constants))
    try:
        with quiet():
            known = _dict_to_dataclass(schema.ExportedProgram, document)
            return ExportedProgramDeserializer().deserialize(known, dict(state), dict(constants), inputs)
    except Exception as error:  # a document may fit the schema and make no sense
        raise file.damaged(first_line(error.__cause__ or error)) from error


def _metas(document: Any) -> list[Any]:
    return list(document["graph_module"]["graph"]["tensor_values"].values())


def _moved(tensor: Tensor) -> Tensor:
    moved = tensor.detach().to("cuda")
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def _sample_inputs(file: ProgramFile) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments and keywords that it was exported on, by the way in which state dicts are opened."""
    data = file.sample_inputs()
    if not data:
        return None
    with tempfile.TemporaryDirectory(prefix="bntools-") as folder:
        inside = Path(folder) / "inputs"
        inside.write_bytes(data)
        try:
            value = open_pickle(_judged(inside)).value
        except BntoolsError as error:
            said = error.message.replace(f"{inside}:", f"{file.path}: its example inputs:")
            raise type(error)(said, todo="if you trust where the file comes from, pass --unsafe") from error
    match value:
        case (tuple(args), dict(kwargs)) if all(isinstance(key, str) for key in kwargs):
            tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            ensure_sane(str(file.path), dict(enumerate(tensors)), len(data))  # type: ignore[arg-type]
            return args, kwargs
    raise file.damaged("its example inputs are no arguments and keywords")


def _judged(path: Path) -> Sniffed:
    archive = read_directory(path)
    archive.ensure_stored("a torch zip")
    if "data.pkl" not in archive.records or "constants.pkl" in archive.records:
        raise UnsafeError(f"{path}: no file of torch.save")
    try:
        reading = read_pickles(io.BytesIO(archive.read("data.pkl")))
    except ValueError as error:
        raise SourceError(f"{path}: a damaged pickle") from error
    return Sniffed(path, Kind.STATE_DICT, "a torch file", reading)


def _example(program: torch.export.ExportedProgram, inputs: Any) -> Example | None:
    if inputs is not None:
        args, kwargs = inputs
        return Example(tuple(args), dict(kwargs), origin="from the file")
    return _drawn(program)


def _drawn(program: torch.export.ExportedProgram) -> Example | None:
    """Inputs of the shapes that a program was exported on; None if there is one that is no tensor."""
    spec = program.call_spec.in_spec
    generator = torch.Generator().manual_seed(0)
    metas = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    leaves: list[Any] = []
    for each in program.graph_signature.input_specs:
        if each.kind is not torch.export.graph_signature.InputKind.USER_INPUT:
            continue
        value = metas.get(getattr(each.arg, "name", ""))
        if isinstance(each.arg, torch.export.graph_signature.ConstantArgument):
            leaves.append(each.arg.value)
        elif isinstance(value, Tensor):
            sizes = [_hint(size) for size in value.shape]
            leaves.append(draw(sizes, value.dtype, value.device, generator))
        else:
            return None
    if spec is None or spec.num_leaves != len(leaves):
        return None
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return Example(tuple(args), dict(kwargs), origin="drawn by the file's shapes")


def _hint(size: Any) -> int:
    known = size if isinstance(size, int) else getattr(size.node, "hint", None)
    return int(known) if isinstance(known, int) else 2
