"""``.pt2`` files that mean harm or nonsense: the records of a sound one, and ways to depart from it."""

from __future__ import annotations

import builtins
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.season import season

ROOT = "m"
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
INPUTS = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """Keywords, one of them for nothing, an open batch and a constant: every part of the format is there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, *, shift: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x)).flatten(1) + torch.tensor([2.0])
        out: torch.Tensor = y.view(x.shape[0], 2, -1) + shift
        return out


@cache
def _made() -> dict[str, bytes]:
    stream, keywords = io.BytesIO(), {"shift": torch.ones(1), "spare": torch.ones(1)}
    open_axes = {"x": {0: torch.export.Dim.AUTO}, "shift": None, "spare": None}
    model = season(Net()).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 6, 6),), keywords, dynamic_shapes=open_axes)
    torch.export.save(program, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def sound() -> dict[str, bytes]:
    """The records of a plain program, to be changed."""
    return dict(_made())


def written(path: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(f"{ROOT}/{name}", data)
    return path


class Runs:
    """Pickles into a call."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return builtins.exec, (self.code,)


def touch(canary: Path) -> str:
    return f'open("{canary}", "w").close()'  # an expression without a single quote


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


Plant = Callable[[dict[str, bytes], str], None]


def edited(name: str, change: Callable[[Any, str], None]) -> Plant:
    """A change of one JSON record."""

    def plant(records: dict[str, bytes], code: str) -> None:
        document = json.loads(records[name])
        change(document, code)
        records[name] = json.dumps(document).encode()

    return plant


def graph(document: Any) -> Any:
    return document["graph_module"]["graph"]


def calls(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"][0]["signature"]


def out_spec(kind: str, context: Any) -> Callable[[Any, str], None]:
    def change(document: Any, code: str) -> None:
        leaf = {"type": None, "context": None, "children_spec": []}
        spec = {"type": kind, "context": context, "children_spec": [leaf]}
        calls(document)["out_spec"] = json.dumps([1, spec])

    return change


def target(name: Any) -> Plant:
    """Another operator for the last node."""
    return edited(MODEL, lambda document, code: graph(document)["nodes"][-1].update(target=name))
