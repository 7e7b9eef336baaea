"""A study's runs in other processes: killed, interrupted, refused, and the bits of runs here."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from training_cases import assert_same_run, quiet

import qtrain
from qtrain import executors
from qtrain.files.whole import lock
from qtrain.training.study.execute import execute
from qtrain.training.study.executors.handed import Handed
from qtrain.training.study.executors.processes import _Process
from qtrain.training.study.outcome import StudyRun
from qtrain.training.study.plan import Plan
from qtrain.training.study.planned import planned

NETS = """
import os, signal
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x):
        killed = HERE / "killed"
        if (HERE / "runs/s/int8-seed0/checkpoint.pt").exists() and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""


@pytest.fixture(params=["processes", "slurm", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[executors.Executor]:
    if request.param == "processes":
        yield executors.Processes(1)
    elif request.param == "slurm":
        pytest.importorskip("submitit")
        yield executors.Slurm(1, cluster="local")
    else:
        ray = pytest.importorskip("ray")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield executors.Ray(1)
        ray.shutdown()


def plan_of(runs: Path, model: Any, **config: Any) -> Plan:
    """One run: int8, seed 0."""
    small = {"epochs": 2, "batch_size": 256, "threads": 1, "device": "cpu", "norm": None}
    plan = planned(
        model, ["fp32", "int8"], seeds=1, name="s", runs_dir=str(runs), config={**small, **config}
    )
    return replace(plan, arms=plan.arms[1:])


def done(plan: Plan, executor: executors.Executor) -> StudyRun:
    return execute(plan, executor, budget=None, say=quiet)[0]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def free(folder: Path) -> bool:
    """Whether no process runs the run of a folder."""
    try:
        with lock(folder, say=quiet):
            return True
    except ValueError:
        return False


@pytest.mark.filterwarnings("ignore")  # ray's and submitit's own
def test_a_run_that_is_killed_is_a_row_and_the_same_call_goes_on_to_the_same_bits(
    executor: executors.Executor, tmp_path: Path
) -> None:
    net = tmp_path / "nets.py"
    net.write_text(NETS)
    plan = plan_of(tmp_path / "runs", f"{net}:Net", checkpoint_every=3)
    killed = done(plan, executor)
    assert killed.state in ("unfinished", "failed") and (tmp_path / "killed").exists()
    assert "ended" in killed.note and killed.note.endswith("; the same call goes on where it was")
    again = done(plan, executor)
    assert again.state == "finished" and "resuming" not in again.note
    other = done(plan_of(tmp_path / "here", f"{net}:Net", checkpoint_every=3), executors.Here())
    assert_same_run(Path(other.path), Path(again.path))
    assert (tmp_path / "runs/s/logs/int8-seed0.txt").read_text()


@pytest.mark.filterwarnings("ignore")
def test_close_ends_runs_with_a_checkpoint(executor: executors.Executor, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "mlp", epochs=500)
    running = executor.start(plan.jobs()[0])
    folder = tmp_path / "s/int8-seed0"
    until(lambda: (folder / "metrics.jsonl").exists())
    time.sleep(0.3)
    executor.close()
    assert running.done() and (folder / "checkpoint.pt").exists() and free(folder)
    assert not (folder / "summary.json").exists()


STUDY = """
import sys
from qtrain import study
study("mlp", ["fp32", "int8"], seeds=1, name="s", runs_dir=sys.argv[1], executor="processes",
      config={"epochs": 5000, "batch_size": 256, "threads": 1, "device": "cpu", "norm": None})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_runs_end_with_checkpoints_when_the_study_does(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Its script comes by -c, and by a pipe, which no process could import."""
    code = ["-c", STUDY] if number is signal.SIGTERM else ["-"]
    root = str(Path(qtrain.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, *code, str(tmp_path)], env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        process.stdin.write(STUDY)
        process.stdin.close()
        folder = tmp_path / "s/fp32-seed0"
        until(lambda: (folder / "metrics.jsonl").exists() or process.poll() is not None)
        time.sleep(0.3)
        assert not free(folder)
        process.send_signal(number)
        process.wait(60)
    until(lambda: free(folder), 20)
    assert (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_that_is_stopped_says_one_thing(number: signal.Signals, tmp_path: Path) -> None:
    class Stopped:
        at_once = 1

        def start(self, job: Any) -> Any:
            return executors.Here().start(job)

        def close(self) -> None:
            pass

    def stopping(num_classes: int) -> Any:
        signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt, match=r"^s: stopped, 0 of 1 runs .* goes on$") as found:
        done(plan_of(tmp_path, stopping), Stopped())
    assert found.value.__cause__ is None and found.value.__suppress_context__


def test_a_script_without_a_guard_is_told_once_and_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of a run, which imports it and comes to the study there, says nothing itself."""
    plan = plan_of(tmp_path, "mlp")
    running = _Process(Handed(plan.jobs()[0]), 0)
    running._writer.close()
    running._process = SimpleNamespace(exitcode=-9, join=lambda: None)  # type: ignore[assignment]
    assert "ended by signal 9" in running.error()
    for code in (0, 1):
        running._process.exitcode = code  # type: ignore[misc]
        with pytest.raises(ValueError, match=r'^jobs: .* if __name__ == "__main__": .*jobs=1'):
            running.error()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit):
        qtrain.study("mlp", ["fp32", "int8"], jobs=2, runs_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_cannot_travel_is_refused_with_what_to_do(tmp_path: Path) -> None:
    def own(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    with pytest.raises(ValueError, match="at the top of a module, or take jobs=1"):
        qtrain.study(own, ["fp32", "int8"], seeds=1, jobs=2, runs_dir=str(tmp_path))


def test_an_error_of_any_kind_is_a_row(tmp_path: Path) -> None:
    def model(num_classes: int) -> None:
        raise LookupError("no such layer" * 10_000)

    row = done(plan_of(tmp_path, model), executors.Here())
    assert row.state == "failed" and row.note.startswith("LookupError: no such layer")
    assert len(row.note) < 5000 and "test_study_executors.py:" in row.note


def test_words_name_executors() -> None:
    assert isinstance(executors.named("here"), executors.Here)
    assert executors.named("processes", 3).at_once == 3
    with pytest.raises(ValueError, match=r"need one of slurm, here, processes, ray; did you mean"):
        executors.named("slrum")
    with pytest.raises(ValueError, match="executor: got 2 names"):
        executors.named({"ray": {}, "slurm": {}})
    with pytest.raises(TypeError, match=r"executor 'processes': .*'cpus'"):
        executors.named({"processes": {"cpus": 2}})
    with pytest.raises(ValueError, match="'here' does one run at a time"):
        executors.named("here", 2)
    with pytest.raises(TypeError, match=r"executor: got 4, need None, a word"):
        qtrain.study("mlp", ["fp32", "int8"], executor=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(
    word: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "qtrain\[{word}\]"'):
        executors.named(word, 2)


def test_parameters_of_slurm_are_refused_in_its_words(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (job,) = plan_of(tmp_path, "mlp").jobs()
    with pytest.raises(ValueError, match=r"Slurm: .*partitoin"):
        executors.Slurm(1, cluster="local", slurm_partitoin="gpu").start(job)
    with pytest.raises(ValueError, match="cluster: got 'debug', need one of slurm, local"):
        executors.Slurm(1, cluster="debug")
