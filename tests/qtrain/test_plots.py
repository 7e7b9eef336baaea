"""Every plot returns its figure, draws into an Axes where it can, and is written where asked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from page_cases import names, record
from torch import nn

from qtrain import EffectiveRates, Report, cost, inspect, quantize
from qtrain.inspection.rows import heats
from qtrain.reports import heat
from qtrain.reports.heat import COLOURS, Heat, heat_of, plot_heats
from qtrain.training.compare import Comparison
from qtrain.training.pairs import Losses

X = torch.randn(5, 6)


def network() -> nn.Module:
    return quantize(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))


def report() -> Report:
    return inspect(network(), X, torch.arange(5) % 4)


def of_report() -> Callable[..., Figure]:
    return report().plot


def of_costs() -> Callable[..., Figure]:
    errors = report()
    costs = cost(network(), X)
    return lambda *path, **ax: costs.plot(errors, *path, **ax)


def of_rates() -> Callable[..., Figure]:
    model = network()
    rates = EffectiveRates(model, torch.optim.SGD(model.parameters(), lr=0.1))
    rates.record(0)
    return rates.plot


def of_comparison() -> Callable[..., Figure]:
    one = record(names(2))
    same = Losses(steps=1, differs=None)
    found = Comparison(
        a=one, b=one, settings={}, versions={}, same_samples=True,
        losses={"quantized": same},
        accuracy={}, errors=(),
    )  # fmt: skip
    return found.plot


def of_heats() -> Callable[..., Figure]:
    made = record(names(3), records=4)
    maps = heats(made.monitor, made.errors.layers, ["weight"])
    return lambda *path, **ax: plot_heats(maps, *path, **ax)


@pytest.mark.parametrize("make", [of_report, of_costs, of_rates, of_comparison, of_heats])
def test_a_plot_is_a_figure_a_file_or_in_an_axes(make: Any, tmp_path: Path) -> None:
    plot = make()
    alone = plot()
    assert isinstance(alone, Figure) and len(alone.axes) == 1
    left, right = (mine := Figure()).subplots(1, 2)
    assert plot(tmp_path / "a.png", ax=right) is mine
    assert not left.has_data() and right.has_data() and right.get_legend() is not None
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    inner = mine.subfigures(1, 2)[0].subplots()
    assert plot(ax=inner) is mine
    with pytest.raises(TypeError, match=r"ax: got 'left'.* need an Axes of matplotlib"):
        plot(ax="left")
    with pytest.raises(ValueError, match=r"plot: got .*a\.pdf"):
        plot(tmp_path / "a.pdf", ax=right)


def test_several_panels_do_not_fit_an_axes() -> None:
    made = record(names(3), records=4)
    maps = heats(made.monitor, made.errors.layers, ["weight", "grad_weight"])
    with pytest.raises(ValueError, match=r"ax: got one for 2 panels \(weight, grad_weight\)"):
        plot_heats(maps, ax=Figure().subplots())
    assert len(plot_heats(maps).axes) == 2


def test_a_map_holds_the_last_record_of_each_layer() -> None:
    rows = [(0, "a", 50.0), (10, "b", 4.0), (20, "a", math.nan), (30, "b", 12.0)]
    found = heat_of("weight", ["a", "b", "c"], [0, 10, 30], rows)
    assert found.values["b"] == [None, 4.0, 12.0] and found.values["c"] == [None] * 3
    assert found.values["a"][:2] == [50.0, 50.0] and math.isnan(found.values["a"][2] or 0)
    assert found.paths() == {
        "h0": "M0 0h2v1h-2z", "nan": "M2 0h1v1h-1z", "h6": "M1 1h1v1h-1z", "h4": "M2 1h1v1h-1z",
    }  # fmt: skip


def test_a_picture_shows_each_cell_in_its_colour_at_its_step() -> None:
    values = {"first": [41.0, 3.0], "last": [None, math.nan]}
    shown = Heat(title="weight", steps=[0, 70], layers=["first", "last"], values=values)
    ax = Figure().subplots()
    plot_heats([shown], ax=ax)
    (mesh,) = ax.collections
    mesh.update_scalarmappable()  # type: ignore[attr-defined]
    colours = mesh.get_facecolor().reshape(2, 2, 4)  # type: ignore[union-attr]

    def hexed(cell: Any) -> str:
        return "#" + "".join(f"{round(255 * part):02x}" for part in cell[:3])

    assert [hexed(cell) for cell in colours[0]] == [COLOURS["h0"], COLOURS["h6"]]
    assert hexed(colours[1, 1]) == COLOURS["nan"] and colours[1, 0, 3] == 0
    assert ax.get_xlim() == (0, 140) and ax.get_ylim() == (2, 0)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "last"]


def test_columns_are_thinned_to_the_last_record() -> None:
    made = record(names(1), records=10)
    (whole,) = heats(made.monitor, made.errors.layers, ["weight"])
    (thin,) = heats(made.monitor, made.errors.layers, ["weight"], 4)
    assert len(thin.steps) == 4 and thin.steps[-1] == whole.steps[-1]
    (layer,) = whole.layers
    known = dict(zip(whole.steps, whole.values[layer], strict=True))
    assert list(thin.values[layer]) == [known[step] for step in thin.steps]


def test_the_colours_are_those_of_the_page() -> None:
    css = (Path(heat.__file__).parent / "page" / "report.css").read_text()
    light = css[: css.index("@media")]
    assert COLOURS == {**dict(re.findall(r"--(h\d): (#\w+)", light)), "nan": "#000000"}


def test_the_page_has_a_map_a_role() -> None:
    from qtrain.training.page import render

    made = record(names(3), records=4)
    text = render(made)
    roles = {row.role for row in made.monitor}
    assert text.count('<svg class="map"') == len(roles)
    assert "<title>SQNR of grad_weight by step</title>" in text
