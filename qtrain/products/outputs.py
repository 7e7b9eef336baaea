"""What a layer hands on: the output of its forward product in the recipe's activation.

Blocks along the sum, `quantizers.blocks`, lie in the rows that a layer behind would sum over:

    linear layers      tokens x features, all leading axes one, in C order
    convolutions       (sample, place) x channels, of all groups
    matrix products    each matrix of the batch, rows x columns
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import FloatFormat, QTensor, fold, round_to
from quantizers.protocol import quantized
from quantizers.ranges.rules import State

from ..layer_state import rank
from ..recipe import OPERANDS, OUTPUT
from .call import Call, located
from .operations import BatchedMatmul, Operation

#: what numbers the noise of outputs, beside that of operands and transforms: less the rank
_NOISE = -1 - len(OPERANDS)


def handed_on(call: Call, output: Tensor, key: Tensor | None) -> tuple[Tensor, QTensor | None]:
    """The output as it is handed on, and, of a quantizer, what it is the value of.

    output: as it was computed, fp32 as a rule; key: the forward's.
    """
    activation = call.recipe.activation
    assert activation is not None
    if isinstance(activation, FloatFormat):
        return round_to(output, activation), None
    slot = call.recipe.slots[OUTPUT]
    x = rows(call.operation, output) if slot.cut else output
    if key is not None and slot.noisy:
        key = fold(key, _NOISE - rank())
    try:
        state = call.states.get(OUTPUT, {})
        q = quantized(activation, x, state=state, key=key, training=call.training)
    except (TypeError, ValueError) as error:
        raise located(error, "output of forward") from error
    found = q.dequantize()
    return (restored(call.operation, found, output) if slot.cut else found), q


def passed_back(call: Call, grad: Tensor, output: Tensor, state: State) -> Tensor:
    """The gradient through the output's quantizer, which has a backward of its own.

    output: as it was computed; state: the quantizer's of then.
    """
    if not call.recipe.slots[OUTPUT].cut:
        return call.own_backward("output", grad, output, state, None)[0]
    grad, x = rows(call.operation, grad), rows(call.operation, output)
    return restored(call.operation, call.own_backward("output", grad, x, state, None)[0], output)


def rows(operation: Operation, output: Tensor) -> Tensor:
    """An output as matrices whose last axis is its features."""
    if isinstance(operation, BatchedMatmul):
        return output
    features = operation.channel_axis(output.dim())
    return output.movedim(features, -1).flatten(0, -2)


def restored(operation: Operation, rows: Tensor, like: Tensor) -> Tensor:
    """What these are the rows of, laid out as `like` and no view, which layers behind may change in
    place."""
    if isinstance(operation, BatchedMatmul):
        return rows
    features = operation.channel_axis(like.dim())
    kept = [*like.shape[:features], *like.shape[features + 1 :], like.shape[features]]
    return torch.empty_like(like, dtype=rows.dtype).copy_(rows.reshape(kept).movedim(-1, features))
