"""The claims of the confirmation, what the papers report, and how each is judged: stated before the
first run.  The verdicts of the primary ones hold together (Holm), the others are exploratory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says of two arms.

    says     of `arm` against `other`: "equal" within the margin, or "below" by more than 0
    margin   of accuracy (0.005: half a point), or in the metric's unit: what counts as equal
    paper    its numbers;  source: where they stand, and at which scale
    metric   "accuracy", "loss" (nats a character) or a column of the study's hooks
    """

    name: str
    text: str
    study: str
    arm: str
    other: str
    says: Literal["equal", "below"]
    margin: float
    paper: str
    source: str
    metric: str = "accuracy"


#: what the papers stand on, and what a CPU has time for
PRIMARY = (
    "P1", "P2", "P3", "P4", "P5", "P5 linf", "P6", "P7", "P8", "P9", "D1", "D2",
)  # fmt: skip
_POSTER = "poster of Hoffer et al. 2018, curves"
_BANNER = "poster of Banner et al. 2018, curves"
_Says = Literal["equal", "below"]
_DECAY: tuple[tuple[str, str, _Says, str, str], ...] = (
    ("P1", "off", "below", "without weight decay accuracy is lower", "89.29"),
    ("P2", "correction", "equal", "eq. 4's rates do what weight decay does", "90.56"),
    ("P3", "norms", "equal", "norms can be set instead of the rate", "90.23"),
)
_HALF: tuple[tuple[str, str, _Says, str, str], ...] = (
    (
        "P7", "l2 fp32 sums 2^0", "below", "L2 in FP16, sums in FP32, fails",
        "error 77 to 97 against 33.2 %",
    ),
    ("P7 2^4", "l2 fp32 sums 2^4", "below", "the same, its input 2^4 times as large", "-"),
    ("P7 2^8", "l2 fp32 sums 2^8", "below", "the same, its input 2^8 times as large", "-"),
    (
        "P7 l1", "l1 fp16 sums 2^0", "equal", "L1 in FP16, sums too, is as good as L2 in FP32",
        "error 33.7 against 33.2 %",
    ),
    ("P7 l1 2^8", "l1 fp16 sums 2^8", "equal", "the same, its input 2^8 times as large", "-"),
)  # fmt: skip
_BITS: tuple[tuple[int, str, _Says, str, str], ...] = (
    (2, "8 bits", "below", "are worse than 8", "18 against 89.1 %"),
    (4, "8 bits", "below", "are worse than 8", "83 against 89.1 %"),
    (6, "8 bits", "equal", "are as good as 8", "89.5 against 89.1 %"),
    (8, "fp32 range16", "equal", "are as good as full precision", "89.1 %, none of the latter"),
)
CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="P4", study="bounded", arm="bounded", other="batch norm", says="below", margin=0.005,
        text="bounded weight norm comes near batch-norm, 2.2 points below",
        paper="error 28.2 against 26.0 %", source=f"ResNet-50, ImageNet; {_POSTER} (vector)",
    ),
    Claim(
        name="P5", study="deviations", arm="l1", other="l2", says="equal", margin=0.005,
        text="L1 batch-norm is as good as L2", paper="error 33.7 against 33.6 %",
        source=f"ResNet-18, ImageNet; {_POSTER} (raster)",
    ),
    Claim(
        name="P5 linf", study="deviations", arm="linf", other="l2", says="below", margin=0.005,
        text="L-infinity is worse", paper="error 36.2 against 33.6 %",
        source=f"ResNet-18, ImageNet; {_POSTER} (raster)",
    ),
    Claim(
        name="P6", study="range", arm="range16", other="l2", says="equal", margin=0.005,
        text="range batch-norm is as good as L2", paper="error 27.80 against 27.59 %",
        source=f"ResNet-50, ImageNet, mean of the last 10 epochs; {_BANNER} (raster)",
    ),
    Claim(
        name="P8", study="int8", arm="int8", other="fp32", says="equal", margin=0.005,
        text="8 bits are as good as full precision, with the same norm",
        paper="error 33.5 against 34.0 %", source=f"ResNet-18, ImageNet; {_BANNER} (raster)",
    ),
    Claim(
        name="P9", study="recipe", arm="banner2018 code", other="fp32 range16", says="equal",
        margin=0.005, text="the paper's whole recipe is as good as full precision",
        paper="error 33.5 against 34.0 %", source=f"ResNet-18, ImageNet; {_BANNER} (raster)",
    ),
    *(
        Claim(
            name=name + suffix, study=f"weight decay{suffix}", arm=arm, other="on", says=says,
            margin=margin, text=text + where, paper=f"{paper} against 90.55 %", source=source,
        )
        for suffix, margin, where, source in (
            ("", 0.002, "", f"VGG-11, CIFAR-10; {_POSTER} (vector)"),
            (
                " small", 0.005, ", width 8, 5,000 images",
                f"the same at width 64, 50,000 images; {_POSTER} (vector)",
            ),
        )
        for name, arm, says, text, paper in _DECAY
    ),
    *(
        Claim(
            name=name, study="half", arm=arm, other="l2 fp32", says=says, margin=0.02, text=text,
            paper=paper, source=f"ResNet-18, ImageNet; {_POSTER} (raster), no scale named",
        )
        for name, arm, says, text, paper in _HALF
    ),
    *(
        Claim(
            name=f"P10 {bits}", study="bits", arm=f"{bits} bits", other=other, says=says,
            margin=0.005, text=f"{bits} bits {text}", paper=paper,
            source=f"CIFAR-10, network not named; {_BANNER} (raster)",
        )
        for bits, other, says, text, paper in _BITS
    ),
    *(
        Claim(
            name=f"P10 {bits} angle", study="bits", arm=f"{bits} bits", other="8 bits",
            says="below", margin=0.005, metric="cosine_backward",
            text=f"the cosine of layer gradients at {bits} bits is below that at 8",
            paper=f"{paper:g} against 0.982", source=f"CIFAR-10; {_BANNER} (raster)",
        )
        for bits, paper in ((4, 0.74), (6, 0.88))
    ),
    *(
        Claim(
            name=f"P11 {bits} {what}", study="bifurcation", arm=f"{bits} bits {what}",
            other=f"{bits} bits whole", says="below", margin=0.005,
            text=f"layer gradients of {bits} bits {text}", paper="not recovered",
            source="Banner et al. 2018, text",
        )
        for bits in (8, 4)
        for what, text in (
            ("narrow", "need a wide copy for grad_weight"), ("nearest", "need stochastic rounding"),
        )
    ),
    *(
        Claim(
            name=f"P5 {arm}", study="constant", arm=f"l1 {arm}", other="l1", says="below",
            margin=0.005, text=f"L1's constant, {arm}, is worse", paper=paper,
            source=f"ResNet-18, ImageNet; {_POSTER} (raster)",
        )
        for arm, paper in (
            ("quarter", "error 36.1 against 33.9 %"), ("fourfold", "error 35.4 against 33.9 %"),
        )
    ),
    *(
        Claim(
            name=name, study="cifar resnet", arm="int8 range16", other=other, says="equal",
            margin=0.005, text=f"8 bits are as good as full precision, stepped schedule{text}",
            paper="no number found", source="ResNet, CIFAR-10; the code of Banner et al. 2018",
        )
        for name, other, text in (
            ("P12", "fp32", ""), ("P12 range", "fp32 range16", ", both with range batch-norm"),
        )
    ),
    Claim(
        name="P13", study="transformer", arm="int8", other="fp32", says="equal", margin=0.005,
        text="8 bits, attention too, predict tokens as well", paper="63.9 against 64.07 %",
        source=f"Transformer, translation; {_BANNER} (raster)",
    ),
    Claim(
        name="P13 loss", study="transformer", arm="int8", other="fp32", says="equal", margin=0.02,
        metric="loss", text="and their perplexity is the same",
        paper="perplexity 5.76 against 5.66",
        source=f"Transformer, translation; {_BANNER} (raster)",
    ),
    *(
        Claim(
            name=f"P14 {arm}", study="lp", arm=arm, other="l2", says="equal", margin=0.05,
            metric="loss", text=f"{text} is as good as L2 weight norm on a Transformer",
            paper="not recovered", source="Transformer, translation; Hoffer et al. 2018, text",
        )
        for arm, text in (("l1", "L1"), ("linf", "L-infinity"), ("plain", "no weight norm"))
    ),
    Claim(
        name="T1", study="text", arm="int8", other="fp32", says="equal", margin=0.02,
        metric="loss", text="8 bits, attention too, predict characters as well, two small blocks",
        paper="perplexity 5.76 against 5.66", source=f"translation; {_BANNER} (raster)",
    ),
    Claim(
        name="D1", study="digits", arm="int8", other="fp32", says="equal", margin=0.01,
        text="8 bits are as good as full precision, with the same norm, on digits", paper="-",
        source="not this task",
    ),
    Claim(
        name="D2", study="digits", arm="int8 range", other="fp32", says="equal", margin=0.01,
        text="8 bits with range batch-norm are as good as full precision, on digits", paper="-",
        source="not this task",
    ),
)  # fmt: skip
#: what no single machine decides: the papers' own scale
UNDECIDABLE = (
    "ImageNet: ResNet-50 for 90 epochs takes some 140 hours of one GPU in int8; no claim is judged "
    "at the papers' own scale."
)
