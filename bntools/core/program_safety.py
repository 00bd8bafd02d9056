"""Whether the JSON of a program asks for more than to compute: every field and every string of it is judged.

torch builds the program from this document, and on the way evaluates expressions, looks names up, imports
modules and writes source code out of names, which it runs. So it never gets the document of a file, but one
made anew of what was understood here. Notes that change no result, such as the stack of whoever exported it,
are left out; they too would be looked up.
"""

from __future__ import annotations

import re
from typing import Any

from torch import fx, nn

from bntools.core.aten import operator
from bntools.core.payloads import DTYPES
from bntools.core.schema import (
    Rule,
    Stranger,
    boolean,
    empty,
    integer,
    mapping,
    number,
    optional,
    record,
    sequence,
    shown,
    text,
    union,
    variable,
)
from bntools.core.symbols import expression, symbol
from bntools.core.treespecs import arguments, treespec

MAJOR = 8
"""The version of torch's schema that is known; later minor ones add fields, which are refused."""

TYPES = frozenset(DTYPES)
"""The numbers of torch's types."""

_CALLER = r"[\w.#@]*,(?:(?!__)[\w#@]+(?:\.(?!__)[\w#@]+)*)?,[\w.<>]*"
_STACK = re.compile(f"{_CALLER}(?:;{_CALLER})*", re.ASCII)

_PATH = text(r"\w[\w#-]*(?:\.\w[\w#-]*)*", "name of a tensor")
_TAKEN = (
    frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule)) | {"_in_spec", "_out_spec", "_guards_fn"}
)
"""What a module has already: torch would follow such a name to something that is no layer."""


def path(value: Any) -> str:
    """The name of a tensor in a state dict, which torch follows, and writes into source code."""
    parts = str(_PATH(value)).split(".")
    if odd := [part for part in parts if part.startswith("__") or part in _TAKEN]:
        raise Stranger(f"'{shown(odd[0])}' in the name of a tensor")
    return str(value)


def _one_of(numbers: frozenset[int], what: str) -> Rule:
    def read(value: Any) -> int:
        if type(value) is not int or value not in numbers:
            raise Stranger(f"{shown(value)}, which is no {what}")
        return value

    return read


def _metadata(value: Any) -> dict[str, str]:
    """Of all that torch noted about a node only the modules that called it, if they are named plainly."""
    stack = value.get("nn_module_stack") if isinstance(value, dict) else None
    known = isinstance(stack, str) and _STACK.fullmatch(stack) is not None
    return {"nn_module_stack": stack} if known and isinstance(stack, str) else {}


