"""Events for TensorBoard hold what was recorded, at its step."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from page_cases import OPERANDS, names, record
from training_cases import quiet, small

from qtrain import to_tensorboard, train
from qtrain.cli import main
from qtrain.inspection.distributions import VALUE_BINS, value_counts
from qtrain.inspection.figures import FIGURES
from qtrain.inspection.row import ROLES
from qtrain.inspection.tensorboard import _value_edges


def read(folder: Path) -> Any:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return found.Reload()


def test_scalars_and_histograms_read_back_as_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    made = record(names(3), records=4)
    metrics = [*made.steps, *made.epochs]
    to_tensorboard(made.monitor, tmp_path, metrics=metrics)
    events = read(tmp_path / "quantized")
    for row in made.monitor:
        for figure in (figure.name for figure in FIGURES if figure.event):
            (event,) = (
                e for e in events.Scalars(f"{figure}/{row.layer}/{row.role}") if e.step == row.step
            )
            assert event.value == pytest.approx(getattr(row, figure), rel=1e-6)
        (histogram,) = (
            e.histogram_value
            for e in events.Histograms(f"values/{row.layer}/{row.role}")
            if e.step == row.step
        )
        assert histogram.num == sum(row.values)
        # empty bins at both ends are left out
        assert [n for n in histogram.bucket if n] == [n for n in row.values if n]
    tags = {tag.split("/")[-1] for tag in events.Tags()["histograms"] if tag.startswith("codes/")}
    assert tags == set(OPERANDS) < set(ROLES)
    for branch in ("baseline", "quantized"):
        found = read(tmp_path / branch)
        loss = {e.step: e.value for e in found.Scalars("run/loss")}
        own = [line for line in made.steps if line["branch"] == branch]
        assert loss == pytest.approx({line["step"]: line["loss"] for line in own})
        lost = {e.step: e.value for e in found.Scalars("run/grad_norm")}
        assert math.isnan(lost[700]) and lost[710] == 1.0
        assert len(found.Scalars("run/test_accuracy")) == 5


def test_every_value_lies_between_the_edges_of_its_bin() -> None:
    edges = _value_edges()
    assert len(edges) == VALUE_BINS + 1 and edges == sorted(edges)
    for value in (0.0, 1.0, -1.0, 1.99, -3.0, 2.0**-32, -(2.0**-31), 40000.0, 2.0**-20):
        (place,) = value_counts(torch.tensor([value])).nonzero().flatten().tolist()
        assert edges[place] <= value <= edges[place + 1]


def test_the_command_writes_events_beside_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    train(small(tmp_path, monitor=5), say=quiet)
    arguments = ["report", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "events")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "events")
    assert {path.name for path in (tmp_path / "events").iterdir()} == {"baseline", "quantized"}
    assert main(arguments) == 2
    assert "holds events already" in capsys.readouterr().err


def test_without_the_package_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'qtrain\[tensorboard\]'"):
        to_tensorboard(record(names(1)).monitor, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is recorded"):
        to_tensorboard((), tmp_path)


@pytest.mark.parametrize("branch", ["../out", "/out", "", "a/b"])
def test_a_branch_cannot_leave_the_folder(branch: str, tmp_path: Path) -> None:
    line = {"kind": "step", "step": 0, "branch": branch, "loss": 1.0, "grad_norm": 1.0}
    with pytest.raises(ValueError, match="tensorboard: got a branch"):
        to_tensorboard([], tmp_path / "events", metrics=[line])
    assert not list(tmp_path.iterdir())
