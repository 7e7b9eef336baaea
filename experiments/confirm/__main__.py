"""Confirm the papers' claims, a slice at a time.

    python -m experiments.confirm [STUDY ...] --scale cpu --minutes 30
    python -m experiments.confirm int8 range --scale gpu --data-dir PATH --jobs 3 --minutes 8
    python -m experiments.confirm text "weight decay small" --data-dir PATH --text-dir TEXT

Does runs of the studies, whole seeds first, that results/<study>.json does not hold yet and that
fit the budget, adds them there, and writes the table into README.md.  A seed's arms run on one
machine; runs that a slice leaves behind are begun anew by the next, unless --runs-dir is kept.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from experiments.confirm.claims import CLAIMS
from experiments.confirm.results import merged, stored
from experiments.confirm.studies import ON_CPU, STUDIES
from experiments.confirm.study_of import StudyOf
from experiments.confirm.table import publish
from qtrain import StudyResult, study


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)}; default: all")
    parser.add_argument(
        "--scale", choices=("cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--data-dir", help="folder of CIFAR-10")
    parser.add_argument("--text-dir", help="a text, or a folder of texts")
    parser.add_argument("--data", default="cifar10", help="cifar10, or imagefolder of its images")
    parser.add_argument("--cache-dir", help="folder for decoded images")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=30, help="start only what ends in time")
    parser.add_argument("--runs-dir", default="runs/confirm")
    args = parser.parse_args(arguments)
    here = [name for name in STUDIES if (name in ON_CPU) == (args.scale == "cpu")]
    names = args.studies or [name for name in here if place(STUDIES[name], args) is not None]
    if unknown := [name for name in names if name not in STUDIES]:
        parser.error(f"got {unknown[0]!r}, need studies of {', '.join(STUDIES)}")
    for name in names:
        if place(STUDIES[name], args) is None:
            parser.error(f"{name}: need --{'text' if _is_text(STUDIES[name]) else 'data'}-dir")
    ends = time.monotonic() + 60 * args.minutes
    for name in names:
        if (left := ends - time.monotonic()) > 0:
            merged(name, _slice(name, STUDIES[name], args, left))
    publish()


def _slice(name: str, own: StudyOf, args: argparse.Namespace, budget: float) -> Any:
    """The runs of seeds that are not whole."""
    known = stored(name)
    whole = [
        seed
        for seed in own.seeds
        if {run.arm for run in known if run.seed == seed and run.has_ended} == set(own.arms)
    ]
    seeds = [seed for seed in own.seeds if seed not in whole]
    if not seeds:
        return ()
    config = {**own.config, **(place(own, args) or {})}
    claims = [c for c in CLAIMS if c.study == name and c.metric == own.metric]
    found: StudyResult = study(
        own.model, own.arms, seeds=seeds, data=args.data if own.data == "cifar10" else own.data,
        config=config, margin=min(c.margin for c in claims), primary=[c.arm for c in claims],
        metric=own.metric, rates=own.rates or None, name=name, runs_dir=args.runs_dir,
        jobs=1 if own.in_order else args.jobs, budget=budget,
    )  # fmt: skip
    print(found)
    return found.runs


def _is_text(own: StudyOf) -> bool:
    return "context" in own.config


def place(own: StudyOf, args: argparse.Namespace) -> dict[str, str | None] | None:
    """The settings that say where its data lie; None where the command does not."""
    if own.data == "digits":
        return {}
    if _is_text(own):
        return {"data_dir": args.text_dir} if args.text_dir else None
    return {"data_dir": args.data_dir, "cache_dir": args.cache_dir} if args.data_dir else None


if __name__ == "__main__":
    main()
