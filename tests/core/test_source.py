"""How files and names become models, and what the report says about it."""

from __future__ import annotations

import collections
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from bntools.core.sniff import Kind
from bntools.core.source import load, state_of
from bntools.errors import SourceError, UnsafeError, UsageError

ARCH = "netfile:net"
SOURCE = """
from torch import nn

def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)

a_model = nn.Linear(1, 1)
number = 3

def broken():
    raise RuntimeError("no such\\nweights")

def no_model():
    return 7
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a folder with a module of architectures."""
    (tmp_path / "netfile.py").write_text(SOURCE)
    (tmp_path / "needs.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("netfile", None)
    return tmp_path


def net(width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))
    model[1].running_mean.normal_()
    return model


def equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)


def test_a_pickled_module(here: Path) -> None:
    model = net()
    model[1].eval()
    torch.save(model, here / "m.pt")
    found = load("m.pt")
    assert equal(found.model, model)
    assert [m.training for m in found.model.modules()] == [m.training for m in model.modules()]
    assert (found.kind, found.pickled, found.unsafe, found.spec) == (Kind.MODULE, True, False, None)
    assert found.what == "a pickled module, 5 classes from torch.nn"
    assert found.path == Path("m.pt")
    assert found.checkpoint is None


def test_whole_pickled_models_of_torchvision_and_timm_open(here: Path) -> None:
    import timm
    import torchvision

    for model, what in (
        (torchvision.models.resnet18(weights=None), "9 classes from torch.nn and torchvision.models"),
        (timm.create_model("efficientnet_b0"), "14 classes from timm and torch.nn"),
    ):
        torch.save(model.eval(), here / "m.pt")
        found = load(here / "m.pt")
        assert what in found.what
        assert equal(found.model, model)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(found.model(x), model(x))


@pytest.mark.parametrize("name", ["modèle.pt", "a b.pt", "模型", "a:b", "x" * 200])
def test_torch_puts_the_files_name_into_the_archive(here: Path, name: str) -> None:
    torch.save(net(), here / name)
    assert load(here / name).kind is Kind.MODULE


def test_a_state_dict_needs_an_architecture(here: Path) -> None:
    model = net(seed=3)
    torch.save(model.state_dict(), here / "m.pt")
    with pytest.raises(SourceError, match="says nothing of the model it belongs to") as caught:
        load("m.pt")
    assert "--arch" in caught.value.todo
    found = load("m.pt", arch=ARCH)
    assert equal(found.model, model)
    assert not any(m.training for m in found.model.modules())
    assert (found.kind, found.pickled, found.spec, found.entry) == (Kind.STATE_DICT, False, ARCH, None)
    assert found.what == "a state dict, into netfile:net"


def test_safetensors_opens_the_same_way(here: Path) -> None:
    model = net(seed=3)
    safetensors.torch.save_file(model.state_dict(), here / "m.bin")
    found = load("m.bin", arch=ARCH)
    assert equal(found.model, model)
    assert found.kind is Kind.SAFETENSORS
    with pytest.raises(SourceError, match="--arch"):
        load("m.bin")


def test_arch_kwargs(here: Path) -> None:
    torch.save(net(width=6).state_dict(), here / "m.pt")
    assert load("m.pt", arch=ARCH, arch_kwargs={"width": 6}).model[0].out_channels == 6  # type: ignore[index, union-attr]
    with pytest.raises(SourceError, match="building it failed with TypeError") as caught:
        load("m.pt", arch=ARCH, arch_kwargs={"depth": 6})
    assert "arguments" in caught.value.todo
    with pytest.raises(UsageError, match="--arch-kwargs needs --arch"):
        load("m.pt", arch_kwargs={"width": 6})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapper_prefixes_are_stripped(here: Path, prefix: str) -> None:
    model = net(seed=1)
    torch.save({prefix + k: v for k, v in model.state_dict().items()}, here / "m.pt")
    found = load("m.pt", arch=ARCH)
    assert equal(found.model, model)
    assert found.prefix == prefix
    assert f"prefix {prefix!r} stripped" in found.what
    state = state_of("m.pt")
    assert list(state.tensors) == list(model.state_dict())
    assert state.prefix == prefix


def test_a_prefix_that_is_the_models_own_stays(here: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(model.state_dict(), here / "m.pt")
    found = load("m.pt", arch="netfile:Wrapped")
    assert found.prefix == ""
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, here / "m.pt")
    assert load("m.pt", arch="netfile:Wrapped").prefix == "module."


