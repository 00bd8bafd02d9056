"""A layer that takes BatchNorms in, as a plan tells of it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """A layer that takes maps in.

    Args:
        path: the module's path.
        op: the operator, such as ``conv2d``.
        layout: where the weight keeps its output channels, see `bntools.core.algebra.fold_weight`.
        groups: of a transposed convolution, else 1.
        weight: the keys under which the weight stands; several if it is tied, none if it has yet to be made.
        bias: likewise; none if the layer has no bias yet.
        new_weight, new_bias: the key to make one under where there is none.
        bake: the parametrised tensor of the module to make plain first, or empty.
        call: which call of the host it is, so that a host called twice takes its maps once.
        rows: the sites whose maps it takes in on its output channels.
        columns: the sites whose maps it takes in on its input channels.
        pad: the key of what it pads with from now on, for each input channel; empty if it pads as it did.
    """

    path: str
    op: str
    layout: str
    groups: int = 1
    weight: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    new_weight: str = ""
    new_bias: str = ""
    bake: str = ""
    call: int = 0
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    pad: str = ""

    @property
    def weight_key(self) -> str:
        return self.weight[0] if self.weight else self.new_weight

    @property
    def bias_key(self) -> str:
        return self.bias[0] if self.bias else self.new_bias

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its tensors that change or are made: a weight always, the others where there are any."""
        return (self.weight_key, *filter(None, (self.bias_key, self.pad)))
