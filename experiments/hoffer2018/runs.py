"""An experiment's runs, arm by seed: in several processes, kept as they finish, resumed.

Every run uses one thread and its own seed, so its numbers depend neither on the number of processes
nor on the runs before it.  results/<name>-<scale>.json holds the runs that have finished, which
are not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from loop import Curve, Setting

from qtrain.environment import changed, environment
from qtrain.files import write_atomically
from qtrain.progress import Progress

RESULTS = Path(__file__).parent / "results"


def nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do.

    args     the command line's options
    needed   the file of this seed's run of the arm that this one needs, or None
    kept     where this run may put a file for those that need it
    tick     to call after every epoch
    """

    arm: str
    seed: int
    setting: Setting
    args: argparse.Namespace
    kept: Path
    needed: Path | None = None
    tick: Callable[[], None] = nothing


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms that are compared under one setting.

    arms        name: what it is
    reference   the arm that the others are compared with
    metric      of the curves' rows; its value after the last epoch is the run's result
    paper       {arm: the paper's number}, in the unit that `published` says
    settings    {"here": ..., "paper": ...}
    run         does one run: a function of a module's top level
    needs       {arm: the arm whose file it reads}
    """

    name: str
    arms: Mapping[str, str]
    reference: str
    paper: Mapping[str, float]
    published: str
    settings: Mapping[str, Setting]
    run: Callable[[Job], Curve]
    metric: str = "accuracy"
    needs: Mapping[str, str] | None = None


def options(text: str, *, data: Iterable[str], default: str) -> argparse.ArgumentParser:
    """The options that every experiment has.  text: its docstring; data: names of data sets."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--scale", choices=("here", "paper"), default="here")
    found.add_argument("--data", default=default, choices=list(data))
    found.add_argument("--data-dir", help="folder of the data set")
    found.add_argument("--cache-dir", help="folder for decoded images")
    found.add_argument("--seeds", type=_count, default=3, help="how many: 0, 1, ...")
    found.add_argument("--jobs", type=_count, default=1, help="runs at a time, each one thread")
    found.add_argument("--epochs", type=_count, help="in place of the setting's")
    found.add_argument("--batch", type=_count, help="in place of the setting's")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return found


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, need at least 1")
    return value


