"""An example input is found without running the model, without a trace, or not at all and said so."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bntools.core.guess import configured, guess
from bntools.core.inputs import parse_inputs, read_inputs
from bntools.errors import CaptureError, SourceError, UsageError


def conv(c: int, features: int, side: int) -> nn.Module:
    """A net that only one size of image fits."""
    return nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(features * side, 2))


class Called(nn.Module):
    """A module around a function, to say what a model does in one line."""

    def __init__(self, layers: dict[str, nn.Module], forward: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0, *more: Tensor) -> Tensor:
        return self.left(a) + self.right(b) * scale


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 8), nn.BatchNorm1d(8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.words(ids).mean(1))


FITS = {
    "images": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "2x3x224x224 float32"),
    "small images": (lambda: conv(3, 4, 30 * 30), "2x3x32x32 float32"),
    "grey images": (lambda: conv(1, 4, 26 * 26), "2x1x28x28 float32"),
    "any grey images": (lambda: nn.Conv2d(1, 4, 3), "2x1x28x28 float32"),
    "latent": (lambda: nn.ConvTranspose2d(100, 8, 4), "2x100x1x1 float32"),
    "features": (lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), "2x5 float32"),
    "sequences": (lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(16)), "2x16x5 float32"),
    "flat images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), "2x784 float32"),
    "sound": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), "2x2x128 float32"),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)), "2x3x16x112x112 float32"),
    "small volumes": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 6**3, 2)),
        "2x1x8x8x8 float32",
    ),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 2)), "2x7 float32"),
    "norm of images first": (lambda: nn.BatchNorm2d(3), "2x3x224x224 float32"),
    "words": (Words, "2x16 int64"),
    "recurrent": (lambda: nn.LSTM(6, 3), "2x16x6 float32"),
    "two inputs": (TwoInputs, "2x3x224x224 float32, 2x3x224x224 float32"),
    "double": (lambda: nn.Linear(5, 3).double(), "2x5 float64"),
    "half": (lambda: nn.Conv2d(3, 1, 1).half(), "2x3x224x224 float16"),
    "head made first": (
        lambda: Called(
            {"head": nn.Linear(4, 2), "stem": nn.Conv2d(3, 4, 3)},
            lambda m, x: m.head(m.stem(x).mean((2, 3))),
        ),
        "2x3x224x224 float32",
    ),
    "control flow on data": (
        lambda: Called({"a": nn.Linear(3, 2)}, lambda m, x: m.a(x) if x.sum() > 0 else -m.a(x)),
        "2x3 float32",
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_guesses_run(name: str) -> None:
    make, shape = FITS[name]
    model = make().eval()
    example = guess(model)
    assert str(example) == shape
    assert example.origin == "guessed"
    assert all(not isinstance(t, FakeTensor) for t in example.tensors)
    with torch.no_grad():
        example(model)


FAILS = {
    "no layers": (lambda: nn.ReLU(), "no layer of it tells a shape"),
    "an odd size": (lambda: conv(3, 4, 45 * 71), "none of the guesses fits: 2x3x224x224, 2x3x32x32"),
    "names only": (lambda: _keyword_only(), "needs keyword arguments"),
    "no copy": (lambda: _uncopyable(), "it cannot be copied"),
}


def _keyword_only() -> nn.Module:
    class Named(nn.Module):
        def forward(self, *, x: Tensor) -> Tensor:
            return x

    return Named()


def _uncopyable() -> nn.Module:
    model = nn.Linear(2, 2)
    model.stream = (i for i in range(3))
    return model


@pytest.mark.parametrize("name", FAILS)
def test_no_guess_says_what_was_tried_and_what_to_do(name: str) -> None:
    make, what = FAILS[name]
    with pytest.raises(CaptureError, match="no input is given") as caught:
        guess(make())
    assert what in caught.value.message
    assert "--input 2x3x224x224" in caught.value.todo
    assert caught.value.exit_code == 4


def test_what_torch_logs_of_shapes_that_do_not_fit_is_not_shown(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The guesses go through a flatten into a Linear that takes none of them."""
    with pytest.raises(CaptureError, match="none of the guesses fits"):
        guess(conv(3, 4, 45 * 71))
    assert capsys.readouterr().err == ""
    assert caplog.records == []