def test_real_wrappers_are_understood(here: Path) -> None:
    model = net(seed=2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), here / "m.pt")
    found = load("m.pt", arch=ARCH)
    assert equal(found.model, model)
    assert list(found.apart) == ["n_averaged"]
    torch.save(nn.DataParallel(model).state_dict(), here / "m.pt")
    assert equal(load("m.pt", arch=ARCH).model, model)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_the_entry_of_a_checkpoint_is_found_and_the_others_kept(here: Path, key: str) -> None:
    model = net(seed=4)
    torch.save({"epoch": 3, key: model.state_dict(), "optimizer": {"state": {}}}, here / "m.pt")
    found = load("m.pt", arch=ARCH)
    assert equal(found.model, model)
    assert found.entry == key
    assert found.checkpoint == {"epoch": 3, "optimizer": {"state": {}}}
    assert found.what == f"a state dict, entry '{key}' of a checkpoint, into netfile:net"


def test_of_several_entries_the_first_known_is_taken_and_said(here: Path) -> None:
    plain, ema = net(seed=4), net(seed=5)
    torch.save(
        {"net": ema.state_dict(), "model_ema": ema.state_dict(), "model": plain.state_dict()}, here / "m.pt"
    )
    found = load("m.pt", arch=ARCH)
    assert found.entry == "model"
    assert equal(found.model, plain)
    assert "also there: 'net', 'model_ema'; --key chooses" in found.what
    chosen = load("m.pt", arch=ARCH, key="net")
    assert chosen.entry == "net"
    assert equal(chosen.model, ema)
    assert "also there" not in chosen.what


@pytest.mark.parametrize("key", ["model_ema", "ema", "state_dict_ema", "ema_state_dict"])
def test_ema(here: Path, key: str) -> None:
    plain, ema = net(seed=4), net(seed=5)
    torch.save({"model": plain.state_dict(), key: ema.state_dict()}, here / "m.pt")
    assert equal(load("m.pt", arch=ARCH).model, plain)
    assert equal(load("m.pt", arch=ARCH, ema=True).model, ema)
    with pytest.raises(UsageError, match="--key and --ema"):
        load("m.pt", arch=ARCH, ema=True, key="model")
    torch.save({key: ema.state_dict(), "epoch": 1}, here / "m.pt")
    with pytest.raises(SourceError) as caught:
        load("m.pt", arch=ARCH)
    assert f"pass --ema for '{key}'" in caught.value.todo


def test_entries_that_are_not_there_list_those_that_are(here: Path) -> None:
    torch.save({"weights": net().state_dict(), "epoch": 3}, here / "m.pt")
    with pytest.raises(
        SourceError, match=r"no entry is known as weights among 'weights' \(.*\), 'epoch' \(int\)"
    ) as caught:
        load("m.pt", arch=ARCH)
    assert caught.value.todo == "pass --key 'weights'"
    with pytest.raises(SourceError, match="there is no entry 'model'"):
        load("m.pt", arch=ARCH, key="model")
    with pytest.raises(SourceError, match="there is no EMA entry"):
        load("m.pt", arch=ARCH, ema=True)
    with pytest.raises(SourceError, match="'epoch' holds no weights but a int"):
        load("m.pt", arch=ARCH, key="epoch")
    assert load("m.pt", arch=ARCH, key="weights").entry == "weights"
    torch.save(net().state_dict(), here / "m.pt")
    with pytest.raises(SourceError, match="no entries to choose from") as caught:
        load("m.pt", arch=ARCH, key="model")
    assert "leave out --key" in caught.value.todo


def test_an_entry_may_be_a_whole_module(here: Path) -> None:
    model = net(seed=6)
    torch.save({"epoch": 1, "model": model}, here / "m.pt")
    found = load("m.pt")
    assert equal(found.model, model)
    assert (found.kind, found.pickled, found.entry) == (Kind.STATE_DICT, True, "model")
    assert found.checkpoint == {"epoch": 1}
    assert found.what == "a pickled module, entry 'model' of a checkpoint, 5 classes from torch.nn"
    with pytest.raises(UsageError, match="holds the whole model"):
        load("m.pt", arch=ARCH)
    assert list(state_of("m.pt").tensors) == list(model.state_dict())


