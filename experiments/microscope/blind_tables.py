"""What the blind faults say: tables, claims and a figure from results/blind/*.json.

    python -m experiments.microscope.blind_tables

Prints the tables, and writes them to results/blind_faults.md and the curves to
results/blind_faults.svg; of the set "scales" to results/scales.md.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from experiments.microscope.blind_figure import figure
from experiments.microscope.exact import interval, mcnemar, share
from experiments.microscope.faults import KINDS
from experiments.microscope.judged import COSTS, JUDGES, SIZES, Draw, alone, groups, judged, sized

RESULTS = Path(__file__).parent / "results"
COSTLY, LEVEL = 0.01, 0.025


def main() -> None:
    texts = [(report(), "blind_faults"), *([(scales(), "scales")] if read("scales") else [])]
    for text, name in texts:
        (RESULTS / f"{name}.md").write_text(text + "\n")
        print(text)
    figure(all_draws(read()), RESULTS / "blind_faults.svg")


def read(name: str = "blind") -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in sorted((RESULTS / name).glob("*.json"))}


def all_draws(cells: Mapping[str, Any]) -> list[Draw]:
    return [judged(draw, own["cell"]) for own in cells.values() for draw in own["draws"].values()]


def report() -> str:
    """Every table."""
    cells = read()
    draws = all_draws(cells)
    digests = ", ".join(sorted({own["rules"] for own in cells.values()}))
    parts = [f"{len(draws)} draws in {len(cells)} benches; rules {digests}.", *claims(draws)]
    parts += [by_cost(draws), by_size(draws), by_kind(draws), misses(draws), beside(draws)]
    return "\n\n".join([*parts, benches(cells), accuracy(cells)])


def scales() -> str:
    """The tables of the set "scales", and each fault that makes a scale too large or stale."""
    cells = read("scales")
    draws = all_draws(cells)
    digests = ", ".join(sorted({own["rules"] for own in cells.values()}))
    looks = [look for own in cells.values() for look in own["cell"]["healthy"]]
    lines = []
    for draw in draws:
        for fault in draw["faults"]:
            if fault["kind"] in ("coarse scale", "drifting range"):
                place = [fault["layer"], fault["role"]]
                named = ", ".join(f[2] for f in draw["findings"] if f[:2] == place)
                way = "" if fault["kind"] == "coarse scale" else " up" if fault["up"] else " down"
                figures = 1 + fault["size"], fault["sqnr"], fault["fall"], draw["lost"]
                lines.append([fault["kind"] + way, *figures, named])
    lines.sort(key=lambda line: (line[0], line[1]))
    headers = ["kind", "factor", "SQNR, dB", "fall, dB", "the draw lost", "named"]
    faults = tabulate(lines, headers, tablefmt="github", floatfmt=".3g")
    alarms = share(sum(bool(look["findings"]) for look in looks), len(looks))
    parts = [f"{len(draws)} draws in {len(cells)} benches; rules {digests}.", by_cost(draws)]
    parts += [by_kind(draws), f"Alarms in healthy records: {alarms}.", faults]
    return "\n\n".join(parts)


def claims(draws: Sequence[Draw]) -> list[str]:
    costly = [draw for draw in draws if draw["lost"] >= COSTLY]
    own = sum(draw["first"]["diagnose"] for draw in costly)
    low, _ = interval(own, len(costly))
    found = [
        f"(1) diagnose first, of draws that lose {COSTLY} of the cosine or more: "
        f"{share(own, len(costly))}: {'holds' if low > 0.5 else 'does not hold'}."
    ]
    for number, judge in enumerate(JUDGES[1:], 2):
        for chosen, name in ((costly, "those"), (draws, "all")):
            ours, theirs = (
                sum(d["first"][a] and not d["first"][b] for d in chosen)
                for a, b in (("diagnose", judge), (judge, "diagnose"))
            )
            p = mcnemar(ours, theirs)
            verdict = "holds" if p < LEVEL and ours > theirs else "does not hold"
            text = f"({number}) of {name}, diagnose alone first {ours}, {judge} alone {theirs}"
            found.append(f"{text}, p = {p:.2g}{': ' + verdict if name == 'those' else ''}.")
    return found


def rates(draws: Sequence[Draw], judge: str) -> list[str]:
    """Any planted fault found, one first, its layer first."""
    n = len(draws)
    counts = [sum(any(d["found"][judge]) for d in draws)]
    counts += [sum(d[what][judge] for d in draws) for what in ("first", "layer")]
    return [share(count, n) for count in counts]


def table(rows: Iterable[tuple[str, Sequence[Draw]]], what: str, judge: str = "diagnose") -> str:
    lines = [[name, *rates(chosen, judge)] for name, chosen in rows]
    headers = [what, "found", "first", "layer first"]
    return tabulate(lines, headers, tablefmt="github")


def by_cost(draws: Sequence[Draw]) -> str:
    rows = [
        (f"{low:g} to {high:g}", [d for d in draws if low <= d["lost"] < high])
        for low, high in COSTS
    ]
    parts = [f"{judge}\n\n{table(rows, 'cosine lost', judge)}" for judge in JUDGES]
    return "By cost, all draws.\n\n" + "\n\n".join(parts)


def by_size(draws: Sequence[Draw]) -> str:
    parts = []
    for name, kinds in groups().items():
        own = alone(draws, kinds)
        rows = [(f"{low} to {high}", sized(own, low, high)) for low, high in SIZES]
        parts.append(table(rows, f"{name}, decades"))
    return "By size, draws of one fault.\n\n" + "\n\n".join(parts)


def by_kind(draws: Sequence[Draw]) -> str:
    """Of draws of one fault: as which symptoms, and what was lost where it was missed."""
    lines = []
    for kind in KINDS:
        own = alone(draws, [kind])
        if not own:
            continue
        costly = [d for d in own if d["lost"] >= COSTLY]
        missed = sorted(d["lost"] for d in own if not d["found"]["diagnose"][0])
        symptoms: Counter[str] = Counter()
        for d in own:
            place = [d["faults"][0]["layer"], d["faults"][0]["role"]]
            symptoms.update(f[2] for f in d["findings"] if f[:2] == place)
        lines.append([
            kind, *rates(own, "diagnose")[:2], rates(costly, "diagnose")[0],
            ", ".join(f"{name} {n}" for name, n in symptoms.most_common()),
            ", ".join(f"{lost:.2g}" for lost in missed if lost >= COSTLY / 10),
        ])  # fmt: skip
    costs = f"found, cosine lost >= {COSTLY}", "as", f"lost where missed, >= {COSTLY / 10}"
    headers = ["kind", "found", "first", *costs]
    return "By kind, draws of one fault.\n\n" + tabulate(lines, headers, tablefmt="github")


def misses(draws: Sequence[Draw]) -> str:
    """The costly draws of which no planted tensor stands first, and their faults."""
    lines = []
    for draw in sorted(draws, key=lambda d: -d["lost"]):
        if draw["lost"] >= COSTLY and not draw["first"]["diagnose"]:
            found = ["named" if own else "not named" for own in draw["found"]["diagnose"]]
            for fault, said in zip(draw["faults"], found, strict=True):
                place = f"{fault['layer']}, {fault['role']}"
                figures = f"{draw['lost']:.2g}", fault["kind"], f"{fault['size']:.2g}"
                lines.append([*figures, place, fault["sqnr"], fault["fall"], said])
    headers = ["lost", "kind", "size", "tensor", "SQNR, dB", "fall, dB", "diagnose"]
    text = tabulate(lines, headers, tablefmt="github", floatfmt=".3g")
    return f"Not first, though {COSTLY} of the cosine or more is lost.\n\n{text}"


def beside(draws: Sequence[Draw]) -> str:
    """The judges over chosen draws."""
    one = [d for d in draws if len(d["faults"]) == 1]
    two = [d for d in draws if len(d["faults"]) == 2]
    chosen = {
        "all": draws, "one fault": one, "two faults": two,
        **{f"one fault, {name}": alone(draws, kinds) for name, kinds in groups().items()},
        f"cosine lost < {COSTLY / 10}": [d for d in draws if d["lost"] < COSTLY / 10],
        f"cosine lost >= {COSTLY}": [d for d in draws if d["lost"] >= COSTLY],
    }  # fmt: skip
    lines = [[name, judge, *rates(own, judge)] for name, own in chosen.items() for judge in JUDGES]
    both = [share(sum(all(d["found"][j]) for d in two), len(two)) for j in JUDGES]
    said = "; ".join(f"{judge} {text}" for judge, text in zip(JUDGES, both, strict=True))
    headers = ["draws", "judge", "found", "first", "layer first"]
    others = [d for d in draws if {f[0] for f in d["findings"]} - {f["layer"] for f in d["faults"]}]
    return (
        f"{tabulate(lines, headers, tablefmt='github')}\n\nBoth of two faults found: {said}.\n\n"
        f"A layer without a fault is named, too: {share(len(others), len(draws))}."
    )


def benches(cells: Mapping[str, Any]) -> str:
    lines = []
    for name, own in cells.items():
        looks = own["cell"]["healthy"]
        draws = [judged(draw, own["cell"]) for draw in own["draws"].values()]
        costly = [d for d in draws if d["lost"] >= COSTLY]
        gained = max(-min(float(d["lost"]) for d in own["draws"].values()), 0.0)
        lines.append([
            name, own["cell"]["tested"]["accuracy"], fmean(float(k["cosine"]) for k in looks),
            max(abs(float(k["lost"])) for k in looks), gained,
            sum(bool(k["findings"]) for k in looks), *rates(costly, "diagnose")[:2],
        ])  # fmt: skip
    said = "bench accuracy cosine resolution gained alarms found first"
    text = tabulate(lines, said.split(), tablefmt="github", floatfmt=".4g")
    return (
        "Benches: healthy, accuracy in percent, cosine, what it loses by noise, alarms of 5; the "
        "most that a draw's cosine\ngained (noise, too); of draws that lose "
        f"{COSTLY} or more, those found and first by diagnose.\n\n{text}"
    )


def accuracy(cells: Mapping[str, Any]) -> str:
    """Continued draws by what they lose on the test part, in deviations of healthy runs' loss."""
    rows: dict[str, list[Draw]] = {"below 0.02": [], "0.02 to 0.2": [], "above 0.2": []}
    noise = []
    for own in cells.values():
        usual = [float(run["loss"]) for run in own["cell"]["continued"]]
        noise.append(stdev(usual))
        for draw in own["draws"].values():
            if "continued" in draw:
                loss = float(draw["continued"]["loss"]) - fmean(usual)
                loss = loss if math.isfinite(loss) else math.inf
                name = "below 0.02" if loss < 0.02 else "0.02 to 0.2" if loss < 0.2 else "above 0.2"
                rows[name].append(judged(draw, own["cell"]))
    parts = [f"{judge}\n\n{table(rows.items(), 'nats lost', judge)}" for judge in JUDGES]
    text = "By the test loss after 40 steps, above healthy runs' mean (their deviation: "
    return text + f"{fmean(noise):.2g} nats).\n\n" + "\n\n".join(parts)


if __name__ == "__main__":
    main()
