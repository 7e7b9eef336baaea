"""Recurrent layers under a recipe: nn.RNN, nn.LSTM and nn.GRU, in every form that torch has.

Simulated are the products with the weights, each a child of the layer, of every layer k (and
`_reverse` for the second direction):

    ih_l<k>   W_ih x + b_ih, one product over all time steps; its rows are tokens, those of a time
              step beside one another, as in the data of a PackedSequence
    hh_l<k>   W_hh h + b_hh, a product a step; its rows are the sequences that still run
    hr_l<k>   W_hr h, with proj_size, a product a step

Not simulated: the gates' sums, sigmoids and tanhs, the products of gates and states, element by
element, and dropout, in torch's arithmetic (`gates`), in the dtype that torch's promotion gives
what the products hand on and the states.

Every product is a layer that is called at each step: noise counts on, running ranges move, a
dynamic scale is that of the step.  A weight is quantized once a forward where its quantizer draws
no noise and keeps no state (`Held`).  Gradients of a weight are one product a step, added up by
autograd, the last step's first.

A PackedSequence has no padding, and none enters a scale: with a scale for each row, a sequence has
the bits that it has alone, whatever it is packed with.  Sequences that are padded and not packed
are, as in torch, sequences of that length: their padding counts in every scale that rows share.

On a CPU a step of training takes two to three times that of torch's own kernel for int8
(docs/measurements.md).

torch.compile makes no graph of an nn.RNN, nn.LSTM or nn.GRU; it leaves them out, and a converted
one runs as ever between the graphs (with torch._dynamo.config.allow_rnn it traces them, step by
step).  `cells` compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ..products.held import Held
from ..products.module import QProduct, Shapes, recipe_names, shapes_of
from ..products.operations import Linear
from .gates import STEPS, State

#: what torch.compile waits with for the functions that this thread calls; None, False: it does not
_callback = torch._C._dynamo.eval_frame.get_eval_frame_callback


class SeveralProducts:
    """A layer whose children are its products."""

    @property
    def _products(self: Any) -> list[QProduct]:
        return [child for child in self.children() if isinstance(child, QProduct)]

    @property
    def _is_off(self) -> bool:
        return all(product.recipe.products_off for product in self._products)

    def reset_parameters(self: Any) -> None:
        """torch's, which draws what is below the layer: but what its quantizers learn stays."""
        learned = {id(p) for product in self._products for p in product.parameters()}
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            if id(parameter) not in learned:
                nn.init.uniform_(parameter, -bound, bound)

    def __repr__(self: Any) -> str:
        """One line: torch's own, and the names of the recipes."""
        return f"{type(self).__name__}({self.extra_repr()}; {recipe_names(self)})"


