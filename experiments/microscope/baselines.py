"""What ranks a model's parts without leaving any out: SQNR, parameters, gradient."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qtrain import SensitivityRow, inspect
from qtrain.copies import copied
from qtrain.inspection.row import SLOT_OF


def baselines(
    model: nn.Module, images: Tensor, labels: Tensor, parts: Sequence[SensitivityRow]
) -> dict[str, list[float]]:
    """name -> a number for each part, the worst the largest: how low the mean SQNR of its layer's
    operands is, its layer's number of parameters, the norm of their gradient on the batch."""
    rows = [row for row in inspect(model, images, labels).rows if row.role in SLOT_OF]
    twin = copied(model)
    twin.zero_grad(set_to_none=True)
    cross_entropy(twin(images), labels).backward()
    layers = dict(twin.named_modules())
    sqnr = {
        name: fmean(row.sqnr_db for row in rows if row.layer == name)
        for name in dict.fromkeys(row.layer for row in rows)
    }
    parameters = {part.layer: list(layers[part.layer].parameters()) for part in parts}
    counts = {name: float(sum(p.numel() for p in own)) for name, own in parameters.items()}
    norms = {
        name: sum(float(p.grad.norm()) ** 2 for p in own if p.grad is not None) ** 0.5
        for name, own in parameters.items()
    }
    return {
        "SQNR": [-sqnr[part.layer] for part in parts],
        "parameters": [counts[part.layer] for part in parts],
        "gradient": [norms[part.layer] for part in parts],
    }
