"""The paper's claims: the table in README.md, its verdicts computed from the results.

python -m experiments.banner2018.claims [--scale paper] [--output FOLDER]
"""

from __future__ import annotations

from pathlib import Path

from experiments.banner2018.bits import PAPER
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
        paper="63.9 against 64.1 %", arm="int8", other="fp32", says="alike", within=1.0,
    ),
    Claim(
        experiment="transformer", text="and their perplexity is the same",
        paper="5.75 against 5.66", arm="int8", other="fp32", says="alike", within=0.1, unit="",
        metric="perplexity",
    ),
    Claim(
        experiment="transformer", text="attention in 8 bits costs nothing more",
        paper="", arm="int8", other="linear", says="alike", within=1.0,
    ),
    *(
        Claim(
            experiment="bits", text=f"{bits} bits: {text}",
            paper=f"{PAPER['cosine_backward'][bits]:g} against {PAPER['cosine_forward'][bits]:g}",
            arm=f"{bits} bits", other=f"{bits} bits", says="below", unit="", places=4,
            metric="cosine_backward", against="cosine_forward",
        )
        for bits, text in (
            (2, "the backward cosine is below the forward one"),
            *((bits, "the same") for bits in (4, 6, 8)),
        )
    ),
    *(
        Claim(
            experiment="bits", text=f"{bits} bits are worse than 8",
            paper=f"{PAPER['accuracy'][bits]:g} against {PAPER['accuracy'][8]:g} %",
            arm=f"{bits} bits", other="8 bits", says="below",
        )
        for bits in (2, 4)
    ),
    Claim(
        experiment="bits", text="6 bits are as good as 8",
        paper=f"{PAPER['accuracy'][6]:g} against {PAPER['accuracy'][8]:g} %", arm="6 bits",
        other="8 bits", says="alike", within=1.0,
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
        )
        for bits in (2, 7)
    ),
    *(
        Claim(
            experiment="angle",
            text=f"layer gradients, M = {bits - 1}: the bound does not hold, the cosine is below",
            paper=f"{PAPER['cosine_backward'][bits]:g} against {PAPER['bound'][bits]:g}",
            arm="gradients", other="gradients", says="below", unit="", places=4,
            metric=f"cosine {bits - 1}", against=f"bound {bits - 1}",
        )
        for bits in PAPER["bound"]
    ),
    *(
        Claim(
            experiment="angle", text=f"Gaussian vectors, M = {bits}: the tight form is the cosine",
            paper="theory", arm="gaussian", other="gaussian", says="alike", within=within, unit="",
            places=4, metric=f"tight {bits}", against=f"cosine {bits}",
        )
        for bits, within in ((2, 0.01), (4, 0.001))
    ),
    *(
        Claim(
            experiment="angle",
            text=f"layer gradients, M = {bits}: the cosine is below the tight form",
            paper="not Gaussian", arm="gradients", other="gradients", says="below", unit="",
            places=4, metric=f"cosine {bits}", against=f"tight {bits}",
        )
        for bits in (2, 4)
    ),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    publish(CLAIMS, README, __doc__ or "", arguments, verdicts=False)


if __name__ == "__main__":
    main()
