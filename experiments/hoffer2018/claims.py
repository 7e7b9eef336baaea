"""The paper's claims: the table in README.md, its verdicts computed from the results.

python -m experiments.hoffer2018.claims [--scale paper] [--output FOLDER]
"""

from __future__ import annotations

from pathlib import Path

from experiments.harness.claims import Claim, publish

README = Path(__file__).parent / "README.md"

CLAIMS = (
    Claim(
        experiment="weight_decay", text="without weight decay accuracy is lower",
        paper="89.29 against 90.55 %", arm="off", other="on", says="below",
    ),
    Claim(
        experiment="weight_decay", text="eq. 4's rates are better than no decay",
        paper="89.29 against 90.56 %", arm="off", other="correction", says="below",
    ),
    Claim(
        experiment="weight_decay", text="eq. 4's rates do what weight decay does",
        paper="90.56 against 90.55 %", arm="correction", other="on", says="alike", within=1.0,
    ),
    Claim(
        experiment="weight_decay", text="norms can be set instead of the rate",
        paper="90.23 against 90.55 %", arm="norms", other="on", says="alike", within=1.0,
    ),
    Claim(
        experiment="deviations", text="L1 is as good as L2",
        paper="error 33.7 against 33.6 %", arm="l1", other="l2", says="alike", within=1.0,
    ),
    Claim(
        experiment="deviations", text="top-10 is as good as L2",
        paper="error 34.0 against 33.6 %", arm="top10", other="l2", says="alike", within=1.0,
    ),
    Claim(
        experiment="deviations", text="L-infinity is worse than L2",
        paper="error 36.2 against 33.6 %", arm="linf", other="l2", says="below",
    ),
    Claim(
        experiment="constant", text="a quarter of L1's constant is worse",
        paper="error 36.1 against 33.9 %", arm="quarter", other="whole", says="below",
    ),
    Claim(
        experiment="constant", text="four times L1's constant is worse",
        paper="error 35.4 against 33.9 %", arm="fourfold", other="whole", says="below",
    ),
    Claim(
        experiment="half_norm", text="L2 in FP16, sums in FP32, fails",
        paper="error 77 to 97 against 33.2 %", arm="l2 fp16/fp32", other="fp32", says="below",
    ),
    Claim(
        experiment="half_norm", text="L1 in FP16, sums too (ours halved), is as good as L2 in FP32",
        paper="error 33.7 against 33.2 %", arm="l1 2^0", other="fp32", says="alike", within=2.0,
    ),
    Claim(
        experiment="half_norm", text="ours alone: L2 in FP16, halved sums too, fails",
        paper="not tested", arm="l2 2^0", other="fp32", says="below",
    ),
    Claim(
        experiment="half_norm", text="the same, weights 2^8 times as large",
        paper="not tested", arm="l2 2^8", other="fp32", says="below",
    ),
    Claim(
        experiment="half_norm", text="there L1 in FP16 is as good as L2 in FP32",
        paper="not tested", arm="l1 2^8", other="fp32", says="alike", within=2.0,
    ),
    Claim(
        experiment="bounded_norm", text="bounded weight norm is below batch-norm",
        paper="error 28.2 against 26.0 %", arm="bounded", other="batch_norm", says="below",
    ),
    Claim(
        experiment="bounded_norm", text="weight norm is below bounded weight norm",
        paper="error 33 (quoted, another setting) against 28.2 %", arm="weight_norm",
        other="bounded", says="below",
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
        paper="error 27.8 against 27.6 %", arm="range", other="batch_norm", says="alike",
        within=1.0,
    ),
    Claim(
        experiment="range_norm", text="the same, the range averaged over 16 parts of the batch",
        paper="as above, its code", arm="range16", other="batch_norm", says="alike", within=1.0,
    ),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    publish(CLAIMS, README, __doc__ or "", arguments, verdicts=False)


if __name__ == "__main__":
    main()