_HINT = union({"as_int": integer, "as_bool": boolean, "as_float": number})
_EXPR = record({"expr_str": expression}, {"hint": optional(_HINT)})
_SYM_INT = union({"as_expr": _EXPR, "as_int": integer})
_SYM_BOOL = union({"as_expr": _EXPR, "as_bool": boolean})
_DEVICE = record({"type": text("cpu|cuda", "device that is known")}, {"index": optional(integer)})
_TYPE = _one_of(TYPES, "type of torch's")
_STRIDED = _one_of(frozenset({7}), "layout that is known")
_FORMAT = _one_of(frozenset({1, 2, 3, 4}), "memory format of torch's")
_TENSOR_META = record(
    {
        "dtype": _TYPE,
        "sizes": sequence(_SYM_INT),
        "requires_grad": boolean,
        "device": _DEVICE,
        "strides": sequence(_SYM_INT),
        "storage_offset": _SYM_INT,
        "layout": _STRIDED,
    }
)
_TENSOR = record({"name": variable})
_STRING = text(r"[ -~]{0,200}", "short plain text")
_INT_OR_NAME = union({"as_name": variable, "as_int": integer})
_BOOL_OR_NAME = union({"as_name": variable, "as_bool": boolean})
_FLOAT_OR_NAME = union({"as_name": variable, "as_float": number})
_ARGUMENT = union(
    {
        "as_none": boolean,
        "as_tensor": _TENSOR,
        "as_tensors": sequence(_TENSOR),
        "as_int": integer,
        "as_ints": sequence(integer),
        "as_float": number,
        "as_floats": sequence(number),
        "as_string": _STRING,
        "as_sym_int": _INT_OR_NAME,
        "as_sym_ints": sequence(_INT_OR_NAME),
        "as_scalar_type": _TYPE,
        "as_memory_format": _FORMAT,
        "as_layout": _STRIDED,
        "as_device": _DEVICE,
        "as_bool": boolean,
        "as_bools": sequence(boolean),
        "as_sym_bool": _BOOL_OR_NAME,
        "as_sym_bools": sequence(_BOOL_OR_NAME),
        "as_optional_tensors": sequence(union({"as_tensor": _TENSOR, "as_none": boolean})),
        "as_sym_float": _FLOAT_OR_NAME,
        "as_sym_floats": sequence(_FLOAT_OR_NAME),
        "as_complex": record({"real": number, "imag": number}),
        "as_nested_tensors": sequence(sequence(_TENSOR)),
    }
)
_INPUT = record(
    {"name": text(r"[A-Za-z_]\w*|", "name of an argument"), "arg": _ARGUMENT},
    {"kind": optional(_one_of(frozenset({1, 2}), "kind of argument"))},
)
_NODE = record(
    {"target": operator, "inputs": sequence(_INPUT), "outputs": sequence(_ARGUMENT), "metadata": _metadata},
    {"is_hop_single_tensor_return": optional(boolean), "name": optional(variable)},
)
_GRAPH = record(
    {
        "inputs": sequence(_ARGUMENT),
        "outputs": sequence(_ARGUMENT),
        "nodes": sequence(_NODE),
        "tensor_values": mapping(variable, _TENSOR_META),
        "sym_int_values": mapping(variable, _SYM_INT),
        "sym_bool_values": mapping(variable, _SYM_BOOL),
    },
    {"is_single_tensor_return": boolean, "custom_obj_values": empty, "sym_float_values": empty},
)
_CONSTANT = union(
    {"as_none": boolean, "as_int": integer, "as_float": number, "as_string": _STRING, "as_bool": boolean}
)
_INPUT_SPEC = union(
    {
        "user_input": record({"arg": _ARGUMENT}),
        "parameter": record({"arg": _TENSOR, "parameter_name": path}),
        "buffer": record({"arg": _TENSOR, "buffer_name": path, "persistent": boolean}),
        "tensor_constant": record({"arg": _TENSOR, "tensor_constant_name": path}),
        "constant_input": record({"name": variable, "value": _CONSTANT}),
    }
)
_OUTPUT_SPEC = union(
    {
        "user_output": record({"arg": _ARGUMENT}),
        "buffer_mutation": record({"arg": _TENSOR, "buffer_name": path}),
        "user_input_mutation": record({"arg": _TENSOR, "user_input_name": variable}),
        "parameter_mutation": record({"arg": _TENSOR, "parameter_name": path}),
    }
)
_SIGNATURE = record({"input_specs": sequence(_INPUT_SPEC), "output_specs": sequence(_OUTPUT_SPEC)})
_CALL = record(
    {"inputs": empty, "outputs": empty, "in_spec": arguments, "out_spec": treespec},
    {"forward_arg_names": optional(sequence(variable))},
)


def _calls(value: Any) -> list[dict[str, Any]]:
    """How the program is called; how its modules once were is of no use here."""
    entries = sequence(lambda entry: entry)(value)
    whole = [entry for entry in entries if isinstance(entry, dict) and entry.get("fqn") == ""]
    if len(whole) != 1:
        raise Stranger("a program that does not say how it is called")
    return [record({"fqn": text("", "program"), "signature": _CALL})(whole[0])]


def _version(value: Any) -> dict[str, int]:
    version: dict[str, int] = record({"major": integer, "minor": integer})(value)
    if version["major"] != MAJOR:
        raise Stranger(f"version {version['major']} of torch's schema")
    return version


_PROGRAM = record(
    {
        "graph_module": record(
            {"graph": _GRAPH, "signature": _SIGNATURE, "module_call_graph": _calls},
            {"metadata": lambda value: {}, "treespec_namedtuple_fields": empty},
        ),
        "opset_version": mapping(text(r"\w+", "set of operators"), integer),
        "range_constraints": mapping(
            symbol, record({"min_val": optional(integer), "max_val": optional(integer)})
        ),
        "schema_version": _version,
        "verifiers": sequence(text("TRAINING|ATEN", "dialect that is known")),
    },
    # Sizes are checked by the operators themselves: guards are source code, and are never needed.
    {"torch_version": text(r"[\w.+<=-]*", "version"), "guards_code": lambda value: []},
)


def harmless_program(document: Any) -> Any:
    """A copy of a program's document that holds nothing but computation.

    Args:
        document: the JSON of ``models/NAME.json``, read.

    Raises:
        Stranger: there is something else in it.
    """
    return _PROGRAM(document)