def execute(experiment: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing; returns the results, which the file then holds.

    SystemExit where the file holds runs of another setting, data set or machine, or a run's data
    is missing: their numbers are not to be compared.
    """
    setting = experiment.settings[args.scale]
    for name in ("epochs", "batch", "network"):
        if getattr(args, name, None) is not None:
            setting = replace(setting, **{name: getattr(args, name)})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Runs(experiment, args, setting).all()
    finally:
        torch.set_num_threads(threads)


class _Runs:
    def __init__(self, experiment: Experiment, args: argparse.Namespace, setting: Setting) -> None:
        self.experiment, self.args, self.setting = experiment, args, setting
        self.needs = experiment.needs or {}
        self.path = args.output / f"{experiment.name}-{args.scale}.json"
        self.kept = args.output / f"{experiment.name}-{args.scale}.kept"
        self.result: dict[str, Any] = {
            "experiment": experiment.name,
            "scale": args.scale,
            "data": args.data,
            "setting": json.loads(json.dumps(asdict(setting))),
            "arms": dict(experiment.arms),
            "reference": experiment.reference,
            "metric": experiment.metric,
            "paper": dict(experiment.paper),
            "published": experiment.published,
            "environment": environment(torch.device(args.device)),
            "runs": [],
        }
        if self.path.exists():
            self._resume(json.loads(self.path.read_text(encoding="utf-8")))

    def _resume(self, stored: dict[str, Any]) -> None:
        odd = [
            f"{key}: then {stored[key]}, now {self.result[key]}"
            for key in ("data", "setting")
            if stored[key] != self.result[key]
        ]
        odd += changed(stored["environment"], self.result["environment"])
        if odd:
            sys.exit(
                f"{self.path}: holds runs that are not to be compared with these: "
                f"{'; '.join(odd)}. Remove it, or give another --output"
            )
        self.result["runs"] = stored["runs"]

    def _done(self, arm: str, seed: int) -> dict[str, Any] | None:
        runs: list[dict[str, Any]] = self.result["runs"]
        return next((run for run in runs if (run["arm"], run["seed"]) == (arm, seed)), None)

    def _missing(self) -> list[Job]:
        """What is to be done, those that others need first."""
        seeds = range(self.args.seeds)
        missing = {
            (arm, seed)
            for arm in self.experiment.arms
            for seed in seeds
            if self._done(arm, seed) is None
        }
        for arm, seed in list(missing):
            needed = self.needs.get(arm)
            run = None if needed is None else self._done(needed, seed)
            if run and run["failed"] is None and not self._file(str(needed), seed).exists():
                missing.add((str(needed), seed))  # its numbers are there, its file is not
        order = list(self.experiment.arms)
        return [
            Job(
                arm=arm,
                seed=seed,
                setting=self.setting,
                args=self.args,
                kept=self._file(arm, seed),
                needed=self._file(self.needs[arm], seed) if arm in self.needs else None,
            )
            for arm, seed in sorted(
                missing, key=lambda one: (one[0] in self.needs, one[1], order.index(one[0]))
            )
        ]

    def _file(self, arm: str, seed: int) -> Path:
        return self.kept / f"{arm}-seed{seed}.pt"

    def all(self) -> dict[str, Any]:
        self.kept.mkdir(parents=True, exist_ok=True)
        waiting = self._missing()
        every = len(self.experiment.arms) * self.args.seeds
        bar = Progress(
            every * self.setting.epochs,
            done=(every - len(waiting)) * self.setting.epochs,
            text=self.experiment.name,
        )
        running: dict[Connection, _Process] = {}
        unfinished = {(job.arm, job.seed) for job in waiting}
        try:
            while waiting or running:
                job = self._next(waiting, unfinished)
                if job is not None and len(running) < self.args.jobs:
                    waiting.remove(job)
                    unmet = self._unmet(job)
                    if unmet is not None:
                        curve = Curve(epochs=[], failed=unmet)
                    elif self.args.jobs == 1:
                        curve = self.experiment.run(replace(job, tick=bar.step))
                    else:
                        process = _Process(self.experiment.run, job)
                        running[process.connection] = process
                        continue
                    self._finished(job, curve, bar)
                    unfinished.remove((job.arm, job.seed))
                    continue
                for connection in wait(list(running)):
                    process = running[connection]  # type: ignore[index]
                    message = process.message()
                    if message is None:
                        bar.step()
                        continue
                    del running[connection]  # type: ignore[arg-type]
                    self._finished(process.job, message, bar)
                    unfinished.remove((process.job.arm, process.job.seed))
        finally:
            for process in running.values():
                process.end()
            bar.close()
        shutil.rmtree(self.kept)
        return self.result

    def _next(self, waiting: list[Job], unfinished: set[tuple[str, int]]) -> Job | None:
        """The first job whose need is not among those to be done."""
        for job in waiting:
            if (self.needs.get(job.arm), job.seed) not in unfinished:
                return job
        return None

    def _unmet(self, job: Job) -> str | None:
        """Why the job cannot run, where the run it needs has failed."""
        if job.needed is None or job.needed.exists():
            return None
        return f"needs {self.needs[job.arm]}, which failed"

    def _finished(self, job: Job, curve: Curve, bar: Progress) -> None:
        for _ in range(self.setting.epochs - len(curve.epochs)):
            bar.step()
        if self._done(job.arm, job.seed) is None:  # else it ran again for its file
            columns = {
                name: [row.get(name) for row in curve.epochs]
                for name in dict.fromkeys(name for row in curve.epochs for name in row)
            }
            more = {} if curve.more is None else {"more": dict(curve.more)}
            run = {"arm": job.arm, "seed": job.seed, "failed": curve.failed, "epochs": columns}
            order = list(self.experiment.arms)
            self.result["runs"] = sorted(
                [*self.result["runs"], run | more],
                key=lambda run: (order.index(run["arm"]), run["seed"]),
            )
            self._write()
        metric = self.experiment.metric
        last = f"failed, {curve.failed}" if curve.failed else f"{curve.epochs[-1][metric]:.4g}"
        bar.line(f"{job.arm}, seed {job.seed}: {metric} {last}")

    def _write(self) -> None:
        """A run a line, so that the file can be read and compared."""
        head = {key: value for key, value in self.result.items() if key != "runs"}
        runs = ",\n".join(json.dumps(run, allow_nan=False) for run in self.result["runs"])
        text = json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n{runs}\n ]\n}}\n'
        write_atomically(self.path, lambda file: file.write(text.encode()))


class _Process:
    """A run in a process of its own."""

    def __init__(self, run: Callable[[Job], Curve], job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.job = job
        self.connection, other = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(run, job, other))
        self._process.start()
        other.close()

    def message(self) -> Curve | None:
        """The run's curve; None: an epoch ended.  SystemExit where the run broke."""
        try:
            found: Curve | str | None = self.connection.recv()
        except EOFError:
            self._process.join()
            found = f"its process ended with code {self._process.exitcode}"
        if isinstance(found, str):
            sys.exit(f"{self.job.arm}, seed {self.job.seed}: {found}")
        if found is not None:
            self._process.join()
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _work(run: Callable[[Job], Curve], job: Job, connection: Connection) -> None:
    torch.set_num_threads(1)
    try:
        connection.send(run(replace(job, tick=lambda: connection.send(None))))
    except Exception:
        connection.send(traceback.format_exc())
