"""Attack quantizers, products and the public calls with random cases.

python -m tests.fuzz --minutes 30                  # shared out; exit status 1 if a case failed
python -m tests.fuzz products --seed 17 --cases 1  # one case again

A case follows from its seed alone, on any machine.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import warnings
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

SUBJECTS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def case(subject: str, seed: int) -> str | None:
    """One case: None where it is right, else what is wrong."""
    attack = importlib.import_module(f"tests.fuzz.{subject}").attack
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: str | None = attack(random.Random(seed))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--minutes", type=float, default=10.0, help="for all together (default 10)")
    parser.add_argument("--cases", type=int, default=10**9, help="of each subject, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next adds 1")
    given = parser.parse_args()
    subjects = given.subjects or SUBJECTS
    unknown = sorted(set(subjects) - set(SUBJECTS))
    if unknown:
        parser.error(f"unknown subject {unknown[0]!r}, need some of {', '.join(SUBJECTS)}")
    torch.set_num_threads(1)
    rows, wrong = [], []
    for subject in subjects:
        end = time.monotonic() + 60 * given.minutes / len(subjects)
        done = failed = 0
        with tqdm(desc=subject, unit=" cases", disable=None) as bar:
            while done < given.cases and time.monotonic() < end:
                found = case(subject, given.seed + done)
                if found is not None:
                    failed += 1
                    wrong.append(f"{subject} --seed {given.seed + done}: {found}")
                done += 1
                bar.update()
        rows.append([subject, done, failed])
    print("\n".join(wrong[:50]))
    print(tabulate(rows, ["subject", "cases", "wrong"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