class Caching(nn.Module):
    """Keeps what it computes, as attention layers keep their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.kept: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last = self.norm(self.stem(x)) + torch.rand(())
        self.kept["y"] = self.last
        return self.last


def test_guessing_leaves_no_trace() -> None:
    model = Caching().train()
    model.stem.eval()
    state = copy.deepcopy(model.state_dict())
    tensors = [*model.parameters(), *model.buffers()]
    seen: list[Any] = []
    model.norm.register_forward_hook(lambda *a: seen.append(a))
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    guess(model)
    assert torch.equal(torch.rand(2), expected)
    assert (model.kept, model.last, seen) == ({}, None, [])
    assert [m.training for m in model.modules()] == [True, False, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert len(model.norm._forward_hooks) == 1
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_runs_for_real_is_restored_too() -> None:
    model = Called({"norm": nn.BatchNorm1d(3)}, lambda m, x: m.norm(x) if x.sum() > 0 else m.norm(-x)).train()
    model.register_buffer("count", torch.zeros(()))
    model.function = lambda m, x: (m.count.add_(1), m.norm(x) if x.sum() > 0 else m.norm(-x))[1]
    guess(model)
    assert model.count == 0
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_timms_levit_keeps_no_fake_tensors() -> None:
    import timm

    model = timm.create_model("levit_128s").eval()
    example = guess(model)
    assert example.origin == "timm's config"
    caches = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert caches
    assert not any(caches)
    with torch.no_grad():
        assert not isinstance(example(model), FakeTensor)


def test_weights_that_hooks_compute_are_computed() -> None:
    torch.manual_seed(0)
    from torch.nn.utils import spectral_norm

    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    before = copy.deepcopy(model.state_dict())
    assert str(guess(model)) == "2x3x224x224 float32"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_guesses_are_seeded_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    model = nn.Linear(5, 3)
    state = torch.get_rng_state()
    assert torch.equal(guess(model).args[0], guess(model).args[0])
    assert not torch.equal(guess(model).args[0], guess(model, seed=1).args[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)


def test_a_config_tells_the_input() -> None:
    model = conv(3, 4, 94 * 46)
    model.default_cfg = {"input_size": (3, 96, 48)}
    example = guess(model)
    assert (str(example), example.origin) == ("2x3x96x48 float32", "timm's config")
    grey = nn.Conv2d(1, 2, 3)
    grey.pretrained_cfg = {"input_size": (3, 40, 40)}
    assert str(guess(grey)) == "2x1x40x40 float32"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"input_size": None},
        {"input_size": (3, -1, 5)},
        {"input_size": "big"},
        {"input_size": (3, 10**9, 8)},
        3,
    ],
)
def test_a_config_that_tells_nothing_is_passed_over(config: Any) -> None:
    model = nn.Conv2d(3, 2, 3)
    model.pretrained_cfg = config
    assert configured(model) is None
    assert guess(model).origin == "guessed"


def test_a_config_that_does_not_fit_is_passed_over() -> None:
    model = conv(3, 4, 30 * 30)
    model.pretrained_cfg = {"input_size": (3, 224, 224)}
    assert configured(model) is None
    assert str(guess(model)) == "2x3x32x32 float32"


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding(11, 4), nn.Linear(4, 2)

    def forward(self, image: Tensor, ids: Tensor | None = None) -> Tensor:
        return self.linear(image)


def test_inputs_on_the_command_line() -> None:
    model = Named().double()
    example = parse_inputs(["2x3x4", "ids=2x300:int64"], model)
    assert str(example) == "2x3x4 float64, 2x300 int64"
    assert example.origin == "given"
    ids = example.kwargs["ids"]
    assert (int(ids.min()), int(ids.max())) == (0, 10)
    bits = parse_inputs(["2x300:int32"], nn.Linear(2, 2))
    assert set(bits.args[0].unique().tolist()) == {0, 1}
    assert str(parse_inputs(["scalar", "4:bool", "3:complex64", "2:bfloat16"], model)) == (
        "scalar float64, 4 bool, 3 complex64, 2 bfloat16"
    )


def test_inputs_on_the_command_line_are_seeded() -> None:
    model = nn.Linear(5, 3)
    state = torch.get_rng_state()
    assert torch.equal(parse_inputs(["2x5"], model).args[0], parse_inputs(["2x5"], model).args[0])
    assert not torch.equal(parse_inputs(["2x5"], model).args[0], parse_inputs(["2x5"], model, seed=1).args[0])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("texts", "what", "remedy"),
    [
        (["3xx"], "'3xx' is no shape", "write it as 2x3x224x224"),
        (["2,3,224,224"], "is no shape", "write it as 2x3x224x224"),
        (["-1x3"], "is no shape", "2x3"),
        (["2x0x3"], "has no elements or too many", "2x3"),
        (["99999x99999x99999"], "has no elements or too many", "2x3"),
        (["2x3:float99"], "has no known type", "float32"),
        (["2x3:nn"], "has no known type", "float32"),
        (["nope=2x3"], "Named takes no argument 'nope'", "it takes image, ids"),
        (["ids=2x3", "ids=2x3"], "the name ids is given twice", "once"),
    ],
)
def test_inputs_that_are_written_wrong(texts: list[str], what: str, remedy: str) -> None:
    with pytest.raises(UsageError, match="--input") as caught:
        parse_inputs(texts, Named())
    assert what in caught.value.message
    assert remedy in caught.value.todo


def test_inputs_from_numpy_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    image, ids = np.arange(8.0).reshape(2, 4), np.array([[1, 2]])
    np.savez(path, ids=ids, image=image)
    example = read_inputs(path, Named())
    assert (example.args, sorted(example.kwargs)) == ((), ["ids", "image"])
    assert example.kwargs["image"].dtype == torch.float32  # as the model's; numpy's own is float64
    assert example.kwargs["ids"].dtype == torch.int64
    assert torch.equal(example.kwargs["image"].double(), torch.from_numpy(image))
    np.savez(path, *[np.full(2, i) for i in range(12)])
    assert [int(t[0]) for t in read_inputs(path, Named()).args] == list(range(12))
    np.savez(path, left=image, right=ids)
    assert [tuple(t.shape) for t in read_inputs(path, Named()).args] == [(2, 4), (1, 2)]
    np.save(tmp_path / "x.npy", image)
    assert str(read_inputs(tmp_path / "x.npy", Named())) == "2x4 float32"
    assert example.origin == "given"


def test_numpy_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(SourceError, match="there is no such file"):
        read_inputs(path, Named())
    np.savez(path, image=np.ones(2), other=np.ones(2))
    with pytest.raises(SourceError, match="holds other, which Named does not take") as caught:
        read_inputs(path, Named())
    assert "image, ids" in caught.value.todo
    for content in (b"", b"text", b"\x93NUMPY\x01\x00", b"PK\x03\x04junk"):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="numpy"):
            read_inputs(path, Named())
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(SourceError, match="holds no arrays"):
        read_inputs(path, Named())
    np.savez(path, image=np.array(["a"]))
    with pytest.raises(SourceError, match="no numpy file of plain numbers"):
        read_inputs(path, Named())


def test_numpy_files_are_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Runs:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(canary)!r}, 'w').close()",)

    array = np.empty(1, dtype=object)
    array[0] = Runs()
    np.savez(tmp_path / "x.npz", image=array)
    with pytest.raises(SourceError, match="no numpy file of plain numbers"):
        read_inputs(tmp_path / "x.npz", Named())
    assert not canary.exists()
    np.load(tmp_path / "x.npz", allow_pickle=True)["image"]
    assert canary.exists()
