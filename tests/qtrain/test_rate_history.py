"""Effective step sizes over a run: against the norms by hand, kept, restored and plotted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qtrain import CorrectedSteps, EffectiveRates, channel_norms


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate)


def test_rows_are_quartiles_of_the_rate_over_the_squared_norms() -> None:
    model = network()
    optimizer = sgd(model)
    rates = EffectiveRates(model, optimizer, skip=["4"])
    for step, rate in ((0, 0.1), (10, 0.01)):
        optimizer.param_groups[0]["lr"] = rate
        rates.record(step)
    squares = sorted(float(channel.detach().square().sum()) for channel in model[0].weight)
    assert [(row.step, row.weight) for row in rates.rows] == [(0, "0.weight"), (10, "0.weight")]
    for row, rate in zip(rates.rows, (0.1, 0.01), strict=True):
        by_hand = sorted(rate / square for square in squares)  # of 8: those with 2, 4, 6 below
        assert [row.low, row.median, row.high] == pytest.approx([by_hand[i] for i in (1, 3, 5)])


def test_the_rate_falls_as_the_weights_grow() -> None:
    model = network()
    rates = EffectiveRates(model, sgd(model))
    rates.record(0)
    with torch.no_grad():
        model[0].weight.mul_(2)
    rates.record(1)
    conv = [row for row in rates.rows if row.weight == "0.weight"]
    assert conv[1].median == pytest.approx(conv[0].median / 4)


def test_corrected_steps_have_the_rates_of_the_decayed_run() -> None:
    decayed, free = network(), network()
    with torch.no_grad():
        free[0].weight.mul_(3)  # eq. 4: eta ||w||^2 / ||w_decayed||^2 / ||w||^2
    optimizer = sgd(free)
    correction = CorrectedSteps(optimizer, free, channel_norms(decayed, only=["0"]))
    torch.testing.assert_close(correction.ratios()["0.weight"], torch.full((8,), 9.0))
    rates = EffectiveRates(free, optimizer, correction=correction)
    other = EffectiveRates(decayed, sgd(decayed))
    rates.record(0)
    other.record(0)
    for one, two in zip(rates.rows, other.rows, strict=True):
        assert one[2:] == pytest.approx(two[2:])


def test_a_record_is_of_the_same_size_however_many_channels() -> None:
    wide = nn.Linear(3, 1000)
    rates = EffectiveRates(wide, sgd(wide))
    rates.record(0)
    assert len(json.dumps(rates.state_dict())) < 200


def test_state_is_plain_data_and_goes_on(tmp_path: Path) -> None:
    model = network()
    rates = EffectiveRates(model, sgd(model))
    rates.record(0)
    torch.save(rates.state_dict(), tmp_path / "state.pt")
    again = EffectiveRates(model, sgd(model))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.rows == rates.rows
    with pytest.raises(ValueError, match=r"step: got 0, need more than the last, 0"):
        again.record(0)
    again.record(1)
    assert len(again.rows) == 4


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_plot_shows_every_layer_and_repeats(kind: str, tmp_path: Path) -> None:
    model = network()
    rates = EffectiveRates(model, sgd(model))
    with pytest.raises(ValueError, match=r"nothing to plot"):
        rates.plot(tmp_path / "none.png")
    rates.record(0)
    with torch.no_grad():
        model[4].weight[0] = 0  # one dead channel: its rate is infinite, the quartiles are not
        model[0].weight.zero_()
    rates.record(1)
    last = {row.weight: row for row in rates.rows[2:]}
    assert math.isinf(last["0.weight"].low) and math.isfinite(last["4.weight"].median)
    path = tmp_path / f"rates.{kind}"
    rates.plot(path)
    if kind == "svg":
        text = path.read_text()
        assert "0.weight" in text and "4.weight" in text and "<dc:date>" not in text
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["rates.pdf", "rates", "rates.png.gz"])
def test_a_plot_of_another_ending_is_refused(name: str, tmp_path: Path) -> None:
    model = network()
    rates = EffectiveRates(model, sgd(model))
    rates.record(0)
    with pytest.raises(ValueError, match=rf"plot: got .*{name}.*, need a path that ends in \.png"):
        rates.plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    rates.plot(tmp_path / "rates.SVG")
    assert "<dc:date>" not in (tmp_path / "rates.SVG").read_text()


def test_what_cannot_be_recorded_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"it trains none of the model's weights"):
        EffectiveRates(model, sgd(network()))
    with pytest.raises(ValueError, match=r"only: 'fc' matches no layer"):
        EffectiveRates(model, sgd(model), only=["fc"])
    with pytest.raises(TypeError, match=r"only: got '0', need a list"):
        EffectiveRates(model, sgd(model), only="0")
    with pytest.raises(TypeError, match=r"step: got 1.5, need an integer"):
        EffectiveRates(model, sgd(model)).record(1.5)  # type: ignore[arg-type]
