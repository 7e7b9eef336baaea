"""Norms of no torch class that compute a LayerNorm or an RMSNorm, with a choice of deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .module import QNorm
from .recognised.form import Written
from .recognised.recognise import recognised
from .row import QLastAxes


def form_of(module: nn.Module) -> Written:
    """The form of a norm that has one, converted or not."""
    found = vars(module).get("norm_form") or recognised(module)
    assert isinstance(found, Written)
    return found


class QWritten(QLastAxes):
    """What stands before the class of a norm that has a form (`Written`): its forward is that of
    the form, under a NormRecipe, in the dtype that its own returns."""

    norm_form: Written

    @classmethod
    def sizes(cls, module: nn.Module) -> tuple[int, ...]:
        return form_of(module).sizes

    def scale_and_shift(self) -> tuple[Tensor | None, Tensor | None]:
        form = self.norm_form
        scale, shift = (
            None if name is None else getattr(self, name).view(form.sizes)
            for name in (form.scale, form.shift)
        )
        return scale if scale is None or not form.offset else scale + form.offset, shift

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == 0:
            empty: Tensor = super(QNorm, self).forward(input)
            return empty
        first = self.norm_form.first
        if first and input.dim() != 4:
            raise ValueError(
                f"{type(self).__name__}: got an input of {tuple(input.shape)}, need (N, C, H, W)"
            )
        output = self.followed(input.movedim(1, -1) if first else input)
        output = output.movedim(-1, 1) if first else output
        for name in self.norm_form.behind:
            output = getattr(self, name)(output)
        return output

    @property
    def _widened(self) -> bool:
        return self.norm_form.widened

    def _eps(self) -> float | None:
        own = self.norm_form.eps
        value: float | None = getattr(self, own) if isinstance(own, str) else own
        return value

    def _output_dtype(self, input: Tensor) -> torch.dtype:
        form = self.norm_form
        name = form.scale or form.shift
        own: torch.dtype | None = None if name is None else getattr(self, name).dtype
        return form.dtypes.get((own, input.dtype), input.dtype)


class QWrittenLayerNorm(QWritten):
    """One that subtracts the mean."""


class QWrittenRMSNorm(QWritten):
    """One that does not."""

    centered = False
