"""Blind faults: is a fault of any kind, place and size found, and which tensor is named first?

    python -m experiments.microscope.blind_faults --data-dir DIR [--set scales] [--cells ...]

DIR holds a text.  Four networks in three recipes are each trained for `STEPS` steps; from there
every draw trains `RECORDS` steps under a Monitor of every layer, with one or two faults that the
set's seed chose (see the README's protocols).  Goes on where it stopped; writes
results/<set>/<cell>.json after every draw.  `python -m experiments.microscope.blind_tables` makes
the tables and the figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import qtrain
from experiments.microscope.faults import DECADES, KINDS, OF_RANGE, OF_SCALE, Fault, planted
from experiments.microscope.sqnr import falls, operands, ranked
from experiments.microscope.subjects import Batch, error, subject, train, usual_optimizer
from qtrain import Monitor, Recipe, diagnose, environment, plain_state_dict, quantize, recipes
from qtrain.inspection.row import SLOT_OF

NAMES = ("resnet20", "vgg11", "vit", "chartransformer")
RECIPES = {"int8": recipes.int8, "fp8": recipes.fp8, "mxfp8": recipes.mxfp8}
CELLS = tuple(f"{name}-{recipe}" for name in NAMES for recipe in RECIPES)
STEPS, RECORDS, HEALTHY = 150, 6, 5
GRADIENTS = 2  # batches over which the cosine of the gradient is a mean
EVERY, CONTINUED = 5, 40  # every fifth draw is trained on for so many steps in all
OUT = Path(__file__).parent / "results"


class Draws(NamedTuple):
    """Draws i of so many, in the benches CELLS[i % 12] of `cells`, of these kinds; seed: of the
    faults, bench: of the networks, batches and noise."""

    seed: int
    count: int
    kinds: tuple[str, ...]
    cells: tuple[str, ...]
    bench: int

    def numbers(self, cell: str) -> list[int]:
        return [i for i in range(self.count) if CELLS[i % len(CELLS)] == cell]


SETS = {
    "blind": Draws(31415926, 300, tuple(KINDS), CELLS, 0),
    "scales": Draws(27182818, 180, OF_RANGE, tuple(c for c in CELLS if c.endswith("int8")), 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="blind")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draws, folder = SETS[args.set], args.out / args.set
    folder.mkdir(parents=True, exist_ok=True)
    for cell in (cell for cell in args.cells if cell in draws.cells):
        path = folder / f"{cell}.json"
        found = json.loads(path.read_text()) if path.exists() else {"draws": {}}
        if len(found["draws"]) < len(draws.numbers(cell)):
            run_cell(cell, draws, args.data_dir, found, path)
        print(f"{cell}: {len(found['draws'])} draws", flush=True)


def run_cell(cell: str, draws: Draws, data_dir: Path, found: dict[str, Any], path: Path) -> None:
    """Train, look at healthy runs, then at every draw that is missing."""
    bench, first = Bench(cell, data_dir, draws.bench), 10_000 * draws.bench
    looks = [bench.look((), first + 100 + i) for i in range(HEALTHY)]
    reference = looks[0]["sqnr"]
    same_rules(path, found)
    found["environment"] = environment(torch.device("cpu"))
    found["cell"] = {
        "tested": bench.tested, "tensors": len(reference),
        "continued": [bench.continued((), first + 100 + i) for i in range(3)],
        "healthy": [
            {
                "findings": look["findings"],
                "lowest": ranked(look["sqnr"])[0],
                "fall": None if look is looks[0] else ranked(falls(look["sqnr"], reference))[0],
                "cosine": look["cosine"], "lost": look["lost"],
            }
            for look in looks
        ],
    }  # fmt: skip
    places = list(reference)
    for i in draws.numbers(cell):
        if str(i) in found["draws"]:
            continue
        faults = drawn(i, bench.recipe, places, draws)
        look = bench.look(faults, first + 1000 + i)
        sqnr = look.pop("sqnr")
        fall = falls(sqnr, reference)
        keys = [(fault.layer, fault.role) for fault in faults]
        found["draws"][str(i)] = {
            "faults": [
                {**fault.saved(), "sqnr": sqnr[key], "fall": fall[key]}
                for fault, key in zip(faults, keys, strict=True)
            ],
            **look,
            "lowest": ranked(sqnr)[:3],
            "falls": ranked(fall)[:3],
        }
        if i // len(CELLS) % EVERY == 0:
            found["draws"][str(i)]["continued"] = bench.continued(faults, first + 1000 + i)
        save(path, found)


def drawn(
    i: int, recipe: Recipe, places: Sequence[tuple[str, str]], draws: Draws = SETS["blind"]
) -> list[Fault]:
    """The faults of draw i: kind, then layer, then role, each uniform among those that there are,
    and log-uniform the size."""
    random_ = random.Random(draws.seed + i)
    found: list[Fault] = []
    for _ in range(random_.choice((1, 2))):
        kind = random_.choice(draws.kinds)
        able = [
            place
            for place in places
            if place not in [(f.layer, f.role) for f in found]
            and (kind not in OF_SCALE or recipe.slot(*SLOT_OF[place[1]]).range is not None)  # type: ignore[attr-defined]
        ]
        layer = random_.choice(list(dict.fromkeys(layer for layer, _ in able)))
        role = random_.choice([role for own, role in able if own == layer])
        size = KINDS[kind] * 10 ** random_.uniform(0, DECADES)
        found.append(Fault(layer, role, kind, size, random_.random() < 0.5, random_.random()))
    return found


class Bench:
    """A network in a recipe, trained, from which runs go on."""

    def __init__(self, cell: str, data_dir: Path, seed: int = 0) -> None:
        self.name, recipe = cell.split("-")
        self.recipe = RECIPES[recipe]()
        self.subject = subject(self.name, seed, data_dir)
        model = quantize(self.subject.network, recipe=self.recipe, seed=seed)
        train(model, self.subject.batches(seed, STEPS), usual_optimizer(self.name, model))
        self.tested = self.subject.tested(model)
        self.state = plain_state_dict(model)

    def model(self, faults: Sequence[Fault], seed: int) -> nn.Module:
        """The trained model with faults, and noise of a seed."""
        overrides: dict[str, Recipe] = {}
        for fault in faults:
            own = overrides.get(fault.layer, self.recipe)
            overrides[fault.layer] = planted(own, fault)
        network = deepcopy(self.subject.network)
        model: nn.Module = quantize(
            network, recipe=self.recipe, overrides=overrides or None, seed=seed
        )
        model.load_state_dict(self.state)
        return model

    def look(self, faults: Sequence[Fault], seed: int) -> dict[str, Any]:
        """A monitored run: findings, each operand's SQNR, and what the gradient lost by its end."""
        model = self.model(faults, seed)
        batches = self.subject.batches(seed, RECORDS + GRADIENTS)
        with Monitor(model, 1, layers=None) as monitor:
            train(model, batches[:RECORDS], usual_optimizer(self.name, model))
        findings = [
            [f.layer, f.role, f.symptom, round(f.severity, 3)] for f in diagnose(monitor).findings
        ]
        whole = self.model((), seed)
        whole.load_state_dict(model.state_dict())
        full = deepcopy(self.subject.network)
        full.load_state_dict(plain_state_dict(model))
        ends = batches[RECORDS:]
        exact = gradients(full, ends)
        cosine = cosines(gradients(whole, ends), exact)
        own = cosines(gradients(model if faults else whole, ends), exact)
        return {
            "findings": findings, "sqnr": operands(monitor.rows), "cosine": cosine,
            "lost": cosine - own,
        }  # fmt: skip

    def continued(self, faults: Sequence[Fault], seed: int) -> dict[str, float]:
        """Accuracy and loss on the test part after `CONTINUED` steps from the trained state."""
        model = self.model(faults, seed)
        train(model, self.subject.batches(seed, CONTINUED), usual_optimizer(self.name, model))
        return self.subject.tested(model)


