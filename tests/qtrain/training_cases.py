"""Small runs for the tests of training: an MLP on digits, two models, a few steps."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qtrain
from qtrain.training.config import TrainConfig
from qtrain.training.metrics import read_metrics


def small(runs_dir: Path, **changes: Any) -> TrainConfig:
    """Two epochs of 5 steps, one thread: under a second."""
    base: dict[str, Any] = {
        "recipe": "int8",
        "model": "mlp",
        "epochs": 2,
        "batch_size": 256,
        "threads": 1,
        "device": "cpu",
        "runs_dir": str(runs_dir),
        "name": "run",
    }
    return TrainConfig(**{**base, **changes})


def quiet(text: str) -> None:
    """Takes a run's remarks and drops them."""


def states(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's models and optimizers, flat by path."""
    content = torch.load(checkpoint, weights_only=True)["branches"]
    flat: dict[str, Tensor] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}/{key}", item)
        elif isinstance(value, Tensor):
            flat[path] = value

    walk("", content)
    return flat


def lines(metrics: Path) -> list[dict[str, Any]]:
    """The metrics without the times, which no two runs share."""
    times = ("seconds", "test_seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in read_metrics(metrics)]


def unchecked(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics or of a monitor as they were before there were checksums."""
    found = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("crc", "rows")} for line in found]


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    """Make a file of JSON lines anew."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def assert_same_run(first: Path, second: Path) -> None:
    """Both folders hold the same weights, optimizer states and metrics, bit for bit."""
    a, b = states(first / "checkpoint.pt"), states(second / "checkpoint.pt")
    assert a.keys() == b.keys() and len(a) > 0
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert lines(first / "metrics.jsonl") == lines(second / "metrics.jsonl")


RANK = """
import sys
import torch
from torch import nn

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)
"""


def on_two_ranks(code: str, folder: Path) -> None:
    """Run `code` in two processes of one group; it finds torch, nn, `rank` and `folder`."""
    whole = f"{RANK}{code}torch.distributed.destroy_process_group()\n"
    processes = [Forked(whole, str(rank), str(folder)) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that can import this qtrain and runs `code`."""
    root = str(Path(qtrain.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Forked:
    """What `start` gives, forked from a process that has all imports behind it (fork_server): a
    process of its own, with signals, memory limits and an exit status of its own.

    Not for a fresh interpreter's behaviour, nor for CUDA, which may be in use before the fork.
    """

    returncode: int | None

    def __init__(self, code: str, *arguments: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fork_server"])
        with pytest.MonkeyPatch.context() as patch:  # for the server, started by the first of them
            here, root = Path(__file__).parent, Path(qtrain.__file__).parents[1]
            patch.setenv("PYTHONPATH", f"{root}{os.pathsep}{here}")
            forkserver.ensure_running()
        self.folder = tempfile.TemporaryDirectory()
        self.process = context.Process(target=_run, args=(code, arguments, self.folder.name))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """(stdout, stderr) at its end."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            self.process.join()
        self.returncode = self.process.exitcode
        out, errors = (Path(self.folder.name, str(stream)).read_text() for stream in (1, 2))
        self.folder.cleanup()
        return out, errors


def _run(code: str, arguments: tuple[str, ...], folder: str) -> None:
    for stream in (1, 2):
        os.dup2(os.open(f"{folder}/{stream}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv[:] = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
