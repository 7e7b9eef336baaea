"""What experiments 2, 3 and 7 share: a ResNet whose batch-norms have another deviation."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.harness import images
from experiments.harness.experiment import Job
from experiments.harness.loop import Curve
from qtrain import deviations, quantize


def run(job: Job, arms: Mapping[str, deviations.Deviation | None]) -> Curve:
    """The arm's deviation in full precision; None: torch's own batch-norm, not converted."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    deviation = arms[job.arm]
    if deviation is not None:
        model = quantize(model, recipe="fp32", norm=deviation)
    return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))
