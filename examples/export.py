"""Export a trained network, then break the file and let verify say where: ``python examples/export.py``."""

import tempfile
from pathlib import Path

import onnx
import torch
from nets import ResidualNet
from training import digits, fit

import bntools as bn

IMAGES, _, LABELS, _ = digits()
BROKEN = 5  # the weight, in the order of the file, that loses a channel


def main() -> int:
    """The exit code is 1 if the file is wrong, or the fault is not found at its layer."""
    torch.manual_seed(0)
    model = ResidualNet()
    fit(model, IMAGES, LABELS, epochs=2)
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        done = bn.export(model, IMAGES[:8], path)
        assert done.alone is not None
        print(f"exported: {done.check.verdict}, off by {done.check.error:.1e} of the scale,")
        print(f"where the model's own rounding is {done.check.noise:.1e}")
        print(f"BatchNorms: {done.alone.norms} by the exporter alone, {done.graph.norms} in the file")

        broken = onnx.load(path)
        weights = [each for each in broken.graph.initializer if len(each.dims) > 1]
        values = onnx.numpy_helper.to_array(weights[BROKEN]).copy()
        values[0] = 0
        layer = weights[BROKEN].name.rpartition(".")[0]
        weights[BROKEN].CopyFrom(onnx.numpy_helper.from_array(values, weights[BROKEN].name))
        onnx.save(broken, path)
        report = bn.verify(model, path, IMAGES[:8])
        print(f"\na channel of {layer} zeroed: {report.verdict}, {report.why}")
        assert report.place is not None
        print(f"it begins at {report.place.module}: {report.place.node}")
    return 0 if done.check.verdict is bn.Verdict.PASSED and report.place.module == layer else 1


if __name__ == "__main__":
    raise SystemExit(main())