class Recurrent(SeveralProducts, nn.RNNBase):
    """The forward that nn.RNN, nn.LSTM and nn.GRU share."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self._is_off:
            return super().forward(input, hx)
        if not torch.compiler.is_compiling() and _callback() not in (None, False):
            return torch.compiler.disable(self._forward)(input, hx)  # between the graphs
        return self._forward(input, hx)

    def _forward(self, input: Any, hx: Any) -> Any:
        self._update_flat_weights()
        packed = isinstance(input, PackedSequence)
        single = not packed and isinstance(input, Tensor) and input.dim() == 2
        x = input.data if packed else input
        if single:
            x = x.unsqueeze(0 if self.batch_first else 1)
        self._check(x, 2 if packed else 3)
        begin = self._begin(x, hx, input.batch_sizes if packed else None, single)
        if packed:
            sizes = input.batch_sizes.tolist()
            if input.sorted_indices is not None:
                begin = tuple(state.index_select(1, input.sorted_indices) for state in begin)
        else:
            x = x.transpose(0, 1) if self.batch_first else x
            shape = x.shape[:2]
            sizes, x = [shape[1]] * shape[0], x.flatten(0, 1)
        x, end = self._layers(x, sizes, begin)
        if packed:
            if input.unsorted_indices is not None:
                end = tuple(state.index_select(1, input.unsorted_indices) for state in end)
            output: Any = PackedSequence(
                x, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
        else:
            output = x.unflatten(0, shape)
            output = output.transpose(0, 1) if self.batch_first else output
            if single:
                output = output.squeeze(0 if self.batch_first else 1)
                end = tuple(state.squeeze(1) for state in end)
        return output, end if self.mode == "LSTM" else end[0]

    def _check(self, x: object, dims: int) -> None:
        """TypeError, ValueError or RuntimeError for an input that is none."""
        product = self._products[0]
        if not isinstance(x, Tensor) or x.is_nested:
            product.refuse("input", x)
        if x.dim() != dims or x.shape[-1] != self.input_size:
            need = "(L, N, in), (N, L, in) with batch_first, or (L, in)"
            raise ValueError(
                f"layer {product.name!r}: input has shape {tuple(x.shape)}, need "
                f"{'(tokens, in)' if dims == 2 else need}, in = {self.input_size}"
            )
        if x.dim() == 3 and x.shape[1 if self.batch_first else 0] == 0:
            raise RuntimeError(
                f"layer {product.name!r}: a recurrent layer needs sequences of at least one step, "
                f"got an input of shape {tuple(x.shape)}"
            )

    def _begin(self, x: Tensor, hx: Any, batch_sizes: Tensor | None, single: bool) -> State:
        """The initial states, (layers * directions, N, features) each, of the sequences as given.

        RuntimeError for those of another shape, as torch's.
        """
        shapes = [self.get_expected_hidden_size(x, batch_sizes)]
        if isinstance(self, nn.LSTM):
            shapes.append(self.get_expected_cell_size(x, batch_sizes))
        if hx is None:
            return tuple(x.new_zeros(shape) for shape in shapes)
        given = tuple(hx) if isinstance(self, nn.LSTM) else (hx,)
        if single:
            if any(state.dim() != 2 for state in given):
                raise RuntimeError(
                    f"layer {self._products[0].name!r}: for an input without a batch axis the "
                    f"states need none, got shapes {[tuple(state.shape) for state in given]}"
                )
            given = tuple(state.unsqueeze(1) for state in given)
        for state, shape in zip(given, shapes, strict=True):
            self.check_hidden_size(state, shape)
        return given

    def _layers(self, x: Tensor, sizes: Sequence[int], begin: State) -> tuple[Tensor, State]:
        """x: (tokens, in), `sizes` of them at each step -> (tokens, out), the last states."""
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in _suffixes(layer, self.bidirectional):
                own = tuple(state[len(last)] for state in begin)
                output, state = self._direction(suffix, x, sizes, own)
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, 1) if self.bidirectional else outputs[0]
        return x, tuple(torch.stack(states) for states in zip(*last, strict=True))

    def _direction(
        self, suffix: str, x: Tensor, sizes: Sequence[int], begin: State
    ) -> tuple[Tensor, State]:
        """One layer in one direction."""
        weights = dict(zip(self._flat_weights_names, self._flat_weights, strict=True))
        ih, hh, hr = (self._modules.get(f"{name}_{suffix}") for name in ("ih", "hh", "hr"))
        assert ih is not None and hh is not None
        linear, step = Linear(), STEPS[self.mode]
        weight, bias = weights[f"weight_hh_{suffix}"], weights.get(f"bias_hh_{suffix}")
        of_input = ih(linear, x, weights[f"weight_ih_{suffix}"], weights.get(f"bias_ih_{suffix}"))
        gates = list(of_input.split(sizes))
        if reverse := suffix.endswith("_reverse"):
            gates.reverse()
        held: Held = {}
        held_hr: Held = {}
        state = tuple(each[: gates[0].shape[0]] for each in begin)
        ended: list[State] = []
        outputs: list[Tensor] = []
        for each in gates:
            running, rows = state[0].shape[0], each.shape[0]
            if rows < running:
                ended.append(tuple(one[rows:] for one in state))
                state = tuple(one[:rows] for one in state)
            elif rows > running:
                joining = (one[running:rows] for one in begin)
                state = tuple(map(torch.cat, zip(state, joining, strict=True)))
            state = step(each, hh(linear, state[0], weight, bias, held), state)
            if hr is not None:
                hidden = hr(linear, state[0], weights[f"weight_hr_{suffix}"], None, held_hr)
                state = (hidden, *state[1:])
            outputs.append(state[0])
        if ended:
            state = tuple(map(torch.cat, zip(state, *reversed(ended), strict=True)))
        if reverse:
            outputs.reverse()
        return torch.cat(outputs), state

    @staticmethod
    def products(module: nn.RNNBase) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        found: dict[str, Shapes] = {}
        for layer in range(module.num_layers):
            for suffix in _suffixes(layer, module.bidirectional):
                for name in ("ih", "hh", "hr"):
                    weight = getattr(module, f"weight_{name}_{suffix}", None)
                    if weight is not None:
                        found[f"{name}_{suffix}"] = shapes_of((1, *weight.shape))
        return found


def _suffixes(layer: int, bidirectional: bool) -> list[str]:
    """How torch ends the names of a layer's parameters, of each direction."""
    return [f"l{layer}", f"l{layer}_reverse"][: 1 + bidirectional]


class QRNN(Recurrent, nn.RNN):
    """torch.nn.RNN whose products with weights follow a recipe."""


class QLSTM(Recurrent, nn.LSTM):
    """torch.nn.LSTM whose products with weights follow a recipe."""


class QGRU(Recurrent, nn.GRU):
    """torch.nn.GRU whose products with weights follow a recipe."""
