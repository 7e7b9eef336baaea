"""How often a verdict finds something wrong with a healthy run: 96 different ones.

    python -m experiments.microscope.healthy --data-dir DIR [--first 0] [--count 96] [--again]

8 networks, 4 rates, 3 optimizers, recipes in turn (see the README's protocol); DIR holds a text.
Goes on where it stopped, and beside another process; writes results/healthy.json, with --again
healthy_again.json, whose seeds are others, after every run, and prints its tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tabulate import tabulate

from experiments.microscope.blind_faults import same_rules
from experiments.microscope.exact import share
from experiments.microscope.subjects import NETWORKS, subject, train
from qtrain import Monitor, diagnose, environment, quantize

#: name: the optimizer and its rates
OPTIMIZERS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), (0.01, 0.03, 0.1, 0.3)),
    "adamw": (torch.optim.AdamW, (3e-4, 1e-3, 3e-3, 1e-2)),
    "rmsprop": (torch.optim.RMSprop, (1e-4, 3e-4, 1e-3, 3e-3)),
}
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8}, "int8, range batch-norm": {"bits": 8, "norm": "range"},
    "fp8": {"recipe": "fp8"}, "mxfp8": {"recipe": "mxfp8"}, "banner2018": {"recipe": "banner2018"},
}  # fmt: skip
WITH_NORM = ("resnet20", "vgg11", "resnet18", "separable")
STEPS, EVERY, LAST, MARGIN = 48, 6, 8, 0.1
RUNS = [(n, o, rate) for n, o, rate in product(NETWORKS, OPTIMIZERS, range(4))]
#: every 37th, so that what is done when the time is up is of all kinds
ORDER = [37 * k % len(RUNS) for k in range(len(RUNS))]
OUT = Path(__file__).parent / "results" / "healthy.json"
AGAIN = OUT.with_name("healthy_again.json")
SEEDS = {OUT: 500, AGAIN: 2500}  # of run 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(RUNS))
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = AGAIN if args.again else OUT
    for i in ORDER[args.first : args.first + args.count]:
        if str(i) not in read(out)["runs"]:
            own = run(i, args.data_dir, SEEDS[out])
            found = read(out)
            found["environment"] = environment(torch.device("cpu"))
            found["runs"][str(i)] = own
            whole = out.with_suffix(f".{os.getpid()}")
            lines = [f'"{k}": {json.dumps(v)}' for k, v in found["runs"].items()]
            rest = json.dumps({k: v for k, v in found.items() if k != "runs"})
            whole.write_text(rest[:-1] + ',\n"runs": {\n' + ",\n".join(lines) + "\n}}\n")
            whole.replace(out)
    print(tables(read(out)["runs"]))


def read(path: Path) -> dict[str, Any]:
    """What there is; SystemExit where other rules made it."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    same_rules(path, found)
    return found


def recipe_of(i: int) -> str:
    """The four of a network take turns, so that each meets each optimizer and rate."""
    name, optimizer, rate = RUNS[i]
    turn = (list(NETWORKS).index(name) + list(OPTIMIZERS).index(optimizer) + rate) % 4
    second = "int8, range batch-norm" if name in WITH_NORM else "banner2018"
    return ("int8", second, "fp8", "mxfp8")[turn]


def run(i: int, data_dir: Path, first: int) -> dict[str, Any]:
    """Run i and its twin in full precision: losses at both ends, and the findings."""
    (name, optimizer, rate), seed = RUNS[i], first + i
    make, rates = OPTIMIZERS[optimizer]
    losses = {}
    for quantized in (False, True):
        own = subject(name, seed, data_dir)
        batches = own.batches(seed, STEPS)
        model = own.network
        if quantized:
            model = quantize(model, seed=seed, **RECIPES[recipe_of(i)])
            monitor = Monitor(model, EVERY, layers=None)
        losses[quantized] = train(model, batches, make(model.parameters(), rates[rate]))
    monitor.close()
    ends = {q: fmean(each[-LAST:]) for q, each in losses.items()}
    findings = [
        [f.layer, f.role, f.symptom, f.value, f.threshold, f.first]
        for f in diagnose(monitor).findings
    ]
    return {
        "network": name, "optimizer": optimizer, "rate": rates[rate], "recipe": recipe_of(i),
        "loss": [losses[True][0], _said(ends[True])], "fp32": _said(ends[False]),
        "healthy": healthy(losses[True][0], ends[True], ends[False]),
        "findings": [[_said(value) for value in finding] for finding in findings],
    }  # fmt: skip


def healthy(first: float, last: float, fp32: float) -> bool:
    """Whether a loss is finite at the end, has fallen, and is not far above full precision's."""
    return math.isfinite(last) and last < first and not last > fp32 + MARGIN


def tables(runs: dict[str, Any]) -> str:
    """Runs with an alarm, in all and by each factor; then what was found."""
    kept = [run for run in runs.values() if run["healthy"]]
    alarmed = [run for run in kept if run["findings"]]
    rows = [["all healthy runs", share(len(alarmed), len(kept))]]
    for factor in ("recipe", "optimizer", "network"):
        for value in dict.fromkeys(run[factor] for run in kept):
            own = [run for run in kept if run[factor] == value]
            rows.append(
                [f"{factor} {value}", share(sum(bool(r["findings"]) for r in own), len(own))]
            )
    others = [run for run in runs.values() if not run["healthy"]]
    rows.append(["not healthy: told", share(sum(bool(r["findings"]) for r in others), len(others))])
    named: dict[str, Counter[str]] = {"healthy": Counter(), "not": Counter()}
    for run in runs.values():
        symptoms = {finding[2] for finding in run["findings"]}
        named["healthy" if run["healthy"] else "not"].update(symptoms)
    symptoms = [
        [s, named["healthy"][s], named["not"][s]] for s in {**named["healthy"], **named["not"]}
    ]
    headers = ["symptom", "healthy runs with it", "others"]
    first = tabulate(rows, ["runs", "with an alarm"], tablefmt="github")
    return f"{first}\n\n{tabulate(symptoms, headers, tablefmt='github')}"


def _said(value: Any) -> Any:
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else str(value)


if __name__ == "__main__":
    main()
