"""What recurrent layers do between their products: torch's gates, in torch's own arithmetic.

Each step function takes what the two products gave, of the input and of the hidden state, biases
included, and the state before, (rows, features) each; it returns the state behind: the hidden one,
and of an LSTM the cell's.  The order of the operations is that of torch's CPU kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: (hidden,), or of an LSTM (hidden, cell)
State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


def tanh(input: Tensor, hidden: Tensor, state: State) -> State:
    """h' = tanh(input + hidden)"""
    return (torch.tanh(hidden + input),)


def relu(input: Tensor, hidden: Tensor, state: State) -> State:
    """h' = relu(input + hidden)"""
    return (torch.relu(hidden + input),)


def lstm(input: Tensor, hidden: Tensor, state: State) -> State:
    """i, f, g, o = input + hidden; c' = sigma(f) c + sigma(i) tanh(g); h' = sigma(o) tanh(c')"""
    i, f, g, o = (hidden + input).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru(input: Tensor, hidden: Tensor, state: State) -> State:
    """r, z = sigma(input + hidden); n = tanh(input + r hidden); h' = n + z (h - n)"""
    size = hidden.shape[-1] // 3
    gates = (hidden[..., : 2 * size] + input[..., : 2 * size]).sigmoid()
    reset, update = gates.chunk(2, -1)
    new = (input[..., 2 * size :] + reset * hidden[..., 2 * size :]).tanh()
    return ((state[0] - new) * update + new,)


#: by nn.RNNBase.mode
STEPS: dict[str, Step] = {"RNN_TANH": tanh, "RNN_RELU": relu, "LSTM": lstm, "GRU": gru}
