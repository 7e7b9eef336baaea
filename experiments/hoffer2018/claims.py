"""The paper's claims against the results: a table in README.md, its verdicts computed.

    python experiments/hoffer2018/claims.py [--scale paper] [--output FOLDER]

d is the mean over seeds of one arm's metric minus another's, with its 95 % interval
(paired over seeds, Student's t).  A claim

    below    holds if the interval is below 0, does not hold if it is above 0
    alike    holds if the interval lies within +-m points, does not hold if it lies outside
    fails    holds if all of the arm's runs diverged, does not hold if none did

and "does not show" otherwise: the interval is too wide, or there is none.  An arm whose runs all
diverged is below any that has none such, and alike to none.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiment import RESULTS
from report import Result, difference, failures, finals, shown
from tabulate import tabulate

from qtrain.files import write_atomically

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
HOLDS, NOT, OPEN = "holds", "does not hold", "does not show"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says of two arms of an experiment.

    paper    its numbers, in words
    says     of `arm` against `other`; "fails": of `arm` alone
    within   m, in the metric's unit, for "alike"
    unit     of the metric
    """

    experiment: str
    text: str
    paper: str
    arm: str
    other: str
    says: Literal["below", "alike", "fails"]
    within: float = 0.0
    unit: str = "%"


CLAIMS = (
    Claim(
        experiment="weight_decay", text="without weight decay accuracy is lower",
        paper="89.2 against 90.5 %", arm="off", other="on", says="below",
    ),
    Claim(
        experiment="weight_decay", text="eq. 4's rates are better than no decay",
        paper="90.5 against 89.2 %", arm="off", other="correction", says="below",
    ),
    Claim(
        experiment="weight_decay", text="eq. 4's rates do what weight decay does",
        paper="90.5 against 90.5 %", arm="correction", other="on", says="alike", within=1.0,
    ),
    Claim(
        experiment="weight_decay", text="norms can be set instead of the rate",
        paper="90.2 against 90.5 %", arm="norms", other="on", says="alike", within=1.0,
    ),
    Claim(
        experiment="deviations", text="L1 is as good as L2",
        paper="error 34 against 33.7 %", arm="l1", other="l2", says="alike", within=1.0,
    ),
    Claim(
        experiment="deviations", text="top-10 is as good as L2",
        paper="error 34 against 33.7 %", arm="top10", other="l2", says="alike", within=1.0,
    ),
    Claim(
        experiment="deviations", text="L-infinity is worse than L2",
        paper="error 36 against 33.7 %", arm="linf", other="l2", says="below",
    ),
    Claim(
        experiment="constant", text="a quarter of L1's constant is worse",
        paper="error 36 against 33.8 %", arm="quarter", other="whole", says="below",
    ),
    Claim(
        experiment="constant", text="four times L1's constant is worse",
        paper="error 35.2 against 33.8 %", arm="fourfold", other="whole", says="below",
    ),
    Claim(
        experiment="half_norm", text="L2 in FP16 fails at the network's own scale",
        paper="error 77 to 97 against 33.3 %", arm="l2 2^0", other="fp32", says="below",
    ),
    Claim(
        experiment="half_norm", text="L2 in FP16 fails where inputs are 2^8 times as large",
        paper="", arm="l2 2^8", other="fp32", says="below",
    ),
    Claim(
        experiment="half_norm", text="L1 in FP16 is as good as L2 in FP32",
        paper="error 34 against 33.3 %", arm="l1 2^0", other="fp32", says="alike", within=2.0,
    ),
    Claim(
        experiment="half_norm", text="and where inputs are 2^8 times as large",
        paper="", arm="l1 2^8", other="fp32", says="alike", within=2.0,
    ),
    Claim(
        experiment="bounded_norm", text="bounded weight norm is below batch-norm",
        paper="error 28.2 against 26.0 %", arm="bounded", other="batch_norm", says="below",
    ),
    Claim(
        experiment="bounded_norm", text="weight norm is below bounded weight norm",
        paper="error 33 against 28.2 %", arm="weight_norm", other="bounded", says="below",
    ),
    Claim(
        experiment="lp_transformer", text="L1 weight norm is as good as L2 on a Transformer",
        paper="not recovered", arm="l1", other="l2", says="alike", within=0.05, unit="nats",
    ),
    Claim(
        experiment="lp_transformer", text="L-infinity is as good as L2 on a Transformer",
        paper="not recovered", arm="linf", other="l2", says="alike", within=0.05, unit="nats",
    ),
    Claim(
        experiment="lp_transformer", text="no weight norm is as good as L2 on a Transformer",
        paper="not recovered", arm="plain", other="l2", says="alike", within=0.05, unit="nats",
    ),
    Claim(
        experiment="lp_lstm", text="L1 weight norm is as good as L2 on an LSTM",
        paper="not recovered", arm="l1", other="l2", says="alike", within=0.05, unit="nats",
    ),
    Claim(
        experiment="lp_lstm", text="L-infinity is as good as L2 on an LSTM",
        paper="not recovered", arm="linf", other="l2", says="alike", within=0.05, unit="nats",
    ),
    Claim(
        experiment="lp_lstm", text="no weight norm is as good as L2 on an LSTM",
        paper="not recovered", arm="plain", other="l2", says="alike", within=0.05, unit="nats",
    ),
    Claim(
        experiment="range_norm", text="range batch-norm is as good as batch-norm",
        paper="error 28.2 against 27.3 %", arm="range", other="batch_norm", says="alike",
        within=1.0,
    ),
    Claim(
        experiment="range_norm", text="the same, the range averaged over 16 parts of the batch",
        paper="as above, its code", arm="range16", other="batch_norm", says="alike", within=1.0,
    ),
)  # fmt: skip


