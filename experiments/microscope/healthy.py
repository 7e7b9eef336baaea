"""How often a verdict finds something wrong with a healthy run: 96 different ones.

    python -m experiments.microscope.healthy --data-dir DIR [--first 0] [--count 96]

8 networks, 4 rates, 3 optimizers, recipes in turn (see the README's protocol); DIR holds a text.
Goes on where it stopped; writes results/healthy.json after every run, and prints its tables.
"""

from __future__ import annotations

import argparse
import json
import math
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
OUT = Path(__file__).parent / "results" / "healthy.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(RUNS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}}
    same_rules(args.out, found)
    found["environment"] = environment(torch.device("cpu"))
    for i in range(args.first, min(args.first + args.count, len(RUNS))):
        if str(i) not in found["runs"]:
            found["runs"][str(i)] = run(i, args.data_dir)
            whole = args.out.with_suffix(".tmp")
            lines = [f'"{k}": {json.dumps(v)}' for k, v in found["runs"].items()]
            rest = json.dumps({k: v for k, v in found.items() if k != "runs"})
            whole.write_text(rest[:-1] + ',\n"runs": {\n' + ",\n".join(lines) + "\n}}\n")
            whole.replace(args.out)
    print(tables(found["runs"]))


def recipe_of(i: int) -> str:
    """The four of a network take turns, so that each meets each optimizer and rate."""
    name, optimizer, rate = RUNS[i]
    turn = (list(NETWORKS).index(name) + list(OPTIMIZERS).index(optimizer) + rate) % 4
    second = "int8, range batch-norm" if name in WITH_NORM else "banner2018"
    return ("int8", second, "fp8", "mxfp8")[turn]


def run(i: int, data_dir: Path) -> dict[str, Any]:
    """Run i and its twin in full precision: losses at both ends, and the findings."""
    (name, optimizer, rate), seed = RUNS[i], 500 + i
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
