"""A killed run, resumed, equals one that was never interrupted: real processes, real SIGKILL."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from training_cases import Forked, assert_same_run, quiet, small

from qtrain.training.train import train

#: The run that all tests kill: 10 steps, a checkpoint after each, batch-norm, noise, both models.
RUN = (
    "train", "int8", "--model", "mlp", "--epochs", "2", "--batch-size", "256", "--threads", "1",
    "--device", "cpu", "--checkpoint-every", "3", "--name", "run",
)  # fmt: skip

#: Runs the command line, but dies by SIGKILL at the n-th call of one function.
DIE = """
import os, signal, sys
from qtrain.files import whole as files
from qtrain.training import metrics, trainee
where, count, *arguments = sys.argv[1:]
count = int(count)

def deadly(owner, name, half=None):
    real = getattr(owner, name)
    def call(*args, **options):
        global count
        count -= 1
        if count == 0:
            if half is not None:
                half(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, call)

def half_a_line(log, **values):
    log._file.write(b'{"kind": "ep')
    log._file.flush()

def half_a_file(descriptor):
    os.ftruncate(descriptor, 2000)

if where == "step":
    deadly(trainee.Branch, "step")
elif where == "evaluation":
    deadly(trainee.Branch, "evaluate")
elif where == "metrics":
    deadly(metrics.MetricsLog, "write", lambda log: half_a_line(log))
elif where == "saving":
    deadly(files.os, "fsync", half_a_file)
elif where == "renaming":
    deadly(files.os, "replace")
from qtrain.cli import main
sys.exit(main(arguments))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uninterrupted run."""
    runs = tmp_path_factory.mktemp("whole")
    train(small(runs, checkpoint_every=3), say=quiet)
    return runs / "run"


@pytest.mark.cases(2, 6)
@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("step", 1),  # before anything
        ("step", 14),  # between the two models of a step
        ("evaluation", 2),  # after one model's evaluation
        ("metrics", 4),  # half a line of the first epoch's end
        ("saving", 9),  # half the second checkpoint: files sync twice, the metrics before it once
        ("renaming", 4),  # config, environment, first checkpoint; then the second's rename
        ("evaluation", 5),  # after the last checkpoint, in the comparison
    ],
    ids="{}".format,
)
def test_killed_at_this_moment_and_resumed(
    whole: Path, tmp_path: Path, where: str, count: int
) -> None:
    process = Forked(DIE, where, str(count), *RUN, "--runs-dir", str(tmp_path))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    train(small(tmp_path, checkpoint_every=3, resume=True), say=quiet)
    assert_same_run(tmp_path / "run", whole)


COMMAND = "import sys; from qtrain.cli import main; sys.exit(main())"


def wait_for(path: Path, size: int) -> None:
    """Until the file has grown beyond `size` bytes."""
    end = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > size):
        assert time.monotonic() < end, f"{path} did not grow"
        time.sleep(0.002)


#: Runs the command line, but gets a signal while it loads the data.
EARLY = """
import os, sys, time
from qtrain.training import train as training
from qtrain.cli import main
def load_data(config, data):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)
training.load_data = load_data
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_interrupted_before_the_first_step_says_so_in_one_line(
    tmp_path: Path, sent: signal.Signals
) -> None:
    process = Forked(EARLY, str(int(sent)), *RUN, "--runs-dir", str(tmp_path))
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out, errors.count("\n")) == (130, "", 1), errors
    assert "stopped" in errors


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_interrupted_run_leaves_a_checkpoint_and_says_how_to_resume(
    tmp_path: Path, sent: signal.Signals
) -> None:
    long = [*RUN, "--runs-dir", str(tmp_path), "--epochs", "400", "--checkpoint-every", "1000"]
    process = Forked(COMMAND, *long)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics, 0)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume" in errors and "Traceback" not in errors
    if sent == signal.SIGTERM:  # resuming is the same after both
        return
    # killed by surprise after it resumed: no line is lost or doubled
    process = Forked(COMMAND, *long, "--resume")
    wait_for(metrics, metrics.stat().st_size)
    process.kill()
    _, errors = process.communicate(timeout=120)
    assert "resuming at step" in errors
    whole_lines = metrics.read_text().splitlines()[:-1]  # the last may be half written
    keys = [(v["kind"], v["step"], v["branch"]) for v in map(json.loads, whole_lines)]
    assert len(keys) == len(set(keys)) > 0
    steps = [step for kind, step, branch in keys if (kind, branch) == ("step", "quantized")]
    assert steps == list(range(0, 10 * len(steps), 10))