def verdict(claim: Claim, result: Result) -> str:
    """By the rule above."""
    broken, count = failures(result, claim.arm)
    if claim.says == "fails":
        return OPEN if count == 0 or 0 < broken < count else HOLDS if broken else NOT
    others, _ = failures(result, claim.other)
    if broken and broken == count and not others:
        return HOLDS if claim.says == "below" else NOT
    interval = difference(result, claim.arm, claim.other)
    if interval is None or broken or others:
        return OPEN
    low, high, m = interval.low, interval.high, claim.within
    if claim.says == "below":
        return HOLDS if high < 0 else NOT if low > 0 else OPEN
    return HOLDS if -m <= low and high <= m else NOT if low > m or high < -m else OPEN


def row(claim: Claim, result: Result | None) -> list[str]:
    """Claim, paper, ours, rule, verdict."""
    alike = f"within ±{claim.within:g} {claim.unit}"
    rule = {"below": "below", "alike": alike, "fails": "diverges"}[claim.says]
    if result is None:
        return [claim.text, claim.paper, "not run", rule, "-"]
    means = [
        f"{statistics.fmean(values):.2f}" if (values := finals(result, arm).values()) else "-"
        for arm in (claim.arm, claim.other)
    ]
    gap = difference(result, claim.arm, claim.other)
    broken, count = failures(result, claim.arm)
    ours = (
        f"{means[0]} against {means[1]} {claim.unit}, d = {shown(gap)}, n = {gap.n if gap else 0}"
    )
    if claim.says == "fails" or broken:
        ours = f"{broken} of {count} runs diverged; {ours}"
    return [claim.text, claim.paper, ours, rule, verdict(claim, result)]


def table(results: Mapping[str, Result], claims: Sequence[Claim] = CLAIMS) -> str:
    """As markdown."""
    rows = [row(claim, results.get(claim.experiment)) for claim in claims]
    headers = ["claim", "paper", "ours", "rule", "verdict"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def load(folder: Path, scale: str) -> dict[str, Result]:
    """{experiment: its results} of those that are in the folder."""
    names = dict.fromkeys(claim.experiment for claim in CLAIMS)
    paths = {name: folder / f"{name}-{scale}.json" for name in names}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def insert(text: str, into: Path) -> None:
    """Put the text between the file's two markers; SystemExit where it lacks them."""
    before, begin, rest = into.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{into}: need the lines {BEGIN} and {END}")
    whole = f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
    write_atomically(into, lambda file: file.write(whole.encode()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", choices=("here", "paper"), default="here")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--readme", type=Path, default=README)
    args = parser.parse_args(arguments)
    found = table(load(args.output, args.scale))
    print(found)
    insert(found, args.readme)


if __name__ == "__main__":
    main()
