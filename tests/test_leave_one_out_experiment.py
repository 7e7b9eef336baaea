"""Leave-one-out against retraining: the statistics are right, the committed results are its own."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from experiments.microscope import leave_one_out as script
from qtrain import Recipe

FOLDER = Path(__file__).parents[1] / "experiments" / "microscope"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((FOLDER / "results").glob("leave_one_out_*.json"))


def test_rank_correlation_and_interval_are_the_definitions() -> None:
    x = torch.randn(15, generator=torch.Generator().manual_seed(0)).tolist()
    y = torch.randn(15, generator=torch.Generator().manual_seed(1)).tolist()
    ranks = [{v: i for i, v in enumerate(sorted(values))} for values in (x, y)]
    squares = sum((ranks[0][a] - ranks[1][b]) ** 2 for a, b in zip(x, y, strict=True))
    rho, low, high = script.spearman(x, y)
    assert rho == pytest.approx(1 - 6 * squares / (15 * (15**2 - 1)))
    assert -1 < low < rho < high < 1
    assert script.spearman(x, [3 * v + 1 for v in x])[0] == pytest.approx(1)
    assert script.spearman(x, [4.0] * 15) == (0.0, -1.0, 1.0)
    # ranks 0.5, 0.5, 2, 3 and 0, 1, 2.5, 2.5
    assert script.spearman([1, 1, 2, 3], [4, 5, 6, 6])[0] == pytest.approx(4 / 4.5)


def test_a_run_is_looked_at_and_put_back_parts_train_better(monkeypatch: Any) -> None:
    whole = script.batches
    monkeypatch.setattr(script, "batches", lambda *args: list(islice(whole(*args), 8)))
    monkeypatch.setattr(script, "EPOCHS", 1)
    monkeypatch.setattr(script, "BATCHES", 1)
    monkeypatch.setattr(script, "POINTS", (0.5,))
    ((report, found),) = script.looked(0, "layer")
    assert len(report.rows) == 8
    sizes = [72, 576, 1152, 2304, 4608, 9216, 128 * 32 + 32, 32 * 10 + 10]
    assert found["parameters"] == sizes and min(found["gradient"]) > 0
    # 2, 3 and 3 bits are the worst three of 2 to 8
    assert {sorted(found["SQNR"], reverse=True).index(found["SQNR"][i]) for i in (1, 3, 5)} == {
        0, 1, 2,
    }  # fmt: skip
    assert script.trained(0, dict.fromkeys(script.BITS, Recipe(name="off"))) < script.trained(0, {})


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_committed_correlations_are_those_of_the_committed_runs(path: Path) -> None:
    committed = json.loads(path.read_text())
    assert committed["setting"]["primary"] == script.PRIMARY
    assert committed["recipes"] == {a: str(script.recipe(b)) for a, b in script.BITS.items()}
    truth = [fmean(own) for own in committed["falls"]]
    assert len(committed["parts"]) == len(truth)
    by_bits = script.spearman(truth, [-float(bits) for bits in script.BITS.values()])
    assert f"gives **{by_bits[0]:.2f}** [{by_bits[1]:.2f}, {by_bits[2]:.2f}]" in README
    for name, scores in committed["scores"].items():
        assert list(script.spearman(truth, scores)) == pytest.approx(committed["spearman"][name])


def test_equal_bits_are_those_of_every_layer() -> None:
    subject = script.equal(4)
    assert set(subject.bits.values()) == {4} and len(subject.bits) == 37
    model = script.quantized(0, {}, subject)
    assert len([m for m in model.modules() if type(m).__name__ in ("QConv2d", "QLinear")]) == 37
