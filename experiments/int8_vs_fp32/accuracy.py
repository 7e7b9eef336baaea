"""int8 against full precision: what `qtrain train int8-resnet18 --model resnet20` compares.

    python -m experiments.int8_vs_fp32.accuracy

ResNet-20 on 8 x 8 digits: int8, range batch-norm, outputs in FP16 (Banner et al., "Scalable methods
for 8-bit training", NeurIPS 2018, report ResNet-18 on ImageNet: error about 34.0 % in full
precision, about 33.5 % in 8 bits, read off their poster).

Set before the runs: n = 5 seeds; a margin of 1 point, within which an arm without a difference is
found with 80 % power where a run deviates by 0.45 points.
"""

from __future__ import annotations

from experiments import small_tasks

ARMS = {"fp32": "fp32", "int8": {"recipe": "int8", "norm": "range", "activation": "fp16"}}
STUDIES = {"digits": small_tasks.digits(ARMS, seeds=5, margin=0.01) | {"model": "resnet20"}}

if __name__ == "__main__":
    small_tasks.main(STUDIES, __file__)
