"""A norm's output that is left to the layer behind it, which makes codes of the norm's input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor, Quantizer
from quantizers.ranges import State

from .normalize import channels
from .passes import Affine, Channels, flat_index

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

        Every channel of it is a monotone function of x, rounding included, so its extremes are
        the images of x's.
        """
        assert isinstance(quantizer.format, IntFormat)
        by = channels(self.x, self.of.activation, self.of.relu)
        codes = by.codes(self.of, quantizer.format)
        images = Channels(self.x if codes is None else self._extremes())
        q = quantizer(images.affine(self.of, torch.float32), state=state, training=training)
        if codes is None:
            return q
        assert q.scale is not None
        elements = codes(q.scale, q.zero_point)
        space = [1] * (self.x.dim() - 2)
        scale = q.scale.view(1, 1, *space)
        zero_point = None if q.zero_point is None else q.zero_point.view(1, 1, *space)
        return QTensor(elements, scale, zero_point, q.format, tuple(elements.shape))

    def _extremes(self) -> Tensor:
        """Each channel's smallest and largest x (2, C)."""
        rows = self.x.reshape(self.x.shape[0], self.x.shape[1], -1)
        if self.ends is None:
            return torch.stack([rows.amin((0, 2)), rows.amax((0, 2))])
        known = rows[flat_index(self.ends, rows.shape[2])]
        return torch.stack([known.amin(1), known.amax(1)])