def test_loading_is_strict_and_lists_what_does_not_fit(here: Path) -> None:
    state = net().state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["0.bias"]
    torch.save(state, here / "m.pt")
    with pytest.raises(SourceError, match=r"1 missing \(0\.bias\)") as caught:
        load("m.pt", arch=ARCH)
    assert "1 not expected (extra.weight)" in caught.value.message
    assert "--arch" in caught.value.todo
    torch.save(net(width=6).state_dict(), here / "m.pt")
    with pytest.raises(SourceError, match=r"7 of another shape") as caught:
        load("m.pt", arch=ARCH)
    assert "(6x3x3x3 in the file, 4x3x3x3 in the model)" in caught.value.message
    assert ", …)" in caught.value.message
    torch.save({f"a{i}": torch.ones(1) for i in range(50)}, here / "m.pt")
    with pytest.raises(SourceError, match=r"8 missing .*, ….; 50 not expected \(a0, a1, a2, a3, a4, …\)"):
        load("m.pt", arch=ARCH)


def test_old_states_without_a_batch_counter_load(here: Path) -> None:
    """Files from before PyTorch 0.4.1 have no num_batches_tracked; the layer itself knows."""
    state = collections.OrderedDict((k, v) for k, v in net().state_dict().items() if "num_batches" not in k)
    torch.save(state, here / "m.pt")
    assert load("m.pt", arch=ARCH).model[1].num_batches_tracked == 0  # type: ignore[index, union-attr]


def test_tied_weights_may_be_stored_once_and_stay_tied(here: Path) -> None:
    import importlib

    sys.path.insert(0, str(here))
    tied = importlib.import_module("netfile").Tied()
    sys.path.pop(0)
    safetensors.torch.save_model(tied, str(here / "m.safetensors"))
    found = load("m.safetensors", arch="netfile:Tied").model
    assert equal(found, tied)
    assert found.a.weight is found.b.weight
    torch.save(tied.half().state_dict(), here / "m.pt")
    found = load("m.pt", arch="netfile:Tied").model
    assert found.a.weight is found.b.weight
    state = tied.state_dict()
    del state["b.bias"]
    torch.save(state, here / "m.pt")
    with pytest.raises(SourceError, match="1 missing"):
        load("m.pt", arch="netfile:Tied")


def test_the_types_of_the_file_are_kept(here: Path) -> None:
    torch.save(net().half().state_dict(), here / "m.pt")
    found = load("m.pt", arch=ARCH)
    assert {p.dtype for p in found.model.parameters()} == {torch.float16}
    assert found.what.endswith("in float16")


def test_specs() -> None:
    before = torch.get_rng_state()
    path = list(sys.path)
    found = load(ARCH, arch_kwargs={"width": 3})
    assert found.what == "netfile:net with random weights"
    assert (found.kind, found.spec, found.path) == (Kind.SPEC, ARCH, None)
    assert not found.model.training
    assert equal(found.model, load(ARCH, arch_kwargs={"width": 3}).model)
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.path == path
    assert isinstance(load("netfile:a_model").model, nn.Linear)


def test_timm_and_torchvision_by_name(here: Path) -> None:
    found = load("timm:resnet18", arch_kwargs={"num_classes": 3})
    assert found.model.fc.out_features == 3
    torch.save(found.model.state_dict(), here / "m.pt")
    again = load("m.pt", arch="timm:resnet18", arch_kwargs={"num_classes": 3})
    assert equal(again.model, found.model)
    with pytest.raises(SourceError, match=r"of another shape \(fc\.weight \(3x512 in the file"):
        load("m.pt", arch="timm:resnet18")


def test_a_backbone_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    assert load("torchvision:lraspp_mobilenet_v3_large").model is not None


BAD_SPECS = {
    "timm:resnet1": (SourceError, "timm has no model 'resnet1'", "did you mean resnet18"),
    "torchvision:resnet19": (SourceError, "torchvision has no model 'resnet19'", "did you mean resnet18"),
    "nowhere.at_all:net": (SourceError, "there is no module 'nowhere'", "install it"),
    "netfile:nte": (SourceError, "netfile has no 'nte'", "did you mean net"),
    "netfile:number": (SourceError, "int cannot be called", "function that returns the model"),
    "netfile:broken": (SourceError, "building it failed with RuntimeError: no such", "arguments"),
    "netfile:no_model": (SourceError, "gives a int, not an nn.Module", "return the model"),
    "needs:net": (SourceError, "importing needs failed with ModuleNotFoundError", "python -c 'import needs'"),
    "resnet50": (SourceError, "there is no such file", "or write timm:resnet50 or torchvision:resnet50"),
    "missing.pt": (SourceError, "there is no such file", "check the path"),
    "C:/models/missing.pt": (SourceError, "there is no such file", "check the path"),
    "a\0b": (SourceError, "there is no such file", "check the path"),
    "x" * 5000: (SourceError, "", ""),
}


