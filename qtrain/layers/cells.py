"""Recurrent cells under a recipe: nn.RNNCell, nn.LSTMCell and nn.GRUCell.

Children `ih`, W_ih x + b_ih, and `hh`, W_hh h + b_hh, as `recurrent` has them at one time step; the
gates are torch's.  A cell that a loop calls quantizes its weights at each step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..products.module import QProduct, Shapes, shapes_of
from ..products.operations import Linear
from .gates import STEPS, State
from .recurrent import SeveralProducts


class Cell(SeveralProducts, nn.RNNCellBase):
    """The forward that the three share."""

    ih: QProduct
    hh: QProduct
    mode: str

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self._is_off:
            return super().forward(input, hx)
        if not isinstance(input, Tensor) or input.is_nested:
            self.ih.refuse("input", input)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"layer {self.ih.name!r}: input has shape {tuple(input.shape)}, need "
                f"(N, {self.input_size}) or ({self.input_size},)"
            )
        single = input.dim() == 1
        state = self._state(input, hx)
        x = input
        if single:
            x, state = x.unsqueeze(0), tuple(one.unsqueeze(0) for one in state)
        of_input = self.ih(Linear(), x, self.weight_ih, self.bias_ih)
        hidden = self.hh(Linear(), state[0], self.weight_hh, self.bias_hh)
        state = STEPS[self._mode](of_input, hidden, state)
        if single:
            state = tuple(one.squeeze(0) for one in state)
        return state if self._mode == "LSTM" else state[0]

    @property
    def _mode(self) -> str:
        return self.mode

    def _state(self, input: Tensor, hx: Any) -> State:
        """The state to begin with; RuntimeError for one of another shape."""
        count, shape = 1 + (self._mode == "LSTM"), (*input.shape[:-1], self.hidden_size)
        if hx is None:
            return (input.new_zeros(shape),) * count
        given = tuple(hx) if count == 2 else (hx,)
        if len(given) != count or any(one.shape != shape for one in given):
            raise RuntimeError(
                f"layer {self.hh.name!r}: the state has shapes "
                f"{[tuple(one.shape) for one in given]}, need {count} of {shape}"
            )
        return given

    @staticmethod
    def products(module: nn.RNNCellBase) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        weights = {"ih": module.weight_ih, "hh": module.weight_hh}
        return {name: shapes_of((1, *weight.shape)) for name, weight in weights.items()}


class QRNNCell(Cell, nn.RNNCell):
    """torch.nn.RNNCell whose products with weights follow a recipe."""

    @property
    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"


class QLSTMCell(Cell, nn.LSTMCell):
    """torch.nn.LSTMCell whose products with weights follow a recipe."""

    mode = "LSTM"


class QGRUCell(Cell, nn.GRUCell):
    """torch.nn.GRUCell whose products with weights follow a recipe."""

    mode = "GRU"