def gradients(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The gradient of all parameters as one vector in fp64, of each batch."""
    found = []
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        error(model(x), y).backward()
        parts = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(parts))
    return found


def cosines(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The mean cosine; of a gradient that is 0 or not finite, 0."""
    pairs = zip(found, exact, strict=True)
    return fmean((torch.cosine_similarity(a, b, dim=0).nan_to_num(0.0).item()) for a, b in pairs)


def rules_digest() -> str:
    """SHA-256 of what decides a verdict: the sources of qtrain's diagnosis and inspection."""
    root = Path(qtrain.__file__).parent
    files = [p for name in ("diagnosis", "inspection") for p in sorted((root / name).glob("*.py"))]
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def same_rules(path: Path, found: dict[str, Any]) -> None:
    """Note by which rules results are made; SystemExit where those that there are had others."""
    if found.setdefault("rules", rules_digest()) != rules_digest():
        raise SystemExit(f"{path} was made with other rules: move it away, or check its commit out")


def save(path: Path, found: dict[str, Any]) -> None:
    """One line a draw; what is not finite as text."""
    draws = [f'"{i}": {_line(own)}' for i, own in found["draws"].items()]
    rest = ",\n".join(f'"{k}": {_line(v)}' for k, v in found.items() if k != "draws")
    whole = path.with_suffix(".tmp")  # a run that is stopped here leaves the file as it was
    whole.write_text(f'{{{rest},\n"draws": {{\n' + ",\n".join(draws) + "\n}}\n")
    whole.replace(path)


def _line(value: Any) -> str:
    return json.dumps(_short(value))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


if __name__ == "__main__":
    main()
