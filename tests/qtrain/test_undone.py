"""quantize_ changes nothing of a model when an error is raised, however late."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import NormRecipe, deviations, quantize_
from qtrain.schedule import Schedule


class Net(nn.Module):
    """A linear layer, a product by a function, a norm with a ReLU, a norm that cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.behind = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
        self.other = nn.LocalResponseNorm(2)
        self.seen = 0
        self.handle = self.fc.register_forward_hook(self.see)

    def see(self, *_: Any) -> None:
        self.seen += 1

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.fc(x) @ self.fc.weight)


def of(model: nn.Module) -> Any:
    """All that a conversion changes."""
    return [
        (name, type(m), list(m._modules), list(vars(m)), len(m._forward_hooks),
         len(m._forward_pre_hooks), len(m._load_state_dict_pre_hooks))
        for name, m in model.named_modules()
    ] + [(name, p.requires_grad) for name, p in model.named_parameters()]  # fmt: skip


NONE = NormRecipe(deviation=deviations.none())


@pytest.mark.parametrize("late", ["example", "warning", "schedule"])
def test_a_late_error_leaves_the_model(late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(), torch.ones(3, 4)
    before, state = of(model), list(model.state_dict())
    given: dict[str, Any] = {"norm": NONE}
    if late == "example":
        given["example_inputs"] = torch.ones(3, 5)
    if late == "schedule":
        given["recipe"] = Schedule({0.0: "int8", 0.5: "bf16"})
        monkeypatch.setattr("qtrain.conversion.quantize.follow_", lambda *_, **__: 1 / 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if late == "warning" else "ignore")
        with pytest.raises((ValueError, UserWarning, ZeroDivisionError)):
            quantize_(model, **given)
        assert of(model) == before and list(model.state_dict()) == state
        model(x)
        assert model.seen == 1
        model.handle.remove()  # a user's hooks are his to take off
        model(x)
        assert model.seen == 1
        warnings.simplefilter("ignore")
        quantize_(model, norm=NONE, example_inputs=x)
    assert not model.behind[0].weight.requires_grad
