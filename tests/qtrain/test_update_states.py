"""States in few bits against what other people's optimizers gave, and the expansion of COAT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qtrain import Expanded, Update, low_precision_
from quantizers import (
    Quantizer,
    bf16,
    dynamic8,
    e4m3,
    fold,
    groups,
    random_bits,
    stochastic,
    udynamic8,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "quantizers"))
from recorded_results import Recorded, given, recorded

#: what COAT's kernels take for the range of e4m3
COAT = Expanded(format=e4m3, size=128, reach=448**2 / 2)


def coat_cases() -> list[Recorded]:
    """Without zeros: theirs count one, or not, by its lane (recorded/README.md)."""
    return [c for c in recorded("coat", step=1) if c.data != "zeros"]


@pytest.mark.parametrize("case", coat_cases(), ids=str)
def test_the_expansion_is_coats(case: Recorded) -> None:
    """Exponents are equal, values within the rounding of their fp32 powers; the first moment is
    0.1 of the gradient, which moves the center alone."""
    x = case.x * 0.1
    center, power = COAT.parts(x)
    assert torch.equal(power.flatten().float(), case["power_m"].flatten())
    torch.testing.assert_close(
        center.flatten().float(), case["center_m"].flatten(), rtol=1e-6, atol=0
    )
    y = (case["elements_m"].view(8, 128) * case["scale_m"].view(8, 1)).double()
    theirs = torch.copysign(y.abs() ** (1 / power) * case["center_m"].view(8, 1), y).float()
    # an element is 1 / 16 or more from its neighbours: a slip of one would show
    torch.testing.assert_close(COAT(x).view(8, 128), theirs, rtol=2e-6, atol=0)


def test_the_expansion_by_hand() -> None:
    """|x| from 2^-40 to 1: R = 2^40, k = floor(8 * log2(448 * 512) / 40) / 8 = 3 / 8."""
    x = torch.tensor([1.0, -(2.0**-40), 2.0**-20, 0.0])
    center, power = Expanded(size=4).parts(x)
    assert center.item() == 2.0**-20 and power.item() == 0.375
    made = Expanded(size=4)(x).double()
    assert made[3] == 0 and made[1] < 0
    # y = 2^7.5, 2^-7.5, 1 over a scale of 2^7.5 / 448, in e4m3: 448, 2^-6.19 = 0.0137 -> 7 * 2^-9
    scale = 2.0**7.5 / 448
    want = [1.0, -((7 * 2.0**-9 * scale) ** (8 / 3)) * 2.0**-20]
    np.testing.assert_allclose(made[:2].numpy(), want, rtol=1e-6)
    plain = Quantizer(format=e4m3, granularity=groups(4))(x).dequantize()
    assert plain[1] == 0 and plain[2] == 0  # what the expansion is for


def test_the_expansion_of_odd_groups() -> None:
    for x in (torch.zeros(5), torch.full((3, 50), -2.5), torch.tensor([1e-45, 3e38, 0.0]),
              torch.zeros(0)):  # fmt: skip
        made = Expanded(size=32)(x)
        assert made.shape == x.shape and made.isfinite().all()
        assert torch.equal(made == 0, x == 0) or x.numel() == 3
    assert torch.equal(Expanded()(torch.full((7,), 0.3)), torch.full((7,), 0.3))
    assert Expanded()(torch.tensor([1.0, float("nan")])).isnan().any()
    with pytest.raises(TypeError, match="FloatFormat"):
        Expanded(format="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reach"):
        Expanded(reach=0.0)


OPTIMS = {
    "fp8": ({"*": Quantizer(format=e4m3, granularity=groups(256))}, 0),
    # its maps take a tie in fp32, see recorded/README.md: another code in 6 of 24,576 states
    "8bit": (
        {
            "exp_avg": Quantizer(format=dynamic8, granularity=groups(256)),
            "exp_avg_sq": Quantizer(format=udynamic8, granularity=groups(256)),
        },
        8,
    ),
}


@pytest.mark.parametrize("kind", OPTIMS)
def test_adam_is_torchaos(kind: str) -> None:
    """Three steps; torchao's own Adam, in another order of operations, is fp32 as torch's is."""
    states, others = OPTIMS[kind]
    (case,) = recorded("torchao_optim", states=kind)
    p = nn.Parameter(given("gaussian").clone())
    adam = torch.optim.Adam([p], lr=case.settings["lr"], foreach=False)
    low_precision_(adam, Update(states=states))
    for name in case.settings["gradients"]:
        p.grad = given(name).clone()
        adam.step()
    error = (p.detach()[:16] - case["weight"]).abs()
    assert int((error > 1e-6).sum()) <= others and error.max() < 1e-3
    plain = nn.Parameter(given("gaussian").clone())
    adam = torch.optim.Adam([plain], lr=case.settings["lr"], foreach=False)
    for name in case.settings["gradients"]:
        plain.grad = given(name).clone()
        adam.step()
    # without low precision most weights are elsewhere, by more than any rounding
    assert ((plain.detach()[:16] - case["weight"]).abs() > 1e-5).float().mean() > 0.5


@pytest.mark.parametrize("case", recorded("torchao", "_fp32_to_bf16_sr")[:1], ids=str)
def test_stochastic_weights_take_torchaos_two_neighbours(case: Recorded) -> None:
    """Other noise, the same two neighbours, which differ at most by a step."""
    p = nn.Parameter(case.x.clone() * 0)
    sgd = torch.optim.SGD([p], lr=1.0)
    low_precision_(sgd, Update(weight=bf16, rounding=stochastic(16)))
    p.grad = -case.x
    sgd.step()
    theirs = case["values"]
    step = 2.0 ** (case.x.abs().log2().floor() - 7)
    assert ((p.detach() - theirs).abs() <= step).all()
    assert 0.4 < (p.detach() == theirs).float().mean() < 1


def test_the_noise_is_that_of_the_key() -> None:
    """(seed, "update", name, tensor), then the step: the bits that `random_bits` gives of it."""
    from qtrain.weights.updates.parameters import key_of

    p = nn.Parameter(torch.zeros(512))
    sgd = torch.optim.SGD([("a.b", p)], lr=1.0)
    low_precision_(sgd, Update(weight=bf16, rounding=stochastic(8)), seed=5)
    for step in range(3):
        with torch.no_grad():
            p.zero_()
        x = torch.linspace(1, 2, 512)
        p.grad = -x
        sgd.step()
        bits = random_bits(fold(key_of(5, "a.b", "weight"), step), (512,))
        steps = x.double() * 2**7
        up = (((bits >> 24) & 0xFF).double() + 0.5) / 256 < steps - steps.floor()
        assert torch.equal(p.detach().double(), (steps.floor() + up) / 2**7)
