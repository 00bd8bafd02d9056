"""Opening a pickle imports layer classes of trusted packages only, and calls nothing the file steers."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bntools.core.harmless import trusted_package
from bntools.core.opcodes import Global, Made, read_pickles
from bntools.core.pickles import Opened, open_pickle
from bntools.core.sniff import sniff
from bntools.errors import BntoolsError, SourceError, UnsafeError, UsageError


def opened(path: Path, **options: Any) -> Opened:
    return open_pickle(sniff(path), **options)


def write(path: Path, program: bytes, **records: bytes) -> Path:
    """A torch zip around a pickle that was written by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("m/version", b"3\n")
        archive.writestr("m/byteorder", b"little")
        for name, data in records.items():
            archive.writestr(f"m/{name}", data)
    return path


def test_a_pickled_module_opens_and_names_its_classes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    model.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))
    torch.save(model, tmp_path / "m.pt")
    found = opened(tmp_path / "m.pt")
    assert found.classes == (
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.batchnorm.BatchNorm2d",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.conv.Conv2d",
    )
    assert not found.unsafe
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(found.value(x), model(x))
    assert not found.value.training


@pytest.mark.parametrize("zipped", [True, False])
def test_what_checkpoints_hold_opens(tmp_path: Path, zipped: bool) -> None:
    """The twin of the refusals: parts of tensors and plain values are no strangers."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "kept"  # type: ignore[attr-defined]
    value = {
        "a": torch.arange(3),
        "b": parameter,
        "c": collections.OrderedDict(x=torch.ones(2, dtype=torch.complex64)),
        "d": {"set": {1, 2}, "bytes": b"\xff\x00", "size": torch.Size([2]), "device": torch.device("cpu")},
        "e": [torch.float16, None, True, 1.5, 2**40, "text", (1, 2, 3, 4)],
        "f": torch.eye(2).to_sparse(),
        "g": torch.ones(4).bool(),
    }
    torch.save(value, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    found = opened(tmp_path / "m.pt").value
    assert torch.equal(found["a"], value["a"])
    assert found["b"].note == "kept"
    assert found["d"] == value["d"]
    assert found["e"] == value["e"]


def test_prefixes_match_whole_parts() -> None:
    assert trusted_package("timm.layers.norm") == "timm"
    assert trusted_package("timmy.layers") is None
    assert trusted_package("torch") is None
    assert trusted_package("torch.nnn.modules") is None
    assert trusted_package("mine.models", ["mine.models"]) == "mine.models"
    assert trusted_package("mine.models_too", ["mine.models"]) is None


REFUSED = {
    "a function": (b"cos\nsystem\n", ["os.system"], "--unsafe"),
    "a layer of another package": (b"cmylib.blocks\nBlock\n)\x81", ["mylib.blocks.Block"], "--trust mylib"),
    "a class of a script": (
        b"c__main__\nNet\n)\x81",
        ["__main__.Net"],
        "put the class in a module and pass --trust",
    ),
    "a class of the standard library": (b"cargparse\nNamespace\n)\x81", ["argparse.Namespace"], "--unsafe"),
    "a package with a like name": (b"ctorch.nnevil\nLinear\n)\x81", ["torch.nnevil.Linear"], "--unsafe"),
    "a relative name": (b"ctorch.nn..evil\nLinear\n)\x81", ["torch.nn..evil.Linear"], "--unsafe"),
    "a dotted attribute": (b"ctorch.nn.modules\nsys.modules\n", ["torch.nn.modules.sys.modules"], "--unsafe"),
    "several at once": (
        b"(cos\nsystem\ncmylib\nBlock\n)\x81c__main__\nNet\nl",
        ["os.system", "mylib.Block", "__main__.Net"],
        "--trust mylib",
    ),
    "a name from the stack": (b"\x8c\x02os\x8c\x06system\x93", ["os.system"], "--unsafe"),
    "a name from the memo": (b"\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01\x93", ["os.system"], "--unsafe"),
    "an instance in the old way": (b"(Vecho\nios\nsystem\n", ["os.system"], "--unsafe"),
    "an object in the old way": (b"(cos\nsystem\nVecho\no", ["os.system"], "--unsafe"),
    "a computed name": (b"\x8c\x02os(l\x93", ["a computed name (STACK_GLOBAL at byte"], "--unsafe"),
    "an extension": (b"\x82\x07", ["extension 7 of a registry"], "--unsafe"),
    "a wide extension": (b"\x84\x01\x02\x03\x04", ["extension 67305985 of a registry"], "--unsafe"),
    "control characters": (b"cos\nsys\x1b[31mtem\n", ["os.sys\\x1b[31mtem"], "--unsafe"),
    "a dead branch": (b"cos\nsystem\n0N", ["os.system"], "--unsafe"),
    "dtype lookalike": (b"ctorch\nload\n", ["torch.load"], "--unsafe"),
    "a hub": (b"ctorch.hub\nload\n", ["torch.hub.load"], "--unsafe"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_strangers_are_refused_by_name_with_the_flag(tmp_path: Path, name: str) -> None:
    program, names, remedy = REFUSED[name]
    path = write(tmp_path / "m.pt", b"}U\x01a" + program + b"s")
    with pytest.raises(UnsafeError) as caught:
        opened(path)
    assert all(n in caught.value.message for n in names)
    assert remedy in caught.value.todo
    assert str(path) in caught.value.message
    assert "nothing was run" in caught.value.message
    assert caught.value.exit_code == 3


CALLS = {
    # Each names only what is allowed; what it does with it is not.
    "a constructor": b"ctorch.nn.modules.linear\nLinear\n(K\x01K\x01tR",
    "a made class with arguments": b"ctorch.nn.modules.linear\nLinear\n(K\x01t\x81",
    "a trusted function": b"ctorch.nn.init\nones_\n(K\x01tR",
    "a module that was made": b"ctorch.nn.modules.linear\nIdentity\n)\x81(K\x01tR",
    "a storage of any size": b"ctorch.storage\nUntypedStorage\n(J\xff\xff\xff\x7ftR",
    "a tensor of any size": b"ctorch\nFloatTensor\n(J\xff\xff\xff\x7ftR",
    "a codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00ziptR",
    "a callable through a subclass": b""
    b"ctorch._tensor\n_rebuild_from_type_v2\n("
    b"ctorch.nn.modules.linear\nLinear\n"
    b"ctorch\nTensor\n(K\x01K\x01t}tR",
    "itself through a subclass": b""
    b"ctorch._tensor\n_rebuild_from_type_v2\n("
    b"ctorch._tensor\n_rebuild_from_type_v2\n"
    b"ctorch\nTensor\n(K\x01K\x01t}tR",
    "a memoised constructor": b"ctorch.nn.modules.linear\nLinear\nq\x000h\x00(K\x01K\x01tR",
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_no_file_of_torch_makes_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.pt", b"}U\x01a" + CALLS[name] + b"s")
    with pytest.raises(UnsafeError, match=r"which no file of torch.save asks for; nothing was run"):
        opened(path)


NO_LAYERS = {
    "a function": ("torch.nn.functional", "relu", "a function"),
    "no layer class": ("torch.nn.parameter", "UninitializedTensorMixin", "no layer class"),
    "another place": ("torch.nn", "Linear", "now torch.nn.modules.linear.Linear"),
    "a class through a module": ("torch.nn.modules.conv", "Module", "now torch.nn.modules.module.Module"),
    "a module": ("torch.nn.modules", "linear", "no class"),
}


@pytest.mark.parametrize("name", NO_LAYERS)
def test_names_under_trusted_packages_must_be_layer_classes(tmp_path: Path, name: str) -> None:
    module, attribute, why = NO_LAYERS[name]
    path = write(tmp_path / "m.pt", f"}}U\x01ac{module}\n{attribute}\ns".encode())
    with pytest.raises(UnsafeError) as caught:
        opened(path)
    assert f"{module}.{attribute} ({why})" in caught.value.message
    assert "--unsafe" in caught.value.todo


def test_code_as_data_is_no_layer(tmp_path: Path) -> None:
    """A GraphModule brings the source of its forward along."""
    place = b"}U\x01actorchvision.models.feature_extraction\nDualGraphModule\n)\x81s"
    with pytest.raises(UnsafeError, match="a class that carries its code as data"):
        opened(write(tmp_path / "m.pt", place))


def test_missing_classes_and_packages(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"torch\.nn\.modules\.conv\.Conv9d, which cannot be imported"
    ) as caught:
        opened(write(tmp_path / "m.pt", b"}U\x01actorch.nn.modules.conv\nConv9d\n)\x81s"))
    assert "release of torch" in caught.value.todo
    with pytest.raises(SourceError, match=r"there is no module 'torch\.nn\.modules\.nope'"):
        opened(write(tmp_path / "m.pt", b"}U\x01actorch.nn.modules.nope\nNope\n)\x81s"))
    path = write(tmp_path / "m.pt", b"}U\x01acnot_here.blocks\nBlock\n)\x81s")
    with pytest.raises(SourceError, match="there is no module 'not_here'") as caught:
        opened(path, trust=["not_here"])
    assert caught.value.todo == "run from the folder that holds not_here, or install it"


LAYER = """
from torch import nn
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
    def forward(self, x):
        return self.norm(x)
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the user's own package, saved from the folder that holds it."""
    (tmp_path / "ownpkg").mkdir()
    (tmp_path / "ownpkg" / "__init__.py").write_text("")
    (tmp_path / "ownpkg" / "layers.py").write_text(LAYER)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.path.insert(0, str(tmp_path))
    import ownpkg.layers

    torch.save(ownpkg.layers.Layer(), tmp_path / "own.pt")
    sys.path.pop(0)
    for name in ("ownpkg", "ownpkg.layers"):
        del sys.modules[name]
    return tmp_path / "own.pt"


