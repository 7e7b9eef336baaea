"""The recipe of Banner et al. 2018 by its parts: bits, bifurcation, rounding.

Weights, inputs and layer gradients have so many bits, grad_weight takes the gradient in full
precision, as the paper's code does, and range batch-norm, of 16 parts of the batch, is in full
precision: so the bits are those of the products alone.  Bifurcation: weights are symmetric, 8 bits,
inputs 8 bits; "narrow" has grad_weight take the gradient in as few bits as grad_input, drawn anew;
"nearest" rounds it to nearest.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from experiments.confirm.study_of import EPOCHS_10, StudyOf, full
from qtrain import (
    GradInput,
    GradWeight,
    Hook,
    NormRecipe,
    Recipe,
    data,
    deviations,
    inspect,
    recipes,
)
from qtrain.data import Batches
from quantizers import IntFormat, Quantizer, minmax, nearest_even, stochastic

NORM = NormRecipe(deviation=deviations.range_(chunks=16))


class Cosines(Hook):
    """Columns: the mean cosine of tensors and themselves quantized, on the first 64 training
    images, in training mode; local, what one layer's rounding turns its own tensors by.

    cosine_forward    over layers and their two forward operands, input and weight
    cosine_backward   over layers, of the gradient of their output that enters grad_input
    """

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        found = data.load(config.data, data_dir=config.data_dir, cache_dir=config.cache_dir)
        batch = Batches(found.train, batch_size=64, seed=config.seed, augment=False)
        device = next(model.parameters()).device
        self.model, self.batch = model, [x.to(device) for x in next(iter(batch))]

    def after_epoch(self, epoch: int) -> Mapping[str, float]:
        rows = inspect(self.model, *self.batch).rows
        forward = [row.cosine for row in rows if row.role in ("input", "weight")]
        backward = [row.cosine for row in rows if row.role == "grad_output (grad_input)"]
        means = map(statistics.fmean, (forward, backward))
        return dict(zip(("cosine_forward", "cosine_backward"), means, strict=True))


def of_bits(bits: int) -> dict[str, Any]:
    """The arm of so many bits."""
    own = replace(
        recipes.banner2018(bits), name=f"{bits} bits", grad_weight=GradWeight(), norm=NORM
    )
    return {"recipe": own, "hooks": ["experiments.confirm.bits:Cosines"]}


def part(bits: int, *, narrow: bool = False, nearest: bool = False) -> Recipe:
    """The recipe with layer gradients of so many bits."""
    base = recipes.banner2018()
    gradient = Quantizer(
        format=IntFormat(bits, signed=False, symmetric=False), range=minmax,
        rounding=nearest_even if nearest else stochastic(),
    )  # fmt: skip
    return replace(
        base,
        name=f"{bits} bits" + ", narrow" * narrow + ", nearest" * nearest,
        forward=replace(base.forward, weight=Quantizer(format=IntFormat(8))),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient) if narrow else GradWeight(),
        norm=NORM,
    )


STUDIES = {
    "bits": StudyOf(
        model="resnet18",
        arms={
            "fp32 range16": full(deviations.range_(chunks=16)),
            **{f"{bits} bits": of_bits(bits) for bits in (2, 4, 6, 8)},
        },
        config=EPOCHS_10, runs=5, deviation=0.002,
    ),
    "bifurcation": StudyOf(
        model="resnet18",
        arms={
            f"{bits} bits {what}": part(bits, narrow=what == "narrow", nearest=what == "nearest")
            for bits in (8, 4)
            for what in ("whole", "narrow", "nearest")
        },
        config=EPOCHS_10, runs=6, deviation=0.002,
    ),
}  # fmt: skip
