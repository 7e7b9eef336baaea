"""qtrain on this machine's GPU: correctness, steps beside TF32, kernels.

    python -m experiments.gpu                    five minutes
    python -m experiments.gpu --parts steps --budget 900

Writes gpu.json into --output after each part and network: GPU, versions, commit, results.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import checks, kernels, steps

#: in order of worth, with their shares of the budget
PARTS: dict[str, tuple[ModuleType, float]] = {
    "checks": (checks, 0.12),
    "steps": (steps, 0.68),
    "kernels": (kernels, 0.2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budget", type=float, default=300, help="seconds, about (default: 300)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("needs a GPU that torch sees: torch.cuda.is_available() is False")
    from machine import machine

    from .clock import Budget

    args.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": machine(torch.device("cuda")), "budget": args.budget}
    print(result["environment"], flush=True)
    whole = Budget(args.budget)
    for name in args.parts:
        part, share = PARTS[name]
        left = sum(PARTS[other][1] for other in args.parts[args.parts.index(name) :])
        start = time.monotonic()

        def keep(found: object, name: str = name) -> None:
            result[name] = found
            text = json.dumps(result, indent=1) + "\n"
            (args.output / "gpu.json").write_text(text, encoding="utf-8")

        try:
            keep(part.run(Budget(whole.left * share / left), keep))
            print(part.text(result[name]), flush=True)
        except Exception as error:  # the other parts are worth their time
            traceback.print_exc()
            keep({"failed": f"{type(error).__name__}: {error}"})
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
