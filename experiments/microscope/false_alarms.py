"""How often a verdict finds something wrong with a healthy run, and how near healthy runs come.

    python experiments/microscope/false_alarms.py --jobs 2

Trains a narrow ResNet-18 on the digits, each arm with 25 seeds, under a Monitor of every layer.
The thresholds in qtrain/diagnosis/rules.py were set by seeds 100 to 111 of a network twice as
wide; seeds 100 to 104 show every figure's distribution in this one; seeds 200 to 219, by which none
was set, the rate of false alarms.  A run that was done is not repeated.  Writes
results/false_alarms.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from qtrain import Monitor, data, diagnose, environment, models, quantize, rules

#: name: options of `quantize`
ARMS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int8, range batch-norm": {"bits": 8, "norm": "range"},
    "banner2018": {"recipe": "banner2018"},
    "int8 at 4 bits, range batch-norm": {"bits": 4, "norm": "range"},
}
SETS = {"thresholds": range(100, 105), "rate": range(200, 220)}
WIDTH, BATCH, EPOCHS, EVERY = 8, 64, 3, 8
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4  # SGD; a quarter epoch of warm-up, then a cosine to 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each one thread")
    parser.add_argument("--seeds", type=int, help="of each set; default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    path = args.out / "false_alarms.json"
    kept = json.loads(path.read_text())["runs"] if path.exists() else {}
    wanted = [(arm, s) for seeds in SETS.values() for s in seeds[: args.seeds] for arm in ARMS]
    missing = [(arm, seed) for arm, seed in wanted if str(seed) not in kept.get(arm, {})]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        jobs = {pool.submit(run, arm, seed): (arm, seed) for arm, seed in missing}
        for done, job in enumerate(as_completed(jobs), 1):
            arm, seed = jobs[job]
            kept.setdefault(arm, {})[str(seed)] = job.result()
            _write(path, kept)
            print(f"{done} of {len(missing)}: {arm}, seed {seed}", flush=True)
    _write(path, kept)
    print(_tables(json.loads(path.read_text())))


def run(arm: str, seed: int) -> dict[str, Any]:
    """One healthy run: its accuracy, its findings, and of each rule the figure of every tensor."""
    torch.set_num_threads(1)
    digits = data.load("digits")
    torch.manual_seed(seed)
    network = models.resnet18(num_classes=10, in_channels=1, stem="cifar", width=WIDTH)
    model = quantize(network, seed=seed, **ARMS[arm]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    per_epoch, step = len(digits.train) // BATCH, 0
    with Monitor(model, EVERY, layers=None) as monitor:
        for epoch in range(EPOCHS):
            batches = data.Batches(
                digits.train, batch_size=BATCH, seed=seed, epoch=epoch, drop_last=True
            )
            for images, labels in batches:
                warm = min(1.0, (step + 1) / (per_epoch / 4))
                fall = 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * per_epoch)))
                optimizer.param_groups[0]["lr"] = RATE * warm * fall
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                step += 1
    model.eval()
    with torch.no_grad():
        tests = list(data.Batches(digits.test, batch_size=256, train=False))
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in tests)
    findings = [
        [f.layer, f.role, f.symptom, f.value, f.threshold, f.severity]
        for f in diagnose(monitor).findings
    ]
    return {
        "accuracy": right / len(digits.test), "findings": findings, "figures": _figures(monitor)
    }  # fmt: skip


def _figures(monitor: Monitor) -> dict[str, list[float]]:
    """Of each rule: the smallest, median and largest figure of all tensors, and the one that comes
    nearest to the threshold once what noise allows is taken off."""
    tensors: dict[tuple[str, str], list[Any]] = {}
    for row in monitor.rows:
        tensors.setdefault((row.layer, row.role), []).append(row)
    found = {}
    for rule in rules.RULES:
        values, beyond = [], []
        for (_, role), rows in tensors.items():
            value = rule.value(rows) if role in rule.roles else None
            if value is not None:
                values.append(value)
                beyond.append(value - (rule.limit(rows) - rule.threshold))
        if values:
            nearest = min(beyond) if rule.smallest else max(beyond)
            found[rule.symptom] = [min(values), statistics.median(values), max(values), nearest]
    return found


def _write(path: Path, runs: dict[str, Any]) -> None:
    result = {
        "setting": {
            "model": "resnet18", "width": WIDTH, "data": "digits", "batch": BATCH, "lr": RATE,
            "momentum": MOMENTUM, "weight_decay": DECAY, "epochs": EPOCHS, "every": EVERY,
            "layers": None,
        },
        "rules": {
            rule.symptom: {"threshold": rule.threshold, "smallest": rule.smallest,
                           "source": rule.source}
            for rule in rules.RULES
        },
        "environment": environment(torch.device("cpu")),
        "runs": {arm: dict(sorted(own.items(), key=lambda s: int(s[0]))) for arm, own in
                 runs.items()},
    }  # fmt: skip
    whole = path.with_suffix(".tmp")  # a run that is stopped here leaves the file as it was
    whole.write_text(json.dumps(result, indent=1) + "\n")
    whole.replace(path)


def _tables(result: dict[str, Any]) -> str:
    parts = []
    for name, seeds in SETS.items():
        rows = []
        for arm, runs in result["runs"].items():
            own = [runs[str(seed)] for seed in seeds if str(seed) in runs]
            alarms = sum(bool(run["findings"]) for run in own)
            names = Counter(f[2] for run in own for f in run["findings"])
            accuracies = [run["accuracy"] for run in own]
            least, mean = min(accuracies), statistics.fmean(accuracies)
            rows.append([arm, f"{alarms} of {len(own)}", dict(names) or "", least, mean])
        headers = [name, "runs with an alarm", "findings", "lowest accuracy", "mean"]
        parts.append(tabulate(rows, headers, floatfmt=".3f"))
        rows = []
        for symptom, rule in result["rules"].items():
            row: list[Any] = [symptom]
            for runs in result["runs"].values():
                own = [runs[str(seed)]["figures"] for seed in seeds if str(seed) in runs]
                found = [figures[symptom] for figures in own if symptom in figures]
                _, middle, _, nearest = zip(*found, strict=True) if found else [()] * 4
                worst = (min if rule["smallest"] else max)(nearest, default=None)
                row += [statistics.median(middle) if middle else None, worst]
            rows.append([*row, rule["threshold"]])
        columns = [text for arm in ARMS for text in (f"{arm}\nmedian", "nearest")]
        headers = [name, *columns, "threshold"]
        parts.append(tabulate(rows, headers, floatfmt=".2g", missingval="-"))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
