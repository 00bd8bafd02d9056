"""Saving and replaying: bit for bit, whole or not at all, and never onto the wrong model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import store
from bntools.core.example import Example
from tests.must_fold import CASES, Apply, Case, finished, x
from tests.season import season

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def prepared(case: Case, seed: int = 0) -> nn.Module:
    """A seasoned instance; another seed gives another one of the same class."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = case.build()
    return finished(season(model if case.name == "frozen-bn-in-training-model" else model.eval(), seed))


def net(dtype: torch.dtype = torch.float32, seed: int = 0, width: int = 4) -> nn.Sequential:
    """Two BatchNorms of which one folds, and a linear layer that nothing folds into."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.BatchNorm2d(width))
    head = nn.Sequential(nn.Tanh(), nn.Flatten())
    return season(nn.Sequential(*layers, head, nn.Linear(16 * width, 2)).eval(), seed).to(dtype)


IMAGE = x(2, 3, 6, 6)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def look(model: nn.Module) -> dict[str, Any]:
    """All that replay may change: modules and tensors by identity, values by their bits."""
    found: dict[str, Any] = {
        f"module {path}": (id(m), type(m), m.training, [(k, id(v)) for k, v in vars(m).items()])
        for path, m in model.named_modules(remove_duplicate=False)
    }
    for key, t in model.state_dict(keep_vars=True).items():
        found[key] = (id(t), bits(t), t.dtype, t.requires_grad) if isinstance(t, Tensor) else t
    return found


def ties(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for key, t in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(t), []).append(key)
    return sorted(groups.values())


def assert_twins(live: nn.Module, again: nn.Module, inputs: Any) -> None:
    old, new = live.state_dict(keep_vars=True), again.state_dict(keep_vars=True)
    assert list(old) == list(new)
    for key, tensor in old.items():
        assert bits(tensor) == bits(new[key]), key
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            new[key].dtype,
            new[key].shape,
            new[key].stride(),
        ), key
        assert (type(tensor), tensor.requires_grad) == (type(new[key]), new[key].requires_grad), key
    assert ties(live) == ties(again)
    described = [(p, type(m).__name__, m.training) for p, m in live.named_modules(remove_duplicate=False)]
    assert described == [
        (p, type(m).__name__, m.training) for p, m in again.named_modules(remove_duplicate=False)
    ]
    with torch.no_grad():
        outs = [Example.of(inputs, m)(m) for m in (live, again)]
    one, two = (torch.utils._pytree.tree_leaves(out) for out in outs)
    assert [bits(t) for t in one] == [bits(t) for t in two]


def refusing(path: Path, build: Callable[[], nn.Module], match: str) -> None:
    """Replay onto the model is a PlanError, and the model is as it was."""
    for inplace in (False, True):
        model = build()
        before = look(model)
        with pytest.raises(bn.PlanError, match=match):
            bn.replay(path, model, inplace=inplace)
        assert look(model) == before


# Replay is the fold


@every_case
def test_replay_is_the_fold_bit_for_bit(case: Case, tmp_path: Path) -> None:
    surgery = bn.fold(prepared(case), case.inputs, bake=case.bake)
    path = bn.save(surgery, tmp_path / "m.safetensors")
    fresh = prepared(case, seed=9)
    before = look(fresh)
    again = bn.replay(path, fresh)
    assert look(fresh) == before
    assert again is not fresh
    assert_twins(surgery.model, again, case.inputs)
    assert bn.replay(path, fresh, inplace=True) is fresh
    assert_twins(surgery.model, fresh, case.inputs)
    assert store.read(path).plan == surgery.plan


@every_case
def test_a_checkpoint_replays_too(case: Case, tmp_path: Path) -> None:
    surgery = bn.fold(prepared(case), case.inputs, bake=case.bake)
    others = {"epoch": 3, "model": prepared(case).state_dict()}  # another entry that could be meant
    content = store.checkpoint(surgery, others, "net", whole=False)
    store.write_torch(content, tmp_path / "m.pt", force=False)
    assert_twins(surgery.model, bn.replay(tmp_path / "m.pt", prepared(case, seed=9)), case.inputs)


@every_case
def test_a_pickled_module_is_the_fold(case: Case, tmp_path: Path) -> None:
    surgery = bn.fold(prepared(case), case.inputs, bake=case.bake)
    if any(isinstance(m, Apply) for m in surgery.model.modules()):
        with pytest.raises(bn.UsageError, match=r"cannot be pickled.*safetensors"):
            bn.save(surgery, tmp_path / "m.pt")
        assert list(tmp_path.iterdir()) == []
        return
    bn.save(surgery, tmp_path / "m.pt")
    assert_twins(
        surgery.model, torch.load(tmp_path / "m.pt", weights_only=False), case.inputs
    )  # our own file


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "tied-weight-same-bn")
    path = bn.save(bn.fold(prepared(case), case.inputs), tmp_path / "m.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["a.bias", "a.weight", "b.bias"]
    assert set(store.read(path).tensors) == {"a.bias", "a.weight", "b.bias", "b.weight"}


def test_tensors_that_share_memory_are_each_stored(tmp_path: Path) -> None:
    def build(seed: int = 0) -> nn.Module:
        model = net(seed=seed)
        model.register_buffer("row", model.get_parameter("5.weight").detach()[1])
        return model

    surgery = bn.fold(build(), IMAGE, inplace=True)  # a copy of a Parameter shares nothing
    path = bn.save(surgery, tmp_path / "m.safetensors")
    again = bn.replay(path, build(5), inplace=True)
    assert_twins(surgery.model, again, IMAGE)
    assert again.get_buffer("row").data_ptr() == again.get_parameter("5.weight")[1].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    surgery = bn.fold(net(dtype), IMAGE.to(dtype))
    path = bn.save(surgery, tmp_path / "m.safetensors")
    assert_twins(surgery.model, bn.replay(path, net(dtype, 5)), IMAGE.to(dtype))


def test_memory_format_is_that_of_the_fresh_model(tmp_path: Path) -> None:
    def channels_last(seed: int) -> Any:
        model: Any = net(seed=seed, width=8)
        return model.to(memory_format=torch.channels_last)

    surgery = bn.fold(channels_last(0), IMAGE)
    assert not surgery.model.get_parameter("0.weight").is_contiguous()
    path = bn.save(surgery, tmp_path / "m.safetensors")
    assert_twins(surgery.model, bn.replay(path, channels_last(5)), IMAGE)


def test_frozen_weights_stay_frozen(tmp_path: Path) -> None:
    surgery = bn.fold(net().requires_grad_(False), IMAGE)
    again = bn.replay(bn.save(surgery, tmp_path / "m.safetensors"), net(seed=5).requires_grad_(False))
    assert not any(p.requires_grad for p in again.parameters())


def test_a_plan_without_edits(tmp_path: Path) -> None:
    def build(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return season(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval(), seed)

    surgery = bn.fold(build(), IMAGE)
    assert not surgery.plan.edits
    assert_twins(surgery.model, bn.replay(bn.save(surgery, tmp_path / "m.safetensors"), build(7)), IMAGE)


def test_a_replayed_model_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = bn.save(bn.fold(net(), IMAGE), tmp_path / "m.safetensors")
    again = bn.replay(path, net(seed=5))
    before = look(again)
    path.write_bytes(bytes(path.stat().st_size))
    assert look(again) == before


def test_a_folded_checkpoint_folds_no_further(tmp_path: Path) -> None:
    surgery = bn.fold(net(), IMAGE)
    again = bn.load(bn.save(surgery, tmp_path / "m.pt"))
    assert_twins(surgery.model, again, IMAGE)
    assert not bn.fold(again, IMAGE).plan.edits


# What does not fit


def without(build: Callable[[], nn.Sequential], index: int) -> Callable[[], nn.Module]:
    def change() -> nn.Module:
        model = build()
        model[index] = nn.Identity()
        return model

    return change


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: net(width=5), "other tensors"),
        (lambda: net(torch.float16), r"0\.weight should be .*float16, not .*float32"),
        (lambda: bn.fold(net(), IMAGE).model, "other tensors"),
        (without(net, 1), "other tensors"),
        (without(net, 5), "other tensors"),
        (lambda: nn.Sequential(nn.Linear(1, 1)), "other tensors"),
        (lambda: _with(net(), "5", net().double()[5]), r"5\.bias is .*float64 in the model"),
    ],
    ids=["other sizes", "other type", "already folded", "no BatchNorm", "no layer", "other", "one type"],
)
def test_a_model_that_does_not_fit(build: Callable[[], nn.Module], match: str, tmp_path: Path) -> None:
    path = bn.save(bn.fold(net(), IMAGE), tmp_path / "m.safetensors")
    refusing(path, build, match)


def _with(model: nn.Module, path: str, child: nn.Module) -> nn.Module:
    model._modules[path] = child
    return model


def test_a_model_with_the_same_tensors_and_another_layer_in_the_place(tmp_path: Path) -> None:
    path = bn.save(bn.fold(net(), IMAGE), tmp_path / "m.safetensors")
    refusing(path, lambda: _with(net(), "1", _renamed(net()[1])), r"other tensors")


MEAN = torch.zeros(4)


def _renamed(norm: nn.Module) -> nn.Module:
    """The same keys, but no tensors of these names: its parts are children."""
    wrapper = nn.Module()
    for name, value in norm.state_dict().items():
        wrapper.register_parameter(name, nn.Parameter(value, requires_grad=False))
    del wrapper._parameters["running_mean"]

    def add(module: nn.Module, state: Any, prefix: str, *_: Any) -> None:
        state[f"{prefix}running_mean"] = MEAN

    wrapper._register_state_dict_hook(add)
    return wrapper


def test_ties_that_the_file_does_not_have(tmp_path: Path) -> None:
    """The names and shapes are equal; loaded in silence, one of two weights would be lost."""

    def build(tied: bool) -> nn.Module:
        a, b = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            b.weight = a.weight
        return season(
            Apply(
                lambda m, v: m.bn(m.c(m.a(v) + m.b(v))), a=a, b=b, c=nn.Linear(3, 2), bn=nn.BatchNorm1d(2)
            ).eval()
        )

    path = bn.save(bn.fold(build(False), x(4, 3)), tmp_path / "m.safetensors")
    assert bn.replay(path, build(False)) is not None
    refusing(path, lambda: build(True), r"[ab]\.weight cannot be as it is in the file")


def test_ties_that_only_the_plan_has(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "tied-weight-same-bn")

    def untied() -> Any:
        model: Any = prepared(case)
        model.b.weight = nn.Parameter(model.a.weight.detach().clone())
        return model

    path = bn.save(bn.fold(prepared(case), case.inputs), tmp_path / "m.safetensors")
    refusing(path, untied, r"a\.weight and b\.weight are one tensor in the plan and two in the model")


class Extra(nn.Linear):
    """Its state holds something besides tensors."""

    def get_extra_state(self) -> Any:
        return {"scale": 3}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


def test_entries_that_are_no_tensors(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return season(nn.Sequential(Extra(3, 4), nn.BatchNorm1d(4)).eval())

    surgery = bn.fold(build(), x(5, 3))
    with pytest.raises(bn.UsageError, match=r"0\._extra_state is no tensor; write to \.pt"):
        bn.save(surgery, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
    bn.save(surgery, tmp_path / "m.pt")
    store.write_torch(store.checkpoint(surgery, {}, "model", whole=False), tmp_path / "c.pt", force=False)
    refusing(tmp_path / "c.pt", build, r"0\._extra_state of the model is no tensor")


def test_a_host_outside_the_state_dict(tmp_path: Path) -> None:
    class Host(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            weight = self.weight.detach()
            del self.weight
            self.register_buffer("weight", weight, persistent=False)

    surgery = bn.fold(season(nn.Sequential(Host(), nn.BatchNorm1d(4)).eval()), x(5, 3))
    assert surgery.plan.edits
    with pytest.raises(bn.UsageError, match=r"0\.weight is not in the state dict; write to \.pt"):
        bn.save(surgery, tmp_path / "m.safetensors")


class Stubborn(nn.Linear):
    """A layer that does not load."""

    error: BaseException

    def _load_from_state_dict(self, *args: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), KeyError("no")], ids=repr)
def test_loading_that_breaks_off_leaves_the_model_alone(error: BaseException, tmp_path: Path) -> None:
    path = bn.save(bn.fold(net(), IMAGE), tmp_path / "m.safetensors")
    model: Any = net(seed=5)
    model.insert(5, nn.Identity())
    model[5] = model.pop(6)
    model[5].__class__ = Stubborn
    model[5].error = error
    before = look(model)
    expected = bn.PlanError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected):
        bn.replay(path, model, inplace=True)
    assert look(model) == before


def test_files_without_a_plan(tmp_path: Path) -> None:
    safetensors.torch.save_file(net().state_dict(), tmp_path / "a.safetensors")
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    torch.save(net().state_dict(), tmp_path / "c.pt")
    torch.save({"model": net().state_dict(), "bntools": 3}, tmp_path / "d.pt")
    torch.save(net(), tmp_path / "e.pt")
    for name in ("a.safetensors", "b.safetensors", "c.pt", "d.pt", "e.pt"):
        refusing(tmp_path / name, net, f"{name}.*without a plan")
    with pytest.raises(bn.SourceError, match="no such file"):
        bn.replay(tmp_path / "none.safetensors", net())


# Equal models, equal bytes

BYTES = """
import sys, hashlib, torch, bntools as bn
from torch import nn
from tests.core.test_store import net, IMAGE
model = net()
for name in ("alpha", "beta", "gamma", "delta", "epsilon"):  # a set, which pickles in the order of its hashes
    model.register_buffer(name, torch.ones(1), persistent=False)
