"""Loggers get every line once, however a run ends and goes on, and none can end it."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_cases import assert_same_run, lines, quiet, small

import qtrain.training.run
from qtrain import Logger, train
from qtrain.inspection.tensorboard import at
from qtrain.training.loggers.logger import Loggers
from qtrain.training.loggers.named import LOGGERS
from qtrain.training.loggers.weights_and_biases import WeightsAndBiases
from qtrain.training.metrics import read_metrics
from qtrain.training.study.planned import planned


class Kept(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.calls: list[Any] = []

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self.calls.append((folder, config["recipe"], step))

    def log(self, line: Mapping[str, Any]) -> None:
        self.lines.append({**line})

    def close(self) -> None:
        self.calls.append("closed")


class Killed(BaseException):
    pass


class Kills(Logger):
    """Ends a run in its second epoch, after the checkpoint of step 6."""

    def log(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 8 and line["branch"] == "quantized":
            raise Killed


class Wandb(SimpleNamespace):
    """The calls of wandb that are used, and what its server keeps: of each run its rows, a row once
    a later one, or the end, has come."""

    def __init__(self) -> None:
        super().__init__(asked=[], runs={}, twice=[])

    def Settings(self, **settings: Any) -> Any:
        return settings

    def init(self, **settings: Any) -> Any:
        self.asked.append(settings)
        return Run(self, self.runs.setdefault(settings["id"], {}))


class Run:
    def __init__(self, wandb: Wandb, rows: dict[int, dict[str, Any]]) -> None:
        self.wandb, self.rows, self.open = wandb, rows, dict[str, Any]()
        self.step = -1

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if step > self.step:
            self.commit()
        self.step = step
        both = self.open.keys() & values.keys()
        self.wandb.twice += [(step, name) for name in both if self.open[name] != values[name]]
        self.open |= values

    def commit(self) -> None:
        if self.step in self.rows:
            self.wandb.twice.append(self.step)
        if self.open:
            self.rows[self.step] = self.open
        self.open = {}

    def finish(self) -> None:
        self.commit()


#: bf16 from the eighth step on, which the killed run did not reach
SETTINGS: dict[str, Any] = {"monitor": 3, "checkpoint_every": 6, "switch": ("8:bf16",)}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wandb]:
    """The folder of a run that was killed and resumed, with a line for every step."""
    path, wandb = tmp_path_factory.mktemp("cut"), Wandb()
    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    settings = {**SETTINGS, "log": ("tensorboard", "wandb")[not has_tensorboard :]}
    old = path / "run" / "tensorboard" / "quantized" / "events.out.tfevents.1.old"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of a run that was overwritten")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qtrain.training.run, "LOG_STEPS", 1)
        patch.setitem(sys.modules, "wandb", wandb)
        patch.setenv("WANDB_PROJECT", "mine")
        with pytest.raises(Killed):
            train(small(path, **settings), loggers=[Kills()], say=quiet)
        train(small(path, resume=True, **settings), say=quiet)
    return path / "run", wandb


def test_a_logger_gets_the_lines_of_the_metrics_and_the_monitor(tmp_path: Path) -> None:
    kept = Kept()
    result = train(small(tmp_path, monitor=3, epochs=1), loggers=[kept], say=quiet)
    assert kept.calls == [(tmp_path / "run", "int8", 0), "closed"]
    errors = [line for line in kept.lines if line["kind"] == "monitor"]
    assert [line for line in kept.lines if line not in errors] == read_metrics(
        result.folder.metrics
    )
    assert result.monitor is not None
    rows = [{"kind": "monitor", "branch": "quantized", **vars(row)} for row in result.monitor.rows]
    assert errors == rows and len(rows) > 9
    again = Kept()  # without a line nothing is begun
    Loggers([again], tmp_path, {}, 0).close()
    assert again.calls == again.lines == []


def test_a_logger_that_fails_is_left_out_and_the_run_is_the_same(tmp_path: Path) -> None:
    class Fails(Kept):
        def log(self, line: Mapping[str, Any]) -> None:
            super().log(line)
            line.clear()  # type: ignore[attr-defined]
            raise RuntimeError("no network")

    fails, kept = Fails(), Kept()
    with pytest.warns(UserWarning, match="no network") as said:
        train(small(tmp_path / "a"), loggers=[fails, kept], say=quiet)
    assert len(said) == 1 and "Fails.log failed (RuntimeError" in str(said[0].message)
    assert len(fails.lines) == 1 and fails.calls[-1] == "closed"
    assert len(kept.lines) == len(read_metrics(tmp_path / "a" / "run" / "metrics.jsonl")) > 1
    train(small(tmp_path / "b"), say=quiet)
    assert_same_run(tmp_path / "a" / "run", tmp_path / "b" / "run")


def test_the_table_of_a_killed_run_has_its_metrics_once(cut: tuple[Path, Wandb]) -> None:
    with open(cut[0] / "metrics.csv", newline="") as file:
        found = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    known = [line for line in read_metrics(cut[0] / "metrics.jsonl") if line["kind"] != "recipe"]
    assert [line["step"] for line in known if line["kind"] == "step"][::2] == list(range(10))
    assert found == [{name: str(value) for name, value in line.items()} for line in known]


def test_a_diverged_run_has_its_table(tmp_path: Path) -> None:
    with pytest.raises(qtrain.NonFiniteError):
        train(small(tmp_path, lr=1e12, warmup=0, epochs=9, baseline=False), say=quiet)
    assert "step,0,quantized" in (tmp_path / "run" / "metrics.csv").read_text()


def test_tensorboard_shows_a_killed_run_once(cut: tuple[Path, Wandb]) -> None:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for branch in ("baseline", "quantized"):
        folder = cut[0] / "tensorboard" / branch
        assert len(list(folder.iterdir())) == 2  # a file a session, none of before
        events = module.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        own = [m for m in lines(cut[0] / "metrics.jsonl") if m["branch"] == branch]
        for name in ("loss", "lr", "grad_norm", "test_accuracy", "train_loss"):
            known = [(at(line), line[name]) for line in own if name in line]
            found = [(event.step, event.value) for event in events.Scalars(f"run/{name}")]
            assert [step for step, _ in found] == [step for step, _ in known]
            assert [v for _, v in found] == pytest.approx([v for _, v in known])
    monitored = [event.step for event in events.Scalars("sqnr_db/1/weight")]
    assert monitored == [0, 3, 6, 9]


def test_wandb_gets_a_killed_run_once(cut: tuple[Path, Wandb]) -> None:
    folder, wandb = cut
    first, second = wandb.asked
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert (first["project"], first["name"], first["dir"]) == ("mine", "run", str(folder))
    assert first["config"]["batch_size"] == 256 and wandb.twice == []
    ((rows),) = wandb.runs.values()
    assert list(rows) == list(range(10))
    for line in lines(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("kind", "step", "branch", "epoch"):
                assert rows[at(line)][f"{line['branch']}/{name}"] == value
    assert [rows[step]["epoch"] for step in (4, 9)] == [1, 2]
    assert [step for step, row in rows.items() if "sqnr_db/1/weight" in row] == [0, 3, 6, 9]


def test_wandb_that_is_not_closed_repeats_only_the_row_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def line(step: int) -> dict[str, Any]:
        loss = None if step == 2 else 1.0
        return {"kind": "step", "step": step, "branch": "quantized", "loss": loss}

    killed, resumed = WeightsAndBiases(), WeightsAndBiases()
    killed.start(tmp_path, {}, 0)
    for step in range(5):
        killed.log(line(step))  # the last is still open
    resumed.start(tmp_path, {}, 2)
    for step in range(2, 7):
        resumed.log(line(step))
    resumed.close()
    ((rows),) = wandb.runs.values()
    assert list(rows) == list(range(7)) and wandb.twice == []
    assert math.isnan(rows[2]["quantized/loss"])


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_takes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(small(tmp_path, log=("wandb",), epochs=1, baseline=False), say=quiet)
    (stored,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"quantized/test_accuracy" in stored.read_bytes()
    assert '"step":                5}' in (tmp_path / "run" / "wandb.json").read_text()


def test_what_is_no_logger_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in LOGGERS:
        monkeypatch.setitem(sys.modules, word, None)
        with pytest.raises(ValueError, match=rf"log: .*{word}.*pip install 'qtrain\[{word}\]'"):
            train(small(tmp_path, log=(word,)), say=quiet)
    for given in ([print], [Kept], [object()]):
        with pytest.raises(TypeError, match=r"loggers: got .* need a Logger; subclass"):
            train(small(tmp_path), loggers=given, say=quiet)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"log: got 'tensorbord'.*did you mean 'tensorboard'"):
        small(tmp_path, log=("tensorbord",))
    with pytest.raises(TypeError, match="log: got 'wandb', need a tuple"):
        small(tmp_path, log="wandb")
    with pytest.raises(ValueError, match="each once"):
        small(tmp_path, log=("wandb", "wandb"))
    assert list(tmp_path.iterdir()) == []


def test_where_metrics_go_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    short: dict[str, Any] = {"epochs": 1, "baseline": False, "log": ("wandb",)}
    elsewhere = small(tmp_path, **{**short, "log": ()}).to_dict()
    assert small(tmp_path, **short).differences(elsewhere) == []
    for _ in range(2):
        train(small(tmp_path, overwrite=True, **short), say=quiet)
    assert len(wandb.runs) == 2  # what begins anew is another run of wandb


def test_the_runs_of_a_study_take_loggers() -> None:
    plan = planned("mlp", ["fp32", "int8"], config={"log": ["tensorboard", "wandb"]})
    assert {job.config.log for job in plan.jobs()} == {("tensorboard", "wandb")}