def test_trust_opens_the_users_own_layers(own_package: Path) -> None:
    before = list(sys.path)
    with pytest.raises(UnsafeError, match=r"ownpkg\.layers\.Layer") as caught:
        opened(own_package)
    assert "pass --trust ownpkg" in caught.value.todo
    assert "ownpkg" not in sys.modules
    found = opened(own_package, trust=["ownpkg."])
    assert found.classes == ("ownpkg.layers.Layer", "torch.nn.modules.batchnorm.BatchNorm1d")
    assert found.value(torch.ones(3, 2)).shape == (3, 2)
    assert sys.path == before


def test_a_trusted_package_that_fails_is_one_line(own_package: Path) -> None:
    path = write(own_package.with_name("b.pt"), b"}U\x01acbroken\nLayer\n)\x81s")
    with pytest.raises(
        SourceError, match=r"broken\.Layer, which cannot be imported .ZeroDivisionError"
    ) as caught:
        opened(path, trust=["broken"])
    assert "make python -c 'import broken' work first" in caught.value.todo


@pytest.mark.parametrize("prefix", ["", "a-b", "..", "os;x", "a..b"])
def test_trust_takes_package_names_only(tmp_path: Path, prefix: str) -> None:
    torch.save({}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match="--trust"):
        opened(tmp_path / "m.pt", trust=[prefix])


