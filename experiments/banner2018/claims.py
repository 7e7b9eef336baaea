"""The paper's claims: the table in README.md, its verdicts computed from the results.

python -m experiments.banner2018.claims [--scale paper] [--output FOLDER]
"""

from __future__ import annotations

from pathlib import Path

from experiments.harness.claims import Claim, publish

README = Path(__file__).parent / "README.md"

CLAIMS = (
    *(
        Claim(
            experiment=experiment, text=f"{data}: {text}", paper=paper, arm=arm, other=other,
            says="alike", within=1.0,
        )
        for experiment, data in (("int8_resnet", "CIFAR-10"), ("int8_digits", "digits"))
        for arm, other, text, paper in (
            (
                "banner2018", "fp32", "8 bits, the paper's recipe, are as good as full precision",
                "error 33.5 against 34.0 %, ImageNet",
            ),
            ("banner2018", "range", "the same, both with range batch-norm", ""),
            ("int8", "fp32", "8 bits, the house recipe, are as good as full precision", ""),
            ("int8", "range", "the same, both with range batch-norm", ""),
        )
    ),
    Claim(
        experiment="transformer", text="8 bits, attention too, predict tokens as well",
        paper="64.0 against 63.9 %", arm="int8", other="fp32", says="alike", within=1.0,
    ),
    Claim(
        experiment="transformer", text="and their perplexity is the same",
        paper="5.6 against 5.72", arm="int8", other="fp32", says="alike", within=0.1, unit="",
        metric="perplexity",
    ),
    Claim(
        experiment="transformer", text="attention in 8 bits costs nothing more",
        paper="", arm="int8", other="linear", says="alike", within=1.0,
    ),
    Claim(
        experiment="bits", text="2 bits: the backward cosine is below the forward one",
        paper="0.20 against 0.82", arm="2 bits", other="2 bits", says="below", unit="", places=4,
        metric="cosine_backward", against="cosine_forward",
    ),
    Claim(
        experiment="bits", text="4 bits: the same",
        paper="0.74 against 0.99", arm="4 bits", other="4 bits", says="below", unit="", places=4,
        metric="cosine_backward", against="cosine_forward",
    ),
    Claim(
        experiment="bits", text="6 bits: the same",
        paper="0.88 against 1", arm="6 bits", other="6 bits", says="below", unit="", places=4,
        metric="cosine_backward", against="cosine_forward",
    ),
    Claim(
        experiment="bits", text="8 bits: the same",
        paper="0.985 against 1", arm="8 bits", other="8 bits", says="below", unit="", places=4,
        metric="cosine_backward", against="cosine_forward",
    ),
    Claim(
        experiment="bits", text="2 bits are worse than 8",
        paper="18 against 89 %", arm="2 bits", other="8 bits", says="below",
    ),
    Claim(
        experiment="bits", text="4 bits are worse than 8",
        paper="83 against 89 %", arm="4 bits", other="8 bits", says="below",
    ),
    Claim(
        experiment="bits", text="6 bits are as good as 8",
        paper="89.5 against 89 %", arm="6 bits", other="8 bits", says="alike", within=1.0,
    ),
    Claim(
        experiment="bits", text="8 bits are as good as full precision, both with range batch-norm",
        paper="", arm="8 bits", other="fp32 range", says="alike", within=1.0,
    ),
    Claim(
        experiment="bifurcation", text="without bifurcation 8 bits are worse",
        paper="not recovered", arm="narrow", other="whole", says="below",
    ),
    Claim(
        experiment="bifurcation", text="the same with gradients of 4 bits",
        paper="not recovered", arm="4 bits, narrow", other="4 bits", says="below",
    ),
    Claim(
        experiment="bifurcation", text="gradients rounded to nearest at 8 bits are worse",
        paper="not recovered", arm="nearest", other="whole", says="below",
    ),
    Claim(
        experiment="bifurcation", text="the same with gradients of 4 bits",
        paper="not recovered", arm="4 bits, nearest", other="4 bits", says="below",
    ),
    Claim(
        experiment="bifurcation", text="range's constant does not matter: the paper's",
        paper="not recovered", arm="paper's constant", other="whole", says="alike", within=1.0,
    ),
    Claim(
        experiment="bifurcation", text="range's constant does not matter: the code's",
        paper="not recovered", arm="code's constant", other="whole", says="alike", within=1.0,
    ),
    Claim(
        experiment="bifurcation", text="first and last layer can be in 8 bits",
        paper="done so", arm="whole", other="ends", says="alike", within=1.0,
    ),
    Claim(
        experiment="cifar_resnet", text="CIFAR-10, stepped schedule: 8 bits are as good as FP32",
        paper="no number found", arm="8 bits", other="fp32", says="alike", within=1.0,
    ),
    Claim(
        experiment="cifar_resnet", text="the same, both with range batch-norm",
        paper="", arm="8 bits", other="range", says="alike", within=1.0,
    ),
    *(
        Claim(
            experiment="angle", text=f"{text}, M = {bits}: the bound lies below the cosine",
            paper="theory", arm=arm, other=arm, says="below", unit="", places=4,
            metric=f"bound {bits}", against=f"cosine {bits}",
        )
        for arm, text in (
            ("gaussian", "Gaussian vectors"), ("weights", "weights"), ("inputs", "inputs"),
            ("gradients", "layer gradients"),
        )
        for bits in (2, 7)
    ),
    *(
        Claim(
            experiment="angle", text=f"{text}, M = {bits}: the tight form is the cosine",
            paper="theory", arm=arm, other=arm, says="alike", within=within, unit="", places=4,
            metric=f"tight {bits}", against=f"cosine {bits}",
        )
        for arm, text in (("gaussian", "Gaussian vectors"), ("gradients", "layer gradients"))
        for bits, within in ((2, 0.01), (4, 0.001))
    ),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    publish(CLAIMS, README, __doc__ or "", arguments)


if __name__ == "__main__":
    main()
