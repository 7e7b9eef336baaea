"""A norm's output that is left to the layer behind it, which makes codes of the norm's input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor, Quantizer
from quantizers.ranges.rules import State

from .normalize import channels
from .passes import Affine, Channels

#: The attribute of the tensor that stands for a `Deferred`.
DEFERRED = "deferred"


class Deferred(NamedTuple):
    """A norm's output, rounded and after its ReLU, of which no float exists: x and what it was to
    become.

    A norm hangs it, as `DEFERRED`, on the tensor of NaN that stands for the output in autograd's
    eyes; a layer's product that is given this tensor as its input finds it there, and takes
    `quantized` for what its quantizer makes of the output.  Copies and views of the tensor, and
    graphs that compile, have none.

    ends   indices (C, J) of elements of x, the largest and the smallest of each channel among
           them, where known
    """

    x: Tensor
    of: Affine
    ends: Tensor | None

    def quantized(self, quantizer: Quantizer, state: State | None, training: bool) -> QTensor:
        """What the quantizer, whose scale follows from the extremes alone, makes of the output.

        Its extremes are the images of x's.
        """
        assert isinstance(quantizer.format, IntFormat)
        by = channels(self.x, self.of.activation, self.of.relu)
        codes = by.codes(self.of, quantizer.format)
        if codes is None:
            output = Channels(self.x).affine(self.of, torch.float32)
            return quantizer(output, state=state, training=training)
        q = quantizer(by.images(self.of, self.ends), state=state, training=training)
        assert q.scale is not None
        elements = codes(q.scale, q.zero_point)
        space = [1] * (self.x.dim() - 2)
        scale = q.scale.view(1, 1, *space)
        zero_point = None if q.zero_point is None else q.zero_point.view(1, 1, *space)
        return QTensor(elements, scale, zero_point, q.format, tuple(elements.shape))
