"""Steps of training, whose products by functions are their modules', bit for bit.

    python -m experiments.coverage.steps timm [--only PART]
    python -m experiments.coverage.steps transformers

One model of each of timm's files, its smallest, and the architectures of transformers at small
sizes, under `quantize(model, bits=8, norm="range")`: a step of SGD on a batch, and a forward in
evaluation, beside a twin (`twins.py`); then a step with nearest rounding, beside new modules in
every call.  Needs timm or transformers, which the project does not.  Writes
results/steps-<library>.json after each model, goes on where it stopped, and writes
results/steps-<library>.md at the end.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from experiments.coverage.architectures import TRANSFORMERS
from experiments.coverage.compared import compared
from experiments.coverage.rows import collect, said
from experiments.coverage.small import of_timm, of_transformers, smallest
from qtrain import Recipe, recipes

#: no model is given more
SECONDS = 40


def nearest() -> Recipe:
    """int8 without noise."""
    own = recipes.int8(8)
    quantizer = replace(own.grad_input.grad_output, rounding=own.forward.input.rounding)
    return replace(
        own, name="int8, nearest", grad_input=replace(own.grad_input, grad_output=quantizer)
    )


class TooLong(BaseException):
    """A model took more than SECONDS of one core."""


@contextmanager
def bounded() -> Iterator[None]:
    """TooLong after SECONDS of this process's time."""

    def stop(*_: Any) -> None:
        raise TooLong(f"over {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measured(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What differs from the twins, by name."""
    start, norm, asking = time.process_time(), "range", True
    while True:
        try:
            noisy = compared(model, inputs, recipe=recipes.int8(8), norm=norm, asking=asking)
            break
        except ValueError as error:
            if norm is None or "norm: got" not in str(error):
                raise
            norm = None
        except RuntimeError as error:  # it asks itself, or writes to its input
            if not asking or "leaf" not in str(error):
                raise
            asking = False
    fresh = compared(model, inputs, recipe=nearest(), norm=norm, same_noise=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "inputs": {name: list(x.shape) for name, x in inputs.items()},
        "calls": noisy.calls,
        "tensors": noisy.tensors + fresh.tensors,
        "differ": noisy.differ + [f"nearest, {name}" for name in fresh.differ],
        "infinite": noisy.infinite + [f"nearest, {name}" for name in fresh.infinite],
        "seconds": round(time.process_time() - start, 1),
    }


def table(library: str, rows: dict[str, Any]) -> str:
    """A sentence, and a row for each model that is not equal."""
    ran = {name: row for name, row in rows.items() if "calls" in row}
    equal = [row for row in ran.values() if not row["differ"] and not row["infinite"]]
    calling = [row for row in ran.values() if row["calls"]]
    lines = [
        f"**{library}: {len(equal)} of {len(ran)} models equal their twins in every bit** of "
        f"{sum(row['tensors'] for row in ran.values())} outputs, gradients and weights, and are "
        f"finite; {len(calling)} of them have products of functions, "
        f"{sum(row['calls'] for row in ran.values())} calls a forward.",
    ]
    odd = {name: row for name, row in rows.items() if row not in equal}
    if odd:
        lines += ["", "| model | what |", "|-|-|"]
    for name, row in odd.items():
        parts = (
            [f"differ: {len(row['differ'])}, as {row['differ'][0]}"] if row.get("differ") else []
        )
        parts += [f"not finite: {', '.join(row['infinite'][:3])}"] if row.get("infinite") else []
        lines.append(f"| {name} | {row.get('error') or '; '.join(parts)} |")
    return "\n".join(lines) + "\n"


def _row(library: str, one: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    try:
        with bounded():
            if library == "timm":
                row["model"] = smallest(one)
                made = of_timm(row["model"])
            else:
                made = of_transformers(*one.split(", "))
        with bounded():
            row |= measured(*made)
    except (TooLong, Exception) as error:  # a row that says so
        row["error"] = said(error)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=["timm", "transformers"])
    parser.add_argument("--only", default="", help="models in whose name this is, again")
    given = parser.parse_args()
    library = import_module(given.library)
    if given.library == "timm":
        every = [file for file in library.list_modules() if library.list_models(module=file)]
    else:
        every = [f"{name}, {kind}" for name in TRANSFORMERS for kind in ("sdpa", "eager")]
        for one in ("Mamba, sdpa", "Bloom, sdpa"):  # which have none
            every.remove(one)
    collect(
        given.library, f"steps-{given.library}", every, lambda one: _row(given.library, one), table,
        lambda one: bool(given.only) and given.only in one,
    )  # fmt: skip


if __name__ == "__main__":
    main()
