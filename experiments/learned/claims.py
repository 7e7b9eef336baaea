"""What is claimed of learned steps against the results: the table in README.md.

Set before the runs: n = 8 seeds, paired; "alike" within 1.5 points, about twice the deviation of
full precision between seeds, as in experiments/recipes; "below" needs an interval on one side of 0,
which with the deviation of 1 point that pairs have there finds a difference of 1 point in 8 of 10
repetitions.
"""

from __future__ import annotations

from pathlib import Path

from experiments.harness.claims import Claim, publish


def _below(arm: str, other: str, text: str) -> Claim:
    return Claim(
        experiment="digits",
        text=text,
        paper="-",
        arm=arm,
        other=other,
        says="below",
    )


CLAIMS = (
    Claim(
        experiment="digits",
        text="4 bits with learned steps are as good as fp32",
        paper="ResNet-18, ImageNet: 71.1 of 70.5 % (Esser et al. 2020, table 1)",
        arm="learned-4",
        other="fp32",
        says="alike",
        within=1.5,
    ),
    _below("learned-2", "fp32", "2 bits with learned steps fall behind fp32"),
    _below("frozen-4", "learned-4", "4 bits: a fixed step is worse than one that learns"),
    _below("frozen-2", "learned-2", "2 bits: a fixed step is worse than one that learns"),
    _below("absmax-4", "learned-4", "4 bits: the largest magnitude is worse than a learned step"),
    _below("absmax-2", "learned-2", "2 bits: the largest magnitude is worse than a learned step"),
)


if __name__ == "__main__":
    publish(CLAIMS, Path(__file__).parent / "README.md", __doc__ or "")
