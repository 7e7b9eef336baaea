"""One table: every subject on one network and batch size, measured and printed."""

from __future__ import annotations

import argparse
import statistics
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from floor import Rates, floor_seconds, products
from memory import peak_bytes, saved_bytes
from networks import Network
from parts import PARTS, parts
from step import Step
from subjects import FP32, Subject, subjects
from tabulate import tabulate
from timing import interleaved, ratio, spread

from qtrain import summary

MIB = 2**20
Row = dict[str, Any]


def first_line(error: Exception) -> str:
    """An error's text, as a cell of a table holds it."""
    return (str(error).splitlines() or [""])[0][:100]


def chosen(network: Network, args: argparse.Namespace) -> list[Subject]:
    return subjects(network, layouts=args.layouts, compiled=args.compiled, wanted=args.methods)


def visits(network: Network, args: argparse.Namespace) -> int:
    """How often `measure` ticks: each subject is built, visited every round, then looked into."""
    rounds: int = args.rounds
    return len(chosen(network, args)) * (rounds + 2)


def measure(
    network: Network,
    batch: int,
    device: torch.device,
    args: argparse.Namespace,
    rates: Rates,
    least_seconds: float,
    tick: Callable[[], Any],
) -> dict[str, Any]:
    """The table as it goes into the JSON; a subject that cannot run keeps a row that says why."""
    rows: dict[str, Row] = {}
    steps: dict[str, Step] = {}
    wanted = chosen(network, args)
    for subject in wanted:
        row = rows[subject.key] = {
            "method": subject.method.name, "mode": subject.mode, "layout": subject.layout,
        }  # fmt: skip
        if subject.missing is not None:
            row["status"] = f"not installed: {subject.missing}"
        else:
            try:
                step = subject.build(network, batch, device)
                for _ in range(3):  # compiled, then whatever specializes on the second call
                    step()
                steps[subject.key] = step
                row["status"] = "ok"
            except Exception as error:
                row["status"] = f"failed: {type(error).__name__}: {first_line(error)}"
                row["traceback"] = traceback.format_exc()
        if subject.key not in steps:
            tick_times = args.rounds + 1
            for _ in range(tick_times):
                tick()
        tick()
    times = interleaved(steps, rounds=args.rounds, least_seconds=least_seconds, tick=tick)
    for subject in wanted:
        if subject.key in steps:
            row, step = rows[subject.key], steps[subject.key]
            if subject.method.recipe is not None and not subject.compiled:
                row["recipe"] = str(subject.method.recipe)
                row["summary"] = str(summary(step.plain, step.inputs)).splitlines()
            row["peak_bytes"] = peak_bytes(step)
            if not subject.compiled:  # inside a compiled graph neither is visible
                row["saved_bytes"] = saved_bytes(step)
                found = parts(step, 1 if args.quick else 2)
                row["parts"] = {"seconds": found.seconds, "step": found.step}
                row["quantizers_share"] = found.share("range", "codes")
                row["unknown_calls"] = found.unknown
            tick()
    _compare(rows, times)
    baseline = min(
        (k for k, r in rows.items() if r["method"] == FP32 and r["mode"] == "eager"),
        key=lambda k: statistics.median(times[k]),
    )
    least = floor_seconds(products(steps[baseline]), rates)
    return {
        "network": network.name,
        "batch": batch,
        "sample": network.sample,
        "rounds": args.rounds,
        "baseline": baseline,
        "baseline_seconds": statistics.median(times[baseline]),
        "floor_seconds": least,
        "rows": list(rows.values()),
    }


def _compare(rows: Mapping[str, Row], times: Mapping[str, list[float]]) -> None:
    """Times and ratios to full precision: all to eager, compiled ones to compiled as well; the
    faster layout is what they are compared with."""
    base: dict[str, str] = {}
    for mode in ("eager", "compiled"):
        own = [k for k in times if rows[k]["method"] == FP32 and rows[k]["mode"] == mode]
        if own:
            base[mode] = min(own, key=lambda k: statistics.median(times[k]))
    saved = rows[base["eager"]]["saved_bytes"]
    for key, values in times.items():
        row = rows[key]
        row["seconds"], row["seconds_by_round"] = spread(values), values
        row["ratio"] = ratio(values, times[base["eager"]])
        if row["mode"] == "compiled" and "compiled" in base:
            row["ratio_to_compiled"] = ratio(values, times[base["compiled"]])
        if "saved_bytes" in row:
            row["saved_ratio"] = row["saved_bytes"] / saved


def text(table: Mapping[str, Any]) -> str:
    """The table for the terminal."""
    lines = []
    for row in table["rows"]:
        line = [row["method"], row["mode"], row["layout"].replace("channels_last", "ch.last")]
        if row["status"] != "ok":
            lines.append([*line, row["status"]])
            continue
        compiled, profile = row.get("ratio_to_compiled"), row.get("parts")
        peak = row["peak_bytes"]
        lines.append(
            [
                *line,
                row["seconds"].text(1000),
                row["ratio"].text(digits=2),
                compiled.text(digits=2) if compiled else "",
                "" if peak is None else f"{peak / MIB:.0f}",
                f"{row['saved_bytes'] / MIB:.1f}" if profile else "",
                f"{row['saved_ratio']:.2f}" if profile else "",
                *(f"{100 * profile['seconds'][p] / profile['step']:.0f}" for p in PARTS if profile),
            ]
        )
    headers = ["", "mode", "layout", "ms", "/ fp32", "/ compiled\nfp32", "peak\nMiB",
               "saved\nMiB", "/ fp32", *(f"{part}\n%" for part in PARTS)]  # fmt: skip
    base = table["baseline_seconds"]
    least = ", ".join(
        f"{kind} {1000 * value:.1f} ms ({value / base:.2f} of the fp32 step)"
        for kind, value in table["floor_seconds"].items()
    )
    unknown = sorted({name for row in table["rows"] for name in row.get("unknown_calls", ())})
    return "\n".join(
        [
            f"{table['network']}, batch {table['batch']}, {table['rounds']} rounds: "
            f"median [quartiles]; fp32 is {table['baseline']}",
            tabulate(lines, headers, disable_numparse=True),
            f"floor (products' operations and bytes at the machine's rates): {least}",
            *(f"not timed as a part, no such call: {name}" for name in unknown),
        ]
    )