@pytest.mark.parametrize("spec", BAD_SPECS, ids=lambda s: ascii(s[:20]))
def test_bad_names_are_one_line_with_a_remedy(spec: str) -> None:
    error, what, remedy = BAD_SPECS[spec]
    with pytest.raises(error) as caught:
        load(spec)
    assert what in caught.value.message
    assert remedy in caught.value.todo
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_libraries_that_are_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hidden:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(SourceError, match=f"{package} is not installed") as caught:
        load(f"{package}:resnet18")
    assert caught.value.todo == f"pip install {package}"


@pytest.mark.parametrize(("package", "module"), [("timm", "timm"), ("torchvision", "torchvision.models")])
def test_libraries_built_for_another_torch(
    package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == package:
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(SourceError, match="RuntimeError: operator torchvision::nms does not exist") as caught:
        load(f"{package}:resnet18")
    assert caught.value.todo == f"make python -c 'import {module}' work first"


def test_an_existing_file_goes_before_a_name(here: Path) -> None:
    torch.save(net(), here / "timm:resnet18")
    assert load("timm:resnet18").kind is Kind.MODULE


def test_flags_about_files_do_not_go_with_names() -> None:
    torch.save(net().state_dict(), "m.pt")
    with pytest.raises(UsageError, match="--arch is about a file"):
        load(ARCH, arch="timm:resnet18")
    with pytest.raises(UsageError, match="--key is about a file"):
        load(ARCH, key="model")
    with pytest.raises(UsageError, match="'nonsense' is no architecture"):
        load("m.pt", arch="nonsense")


def test_kinds_that_cannot_be_operated_on_say_what_to_do(here: Path) -> None:
    torch.export.save(torch.export.export(net().eval(), (torch.ones(2, 3, 3, 3),)), here / "m.pt2")
    with pytest.raises(SourceError, match=r"a torch.export program, whose graph this verb cannot") as caught:
        load("m.pt2")
    assert "fold, export, inspect or verify it" in caught.value.todo
    assert "--arch" in caught.value.todo
    safetensors.torch.save_file(net().state_dict(), here / "m.safetensors", {"bntools": "{}"})
    with pytest.raises(SourceError, match="a bntools artefact") as caught:
        load("m.safetensors", arch=ARCH)
    assert "`bntools replay`" in caught.value.todo


def test_state_of_needs_no_architecture(here: Path) -> None:
    model = net(seed=7)
    torch.save({"model": model.state_dict(), "ema": net(seed=8).state_dict()}, here / "m.pt")
    state = state_of("m.pt")
    assert torch.equal(state.tensors["1.running_mean"], model[1].running_mean)
    assert (state.entry, state.kind) == ("model", Kind.STATE_DICT)
    assert state.what == "a state dict, entry 'model' of a checkpoint, also there: 'ema'; --key chooses"
    assert torch.equal(state_of("m.pt", ema=True).tensors["0.weight"], net(seed=8)[0].weight)
    with pytest.raises(SourceError, match="'nope'"):
        state_of("m.pt", key="nope")


def test_a_module_with_parts_missing_is_one_line(here: Path) -> None:
    model = net()
    del model[1].__dict__["_buffers"]
    torch.save(model, here / "m.pt")
    with pytest.raises(SourceError, match="a pickled module with parts missing"):
        load("m.pt")


def test_tensors_larger_than_the_file_are_refused(here: Path) -> None:
    """A view with a stride of zero costs the file nothing."""
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, here / "m.pt")
    with pytest.raises(UnsafeError, match=r"its tensors claim 4000\.0 GB") as caught:
        state_of("m.pt")
    assert "clone" in caught.value.todo
    torch.save({"a": torch.ones(1).expand(10**3, 10**3)}, here / "m.pt")
    assert state_of("m.pt").tensors["a"].shape == (1000, 1000)


def test_what_holds_no_weights(here: Path) -> None:
    torch.save({}, here / "m.pt")
    with pytest.raises(SourceError, match="no entry is known as weights among none"):
        load("m.pt", arch=ARCH)
    torch.save({"epoch": 1}, here / "m.pt")
    with pytest.raises(SourceError, match=r"'epoch' \(int\)") as caught:
        load("m.pt", arch=ARCH)
    assert "save the model or its state dict" in caught.value.todo
