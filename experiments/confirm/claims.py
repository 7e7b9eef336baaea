"""The primary claims of the confirmation, what the papers report, and how each is judged: stated
before the first run.  Holm's correction over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says of two arms.

    says     of `arm` against `other`: "equal" within the margin, or "below" by more than 0
    margin   of accuracy (0.005: half a point): what counts as equal
    paper    its numbers;  source: where they stand, and at which scale
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


_POSTER = "poster of Hoffer et al. 2018, curves"
_BANNER = "poster of Banner et al. 2018, curves"
CLAIMS = (
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