model.tags = {"seven", "names", "in", "no", "order", "at", "all"}, frozenset({"a", "b", "c"})
surgery = bn.fold(model, IMAGE)
for path in sys.argv[1:]:
    print(hashlib.sha256(bn.save(surgery, path).read_bytes()).hexdigest())
"""


@pytest.mark.parametrize("ending", [pytest.param(".pt", marks=pytest.mark.zoo), ".safetensors"])
def test_equal_models_give_equal_bytes(ending: str, tmp_path: Path) -> None:
    found = set()
    for seed in ("0", "1", "2"):
        paths = [str(tmp_path / f"{name}{seed}{ending}") for name in ("a", "another-name")]
        run = subprocess.run(
            [sys.executable, "-c", BYTES, *paths],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(["."])},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        found |= set(run.stdout.split())
    assert len(found) == 1


# Whole or not at all


class PlannedError(Exception):
    """Not one of ours."""


def raising(error: BaseException) -> Callable[..., Any]:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    return broken


def half(error: BaseException) -> Callable[..., Any]:
    """Writes some bytes first."""

    def broken(content: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, Path):
            file.write_bytes(b"half")
        else:
            file.write(b"half")
        raise error

    return broken


FULL = OSError(28, "No space left on device")
BREAKS: dict[str, tuple[Any, str, Callable[..., Any], type[BaseException]]] = {
    "torch.save, disk full": (torch, "save", half(FULL), bn.SourceError),
    "torch.save, Ctrl-C": (torch, "save", half(KeyboardInterrupt()), KeyboardInterrupt),
    "torch.save, a bug": (torch, "save", half(PlannedError()), PlannedError),
    "safetensors, disk full": (
        store,
        "save_file",
        half(safetensors.SafetensorError("I/O error: No space left on device")),
        bn.SourceError,
    ),
    "safetensors, Ctrl-C": (store, "save_file", half(KeyboardInterrupt()), KeyboardInterrupt),
    "fsync": (os, "fsync", raising(FULL), bn.SourceError),
    "fsync, Ctrl-C": (os, "fsync", raising(KeyboardInterrupt()), KeyboardInterrupt),
    "replace": (Path, "replace", raising(FULL), bn.SourceError),
    "chmod": (Path, "chmod", raising(PermissionError(1, "Operation not permitted")), bn.SourceError),
}


@pytest.mark.parametrize("old", [b"", b"old"], ids=["new", "over another"])
@pytest.mark.parametrize("what", BREAKS)
def test_a_write_that_breaks_off_leaves_nothing(
    what: str, old: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, broken, expected = BREAKS[what]
    surgery = bn.fold(net(), IMAGE)
    for ending in (".pt", ".safetensors"):
        if what.startswith(("torch", "safetensors")) and what.startswith("torch") is not (ending == ".pt"):
            continue
        path = tmp_path / f"m{ending}"
        if old:
            path.write_bytes(old)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            with pytest.raises(expected):
                bn.save(surgery, path, force=True)
        assert [p.name for p in tmp_path.iterdir()] == [path.name] * bool(old)
        assert not old or path.read_bytes() == old
        bn.save(surgery, path, force=True)  # the twin
        path.unlink()


FULL_DISK = """
import resource, sys, bntools as bn
from tests.core.test_store import net, IMAGE
surgery = bn.fold(net(width=64), IMAGE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    bn.save(surgery, sys.argv[1], force=True)
except bn.SourceError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX")
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_disk_that_is_really_full(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "cannot be written" in run.stdout, run.stdout + run.stderr
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    surgery = bn.fold(net(), IMAGE)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "round.pt").symlink_to(tmp_path / "trip.pt")
    (tmp_path / "trip.pt").symlink_to(tmp_path / "round.pt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")
    before = sorted(tmp_path.iterdir())
    places = {
        "none/m.pt": bn.SourceError,
        "file/m.pt": bn.SourceError,
        "folder.pt": bn.UsageError,
        "round.pt": bn.UsageError,
        "pipe.pt": bn.UsageError,
        f"{'n' * 300}.pt": bn.SourceError,
    }
    for place, error in places.items():
        with pytest.raises(error):
            bn.save(surgery, tmp_path / place, force=True)
        assert sorted(tmp_path.iterdir()) == before
    assert bn.save(surgery, tmp_path / f"{'n' * 250}.pt").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    surgery = bn.fold(net(), IMAGE)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(bn.SourceError, match="Permission denied"):
            bn.save(surgery, tmp_path / "m.pt")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_permissions(ending: str, tmp_path: Path) -> None:
    surgery, path = bn.fold(net(), IMAGE), tmp_path / f"m{ending}"
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            bn.save(surgery, path, force=True)
            assert os.umask(mask) == mask
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
        path.unlink()
    for mode in (0o600, 0o664, 0o444):
        path.write_bytes(b"old")
        path.chmod(mode)
        bn.save(surgery, path, force=True)
        assert path.stat().st_mode & 0o777 == mode
        path.unlink()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    surgery = bn.fold(net(), IMAGE)
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "m.pt", tmp_path / "real" / "target.bin"
    link.symlink_to(target)
    bn.save(surgery, link)  # to where a link leads, there may be nothing yet
    whole = target.read_bytes()
    target.write_bytes(b"old")
    with pytest.raises(bn.UsageError, match="exists; name another file, or replace it with --force"):
        bn.save(surgery, link)
    bn.save(surgery, link, force=True)
    assert link.is_symlink()
    assert target.read_bytes() == whole
    assert [p.name for p in target.parent.iterdir()] == ["target.bin"]


@pytest.mark.parametrize("ending", ["pt", "safetensors", "onnx"])
def test_a_model_alone_is_none_of_ours(ending: str, tmp_path: Path) -> None:
    with pytest.raises(bn.UsageError, match="expected what a verb returns, got a Sequential"):
        bn.save(net(), tmp_path / f"x.{ending}")  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


def test_force_and_endings(tmp_path: Path) -> None:
    surgery = bn.fold(net(), IMAGE)
    for name in ("m.pt", "m.pth", "m.safetensors"):
        path = bn.save(surgery, str(tmp_path / name))
        path.write_bytes(b"old")
        with pytest.raises(bn.UsageError, match="exists; name another file, or replace it with --force"):
            bn.save(surgery, path)
        assert path.read_bytes() == b"old"
        bn.save(surgery, path, force=True)
        assert path.read_bytes() != b"old"
    before = sorted(tmp_path.iterdir())
    for name in ("m", "m.tflite", "m.PT", "m.pt.bak"):
        with pytest.raises(bn.UsageError, match="no known ending"):
            bn.save(surgery, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_while_writing_is_no_pickling_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch closes the archive on its way out, which fails too and would hide it."""

    def interrupted(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos")

    surgery = bn.fold(net(), IMAGE)
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bn.save(surgery, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())
