"""The rules of a verdict, one table: what is too much of each figure, why, and what to do."""

from __future__ import annotations

import math

from ..inspection.row import ROLES, SUMS
from . import figures as series
from .figures import Rule
from .training_rules import TRAINING

NOT_FINITE, OVERFLOWING = "not finite", "overflowing sums"
_OWN = "; a learned step or clip: another learning rate, no weight decay"
_PRODUCTS_TOO = tuple(role for role in ROLES if role not in SUMS.values())

_ERRORS = (
    "clipped", "range too narrow", "scale too coarse", "range too wide", "gain", "saturated",
    "underflow", "too few bits",
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule(
        symptom=OVERFLOWING,
        roles=tuple(SUMS.values()),
        values=series.field("clipped"),
        threshold=1e-4,
        explains=(NOT_FINITE, "coarse sums"),
        cause="sums leave the range of their accumulator: they saturate, wrap or become infinite",
        remedy="required_bits names the narrowest accumulator that each product bears, as "
        "overrides; in {slot} more exponent bits (an integer: more bits)",
        source="any but one in ten thousand",
    ),
    Rule(
        symptom=NOT_FINITE,
        roles=ROLES,
        values=series.nonfinite,
        over_all=series.overflow,
        threshold=0.0,
        base=4.0,
        most=4.0,
        explains=("dead scale", "stale range", "biased rounding", "excess error", *_ERRORS),
        cause="NaN or infinities: an overflow of the format or of the loss, or a scale of them",
        remedy="a wider exponent (bf16 for fp16), a GradScaler, a lower learning rate; where only "
        "this tensor has them: overrides={{'{layer}': None}}",
        source="any",
    ),
    Rule(
        symptom="coarse sums",
        roles=tuple(SUMS.values()),
        values=series.over_noise,
        threshold=math.sqrt(2),
        smallest=True,
        most=1.0,
        cause="rounding has half of the sums' power or more: products vanish beside the sum",
        remedy="required_bits names the narrowest accumulator that each product bears, as "
        "overrides; in {slot} a chunk=, compensated=True or more mantissa bits",
        source="as of too few bits; Wang et al. 2018, arXiv 1812.08011, on swamping",
    ),
    Rule(
        symptom="dead scale",
        values=series.lost,
        threshold=0.9,
        base=2.0,
        explains=("stale range", "biased rounding", "excess error", *_ERRORS),
        cause="nothing of the tensor is left: its scale is 0, or of another order than the tensor",
        remedy="let {slot} take its range from the tensor: range=absmax (affine: minmax), "
        "calibrate() first where it keeps a running one" + _OWN,
        source="by definition",
    ),
    Rule(
        symptom="stale range",
        values=series.stale,
        threshold=2.0,
        base=0.5,
        explains=("biased rounding", *_ERRORS),
        cause="the scale stands still while the tensor's range moves: it clips or wastes codes",
        remedy="a range that follows, absmax or ema(minmax), in {slot}; a restored state" + _OWN,
        source="a bit is lost, or more is clipped than half",
    ),
    Rule(
        symptom="range too narrow",
        values=series.field("reach"),
        where=series.loses,
        threshold=3.0,
        base=0.5,
        explains=("clipped", "gain", "saturated", "too few bits"),
        cause="the tensor reaches far beyond the representable interval: its ends are cut off",
        remedy="range=absmax (affine: minmax) in {slot}, or a percentile nearer to 1; where rare "
        "peaks set it: one scale a channel, per_axis(...)" + _OWN,
        source="healthy: at most 1.7 (banner2018, which clips by design)",
    ),
    Rule(
        symptom="clipped",
        values=series.field("clipped"),
        where=series.loses,
        threshold=0.15,
        explains=("gain", "saturated", "too few bits"),
        cause="more of the tensor lies outside the representable interval than a clip should cut",
        remedy="range=absmax (affine: minmax) in {slot}; where it is, a scale rounded up" + _OWN,
        source="healthy: at most 0.09 (banner2018, which clips by design); a PACT's: any below 0",
    ),
    Rule(
        symptom="scale too coarse",
        values=series.used,
        threshold=1 / 8,
        smallest=True,
        explains=("range too wide", "underflow", "gain", "too few bits"),
        cause="the largest code is an eighth of the format's or less (int8: 15 of 127): three bits "
        "or more are never used, for a range that has drifted or is that of other values",
        remedy="a range of this tensor in {slot}: range=absmax (affine: minmax); a running one "
        "that forgets faster" + _OWN,
        source="integers lose 18 dB by it, floats nothing; healthy: at least 0.3",
    ),
    Rule(
        symptom="range too wide",
        values=series.room,
        threshold=1 / 64,
        smallest=True,
        explains=("underflow", "gain", "too few bits"),
        cause="six bits or more are not used: the range is that of other or rarer values",
        remedy="a range of this tensor in {slot}: absmax, percentile(0.9999) where rare peaks set "
        "it, or one scale a channel, per_axis(...)" + _OWN,
        source="healthy: at least 0.3",
    ),
    Rule(
        symptom="excess error",
        values=series.field("spread"),
        threshold=1.0,
        explains=("biased rounding", "shared noise", "gain", "too few bits"),
        cause="unclipped elements are off by more than a step: codes do not stand for values",
        remedy="{slot}: divide by the scale and zero point that its QTensor returns",
        source="rounding in one direction: at most 1; to neighbours, unbiased: at most 0.5",
    ),
    Rule(
        symptom="shared noise",
        values=series.field("shared"),
        over_all=series.mean("shared"),
        noise=series.noise_of_mean("shared_error"),
        threshold=0.05,
        explains=("biased rounding",),
        cause="the rounding's random numbers repeat along an axis: errors add up in the sums",
        remedy="in {slot} a random number for each element: random_bits(key, x.shape), or "
        "rounding=stochastic()",
        source="healthy: below five standard errors; one noise for an axis: 0.3 to 0.6",
    ),
    Rule(
        symptom="biased rounding",
        values=series.field("offset"),
        over_all=series.mean("offset", abs),
        noise=series.noise_of_mean("offset_error"),
        threshold=0.002,
        explains=("gain",),
        cause="errors have a mean, in steps, which sums over terms and steps do not average out",
        remedy="rounding=nearest_even forward and stochastic() backward in {slot}, with enough "
        "random bits (the default's 23); where its scale clips: a lower top, more headroom",
        source="healthy: below 0.001 and five standard errors",
    ),
    Rule(
        symptom="underflow",
        values=series.kept,
        threshold=0.02,
        smallest=True,
        explains=("too few bits",),
        cause="nearly all that is not 0 became 0: the step is larger than a typical value",
        remedy="stochastic() rounding, more bits, or a float format in {slot}: "
        "overrides={{'{layer}': 16}}",
        source="healthy: at least 0.05 (4 bits)",
    ),
    Rule(
        symptom="too few bits",
        roles=tuple(role for role in _PRODUCTS_TOO if role != "grad_weight"),
        values=series.over_noise,
        where=series.scatters,
        threshold=math.sqrt(2),
        smallest=True,
        most=1.0,
        explains=("gain",),
        cause="the error has half of the tensor's power or more: too few bits for its spread",
        remedy="more bits: overrides={{'{layer}': 16}}, or what sensitivity and recommend name; or "
        "less spread under one scale: a channel or block each (range batch-norm widens layer "
        "gradients, norm='l1' less so)",
        source="experiments/confirm/smoke_tests.md: signal to noise of 1.3 in layer gradients "
        "(5 bits) cost 2.5 points, 0.75 (4 bits) 6",
    ),
    Rule(
        symptom="gain",
        roles=_PRODUCTS_TOO,
        values=series.field("gain"),
        over_all=series.mean("gain", abs),
        noise=series.noise_of_gain,
        threshold=0.1,
        cause="the tensor comes out smaller or larger as a whole (a grad_weight: the step length)",
        remedy="a range that clips less (absmax), or more bits: overrides={{'{layer}': 16}}",
        source="healthy: at most 0.05 (banner2018)",
    ),
    Rule(
        symptom="saturated",
        values=series.field("saturated"),
        where=series.loses,
        threshold=0.75,
        most=1.0,
        cause="most elements lie on the two end codes",
        remedy="range=absmax (affine: minmax) in {slot}" + _OWN,
        source="healthy: at most 0.6 (pixels that are white)",
    ),
    Rule(
        symptom="gradient below noise",
        roles=("grad_weight",),
        values=series.over_noise,
        threshold=math.sqrt(3),
        smallest=True,
        most=1.0,
        cause="the gradient is less than sqrt(3) times its rounding noise: training stalls",
        remedy="a wider copy of the gradient: GradWeight(grad_output=Quantizer(format=bf16, "
        "range=None)), or overrides={{'{layer}': None}} for the rest of the run",
        source="FP4 All the Way, arXiv 2505.19115",
    ),
    *TRAINING,
)