def test_other_protocols_are_explained(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt", pickle_protocol=4)
    with pytest.raises(SourceError, match="pickle opcodes") as caught:
        opened(tmp_path / "m.pt")
    assert "torch.save's own protocol" in caught.value.todo
    assert torch.equal(opened(tmp_path / "m.pt", unsafe=True).value["a"], torch.ones(2))


def test_old_modules_are_explained(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError, match=r"before PyTorch 1.6.*only with code allowed to run") as caught:
        opened(tmp_path / "m.pt")
    assert "save it again" in caught.value.todo
    assert isinstance(opened(tmp_path / "m.pt", unsafe=True).value, nn.Linear)


def test_unsafe_is_recorded(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    assert opened(tmp_path / "m.pt", unsafe=True).unsafe
    assert not opened(tmp_path / "m.pt").unsafe


def test_damage_behind_the_pickle_is_one_line(tmp_path: Path) -> None:
    program = pickle.dumps({}, 2)
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        program = archive.read("m/data.pkl")
    path = write(tmp_path / "n.pt", program[2:-1])  # without the record of the storage
    with pytest.raises(SourceError, match="that torch cannot open") as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_allowed_classes_are_allowed_no_longer_afterwards(tmp_path: Path) -> None:
    """And those that the process allows already stay so: torch's context manager would take them away."""
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt")
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([nn.Sequential]):
        opened(tmp_path / "m.pt")
        assert set(torch.serialization.get_safe_globals()) == before | {nn.Sequential}
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_the_process_allows_is_not_what_the_file_may_name(tmp_path: Path) -> None:
    torch.save({"a": collections.Counter("aab")}, tmp_path / "m.pt")
    with (
        torch.serialization.safe_globals([collections.Counter]),
        pytest.raises(UnsafeError, match=r"collections\.Counter"),
    ):
        opened(tmp_path / "m.pt")


def test_a_safetensors_name_does_not_change_the_reader(tmp_path: Path) -> None:
    """torch.load goes by the ending of a path."""
    torch.save({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    assert torch.equal(opened(tmp_path / "m.safetensors").value["a"], torch.ones(2))


@pytest.mark.parametrize("protocol", range(6))
def test_the_walk_agrees_with_pickle_on_what_is_named(protocol: int) -> None:
    value = [
        collections.OrderedDict(a=1),
        {1, 2},
        frozenset([3]),
        nn.Linear,
        b"x",
        bytearray(b"y"),
        (1, 2, 3),
        2**70,
    ]

    seen: set[str] = set()

    class Naming(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            seen.add(f"{module}.{name}".replace("__builtin__", "builtins"))
            return super().find_class(module, name)

    data = pickle.dumps(value, protocol)
    assert Naming(io.BytesIO(data)).load() == value
    assert {str(g) for g in read_pickles(io.BytesIO(data)).globals} == seen


def test_the_walk_tells_the_root() -> None:
    made = read_pickles(io.BytesIO(pickle.dumps(collections.OrderedDict(a=[1, (2, {3: 4})]), 2))).root
    assert made == Made(Global("collections", "OrderedDict"))
    with pytest.raises(ValueError, match="IndexError"):
        read_pickles(io.BytesIO(b"\x80\x02R."))


def test_long_lists_of_strangers_are_cut(tmp_path: Path) -> None:
    program = b"}U\x01a(" + b"".join(b"cevil.a\nf%d\n" % i for i in range(500)) + b"ls"
    with pytest.raises(BntoolsError, match=r"evil\.a\.f19 and 480 more"):
        opened(write(tmp_path / "m.pt", program))


def _pairs(depth: int) -> bytes:
    """An empty tuple, and then *depth* times the pair of what stands there with itself."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


_TEXT = b"X" + (10**6).to_bytes(4, "little") + b"A" * 10**6
_SUBCLASSED = b"ctorch._tensor\n_rebuild_from_type_v2\n("
ENDLESS = {
    "a key of shared pairs": b"}" + _pairs(60) + b"K\x01s",
    "a deep key": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
    "a deep value": b"}K\x01" + b")" + b"\x85" * 200_000 + b"s",
    "an argument of shared pairs": _SUBCLASSED + _pairs(60) + b"tR",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_few_bytes_that_stand_for_no_end_of_values(tmp_path: Path, name: str) -> None:
    """To hash or print them takes for ever, or more stack than there is."""
    with pytest.raises(SourceError, match="damaged"):
        opened(write(tmp_path / "m.pt", ENDLESS[name]))


def test_a_long_argument_does_not_fill_the_screen(tmp_path: Path) -> None:
    with pytest.raises(UnsafeError) as caught:
        opened(write(tmp_path / "m.pt", _SUBCLASSED + _TEXT + b"tR"))
    assert len(str(caught.value)) < 1000


def test_tuples_in_tuples_open(tmp_path: Path) -> None:
    """The twin: what people really save."""
    value = {("a", ("b", 1)): (((1, 2), (3,)),) * 3}
    torch.save(value, tmp_path / "m.pt")
    assert opened(tmp_path / "m.pt").value == value
