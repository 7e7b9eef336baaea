"""Rules of what is no error of the rounding itself: channels of one scale, weights and steps."""

from __future__ import annotations

from . import figures as series
from .figures import Rule

TRAINING: tuple[Rule, ...] = (
    Rule(
        symptom="outlier channels",
        values=series.field("crowded"),
        threshold=0.1,
        most=1.0,
        error=False,
        cause="one channel in sixteen, or fewer, sets the step of all: rounding takes this share "
        "of the others' power, which a scale of their own would leave",
        remedy="one scale a channel, granularity=per_axis(...) in {slot}, or "
        "overrides={{'{layer}': None}}",
        source="experiments/microscope/outliers.py: below 0.05 no cost is seen, 0.12 costs 0.002 "
        "of the gradient's cosine; SmoothQuant, arXiv 2211.10438, on language models",
    ),
    Rule(
        symptom="oscillating weights",
        roles=("weight",),
        values=series.field("oscillation"),
        threshold=0.5,
        most=1.0,
        error=False,
        cause="weights go to and fro between two codes: they sit on the threshold between them",
        remedy="a lower learning rate, or more bits: overrides={{'{layer}': 16}}",
        source="healthy: at most 0.4",
    ),
    Rule(
        symptom="steps too long",
        roles=("weight",),
        values=series.stride,
        threshold=0.25,
        most=1.0,
        error=False,
        cause="one update moves the weights by a quarter of the largest of them, or more",
        remedy="a lower learning rate, or a longer warm-up",
        source="healthy: at most 0.02",
    ),
    Rule(
        symptom="steps too short",
        roles=("weight",),
        values=series.field("update"),
        threshold=1e-4,
        smallest=True,
        most=1.0,
        error=False,
        cause="codes hardly ever change: the quantized weights stand still",
        remedy="a higher learning rate, or more bits: overrides={{'{layer}': 16}}",
        source="healthy: at least 0.0003 (4 bits)",
    ),
)
