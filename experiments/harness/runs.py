"""An experiment's runs, arm by seed, kept as they finish and resumed.

Every run uses one thread and its own seed, so its numbers depend neither on the number of processes
nor on the runs before it.  results/<name>-<scale>.json holds the runs that have finished, which
are not repeated; not the paper's numbers, which are no result.  Under torchrun all ranks do one run
together, and the first writes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.harness import ranks
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.processes import curves
from qtrain import environment

#: Entries of the environment that can change the bits of a result: those of the processor, which
#: rounds the same sums in another order, and the others.
PROCESSOR = ("machine", "processor", "capability")
DECISIVE = ("qtrain", "torch", "threads", "device", "ranks")


def execute(experiment: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing; returns the results, which the file then holds.

    SystemExit where the file holds runs of another setting or data set, or, while some are missing,
    of another machine: their numbers are not to be compared (of another processor they are with
    --mix-machines); where a run's data is missing; and for what several ranks cannot do.
    """
    ranks.check()
    if ranks.count() > 1 and (args.jobs > 1 or experiment.needs):
        sys.exit("under torchrun runs go one after the other, and none needs another's file")
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
            "environment": environment(torch.device(args.device)) | {"ranks": str(ranks.count())},
            "runs": [],
        }
        self.elsewhere: list[str] = []
        if self.path.exists():
            self._resume(json.loads(self.path.read_text(encoding="utf-8")))

    def _resume(self, stored: dict[str, Any]) -> None:
        odd = [
            f"{key}: then {stored[key]}, now {self.result[key]}"
            for key in ("data", "setting")
            if stored[key] != self.result[key]
        ]
        self._refuse(odd)
        then, now = ({"ranks": "1"} | held["environment"] for held in (stored, self.result))
        self.elsewhere = [
            f"{name} (then {then.get(name)}, now {now[name]})"
            for name in (DECISIVE if self.args.mix_machines else (*PROCESSOR, *DECISIVE))
            if then.get(name) != now[name]
        ]
        if self.args.mix_machines and any(then.get(name) != now[name] for name in PROCESSOR):
            for run in stored["runs"]:
                run.setdefault("on", self._processor(then))
        self.result["runs"] = stored["runs"]

    @staticmethod
    def _processor(environment: dict[str, str]) -> str:
        return ", ".join(str(environment.get(name)) for name in PROCESSOR)

    def _refuse(self, odd: list[str]) -> None:
        if odd:
            sys.exit(
                f"{self.path}: holds runs that are not to be compared with these: "
                f"{'; '.join(odd)}. Remove it, give another --output, or, where only the processor "
                f"differs, --mix-machines"
            )

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
        folder: Path = self.kept
        return folder / f"{arm}-seed{seed}.pt"

    def all(self) -> dict[str, Any]:
        jobs = self._missing()
        self._refuse(self.elsewhere if jobs else [])
        self.kept.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            job.kept.unlink(missing_ok=True)  # of an older run
        epochs = len(self.experiment.arms) * self.args.seeds * self.setting.epochs
        left = len(jobs) * self.setting.epochs
        name = self.experiment.name
        with tqdm(
            total=epochs, initial=epochs - left, desc=name, unit="epoch", disable=None
        ) as bar:
            for job, curve in curves(
                self.experiment.run, jobs, at_once=self.args.jobs, tick=bar.update
            ):
                self._finished(job, curve, bar)
        shutil.rmtree(self.kept, ignore_errors=ranks.count() > 1)  # every rank tries to
        return self.result

    def _finished(self, job: Job, curve: Curve, bar: Any) -> None:
        bar.update(self.setting.epochs - len(curve.epochs))
        if self._done(job.arm, job.seed) is None:  # else it ran again for its file
            columns = {
                name: [row.get(name) for row in curve.epochs]
                for name in dict.fromkeys(name for row in curve.epochs for name in row)
            }
            more = {} if curve.more is None else {"more": dict(curve.more)}
            run = {"arm": job.arm, "seed": job.seed, "failed": curve.failed, "epochs": columns}
            if any("on" in other for other in self.result["runs"]):  # each names its processor
                run["on"] = self._processor(self.result["environment"])
            order = list(self.experiment.arms)
            self.result["runs"] = sorted(
                [*self.result["runs"], run | more],
                key=lambda run: (order.index(run["arm"]), run["seed"]),
            )
            if ranks.rank() == 0:
                self._write()
        metric = self.experiment.metric
        last = f"failed, {curve.failed}" if curve.failed else f"{curve.epochs[-1][metric]:.4g}"
        bar.write(f"{job.arm}, seed {job.seed}: {metric} {last}", file=sys.stderr)

    def _write(self) -> None:
        """A run a line, so that the file can be read and compared."""
        head = {k: v for k, v in self.result.items() if k not in ("runs", "paper", "published")}
        runs = ",\n".join(json.dumps(run, allow_nan=False) for run in self.result["runs"])
        text = json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n{runs}\n ]\n}}\n'
        whole = self.path.with_suffix(".tmp")  # so that the file is never half written
        whole.write_text(text, encoding="utf-8")
        whole.replace(self.path)
